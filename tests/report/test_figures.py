"""The figures of the page: their values, and that plotly takes them."""

from __future__ import annotations

import pandas as pd
import pytest

from steermoe.analysis.risk import expert_label
from steermoe.report.figures import differences_per_batch, risk_map, training_curve
from steermoe.report.plotly_parts import Figure


def risk_table(differences: dict[tuple[int, int], float]) -> pd.DataFrame:
    rows = [
        {
            "layer": layer,
            "expert": expert,
            "Layer_Expert": expert_label(layer, expert),
            "risk_diff": value,
            "risk_diff_pooled": value,
            "a_safe": 10,
            "a_unsafe": 20,
            "n_safe": 100,
            "n_unsafe": 100,
            "a_safe_n": 0.1,
            "a_unsafe_n": 0.1 + value,
        }
        for (layer, expert), value in differences.items()
    ]
    return pd.DataFrame(rows)


def is_valid(figure: Figure | None) -> bool:
    """Whether plotly knows every property of a figure and allows its values."""
    from plotly import graph_objects

    assert figure is not None
    graph_objects.Figure({"data": figure.data, "layout": figure.layout})
    return True


def test_the_map_is_centred_on_zero_and_keeps_decoder_indices() -> None:
    table = risk_table(
        {(1, 0): 0.3, (1, 1): -0.1, (1, 2): 0.0, (4, 0): -0.5, (4, 1): 0.2, (4, 2): 0.1}
    )
    figure = risk_map(table, {(4, 1)})
    heat, outline = figure.data
    assert heat["z"] == [[0.3, -0.1, 0.0], [-0.5, 0.2, 0.1]]  # layers down, experts across
    assert (heat["zmin"], heat["zmax"], heat["zmid"]) == (-0.5, 0.5, 0)
    assert figure.layout["yaxis"]["ticktext"] == ["1", "4"]  # layers 0, 2 and 3 are dense
    assert figure.layout["yaxis"]["title"]["text"] == "decoder layer"
    assert outline["x"] == [0.5, 1.5, 1.5, 0.5, 0.5, None]
    assert outline["y"] == [0.5, 0.5, 1.5, 1.5, 0.5, None]
    assert heat["customdata"][1][1][:3] == ["L04_E01", "selected", "+0.2000"]
    assert heat["customdata"][0][0][5:7] == ["20 of 100 tokens", "10 of 100 tokens"]
    assert "from \N{MINUS SIGN}0.500 at L04_E00 to +0.300 at L01_E00" in figure.description
    assert is_valid(figure)


def test_a_deep_model_with_few_experts_lies_on_its_side() -> None:
    table = risk_table({(layer, e): 0.1 * layer for layer in (0, 2, 3) for e in (0, 1)})
    figure = risk_map(table, {(3, 1)})
    heat, outline = figure.data
    assert heat["z"] == [[0.0, 0.2, 0.3], [0.0, 0.2, 0.3]]
    assert figure.layout["xaxis"]["ticktext"] == ["0", "2", "3"]
    assert figure.layout["xaxis"]["title"]["text"] == "decoder layer"
    assert (outline["x"][0], outline["y"][0]) == (1.5, 0.5)
    assert heat["customdata"][1][2][0] == "L03_E01"


def test_the_axis_of_many_experts_is_labelled_thinly() -> None:
    table = risk_table({(layer, e): 0.0 for layer in range(3) for e in range(128)})
    axis = risk_map(table, set()).layout["xaxis"]
    assert axis["ticktext"][:3] == ["0", "5", "10"] and axis["tickvals"][:3] == [0, 5, 10]


def test_differences_per_batch_come_in_the_order_of_selection() -> None:
    per_batch = pd.DataFrame(
        {
            "batch_idx": [0, 0, 1, 1],
            "layer": [2, 2, 2, 2],
            "expert": [0, 1, 0, 1],
            "risk_diff": [0.1, 0.4, -0.2, 0.2],
        }
    )
    figure = differences_per_batch(per_batch, [(2, 1), (2, 0)])
    assert figure is not None and is_valid(figure)
    dots, means = figure.data
    assert list(zip(dots["x"], dots["y"], strict=True)) == [(0.4, 0), (0.2, 0), (0.1, 1), (-0.2, 1)]
    assert means["x"] == pytest.approx([0.3, -0.05])
    assert figure.layout["yaxis"]["ticktext"] == ["L02_E01", "L02_E00"]
    assert "2 experts in 2 batches, 1 of them above zero in every batch." in figure.description
    assert differences_per_batch(per_batch, []) is None


def test_the_training_curve_has_a_panel_for_each_loss_that_was_logged() -> None:
    history = [
        {"step": 1, "loss": 3.0, "refusal_loss": 2.5},
        {"step": 2, "loss": 1.0, "refusal_loss": float("nan")},
        {"step": 2, "train_loss": 2.0},
    ]
    figure = training_curve(history)
    assert figure is not None and is_valid(figure)
    assert [(trace["name"], trace["x"]) for trace in figure.data] == [
        ("loss", [1, 2]),
        ("refusal loss (cross entropy)", [1]),
    ]
    assert "Over 2 steps loss went from 3.000 to 1.000" in figure.description
    assert figure.layout["xaxis"]["dtick"] == 1
    assert training_curve([{"step": 2, "train_loss": 2.0}]) is None
