"""The scores of a run, and a selection by another score than the risk difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe.analysis.scores import SCORE_COLUMNS
from steermoe.errors import ConfigError
from steermoe.pipeline import run_pipeline
from steermoe.records import RECORDED_SUMS
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RISK, SCORES
from steermoe.store.run import Run
from tiny import CommandLine, Listener, copy_of, tiny_config


@pytest.fixture
def identified(finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path) -> Any:
    """Identify again on a copy of the finished run, with other settings."""
    folder = copy_of(finished, tmp_path / "run")

    def again(**settings: Any) -> Run:
        config = tiny_config(checkpoint, folder, small_prompts, identify=settings)
        return run_pipeline(config, only="identify", reporter=Listener())

    return again


def test_every_run_has_the_recorded_scores(finished: Path) -> None:
    run = RunDirectory(finished)
    table = run.read_table(SCORES)
    assert list(table.columns) == SCORE_COLUMNS
    assert table["score"].unique().tolist() == ["risk_diff", *RECORDED_SUMS]
    risk = run.read_table(RISK).sort_values(["layer", "expert"])
    own = table[table["score"] == "risk_diff"]
    np.testing.assert_allclose(own["value"], risk["risk_diff"], rtol=1e-5, atol=1e-9)
    assert own["q_value"].tolist() == risk["q_value"].tolist()
    assert table.notna().all().all()


def test_recorded_values_are_means_over_batches_of_what_the_replies_add_up_to(
    finished: Path,
) -> None:
    run = RunDirectory(finished)
    replies, sums = run.read_replies(), run.read_sums("contribution")
    assert sums is not None and sums.total.min() >= 0 and sums.total.max() > 0
    differences = []
    for _, rows in replies[replies["batch_idx"] >= 0].groupby("batch_idx"):
        means = {}
        for label, members in rows.groupby("label"):
            total = sums.total[members.index, 1].sum(axis=0)
            means[label] = total / sums.num_tokens[members.index, 1].sum()
        differences.append(means["unsafe"] - means["safe"])
    table = run.read_table(SCORES)
    own = table[table["score"] == "contribution"]["value"].to_numpy()
    np.testing.assert_allclose(own, np.mean(differences, axis=0).ravel(), rtol=1e-4, atol=1e-8)


def test_gate_weights_of_a_token_add_up_to_one(finished: Path) -> None:
    run = RunDirectory(finished)  # mixtral renormalises the weights of the chosen
    sums = run.read_sums("gate_mass")
    assert sums is not None
    for segment in (0, 1):
        mass = sums.total[:, segment].sum(axis=-1)
        tokens = np.broadcast_to(sums.num_tokens[:, segment, None], mass.shape)
        np.testing.assert_allclose(mass, tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RECORDED_SUMS)
def test_experts_are_ranked_by_another_score_in_every_batch_too(name: str, identified: Any) -> None:
    run = identified(rank_by=name, threshold=0.0, top_k=3)
    table = run.directory.read_table(SCORES)
    own = table[table["score"] == name].sort_values(
        ["value", "layer", "expert"], ascending=[False, True, True]
    )
    expected = [tuple(row) for row in own.head(3)[["layer", "expert"]].to_numpy().tolist()]
    assert [tuple(e) for e in run.unsafe_experts] == expected
    selection = run.directory.read_json("unsafe_experts.json")
    assert selection["rule"]["rank_by"] == name
    stated = [row["score"] for row in selection["after_selection"]]
    assert stated == pytest.approx(own.head(3)["value"].tolist())
    assert len(selection["per_batch"]) == 3
    figures = run.state.figures_of("identify")
    assert figures["replication"]["num_selected"] == 3
    # What is expected to be false is said of the score, by its own p-values.
    assert 0 <= figures["expected_false_share"] <= 1
    assert figures["expected_false_share"] == selection["expected_false_share"]
    assert not {"shrunken", "fcr_low"} & selection["after_selection"][0].keys()


def test_within_layers_every_layer_is_selected_from(identified: Any) -> None:
    run = identified(rank_within="layer", threshold=-1.0, top_k=4)
    layers = [layer for layer, _ in run.unsafe_experts]
    assert sorted(layers) == [0, 0, 1, 1]
    assert run.directory.read_selection().rule["rank_within"] == "layer"


def test_a_run_without_sums_says_so_and_is_refused_where_it_is_ranked_by_them(
    identified: Any, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    monkeypatch.setattr(RunDirectory, "read_sums", lambda self, score: None)
    run = identified(num_subsamples=2)
    assert run.directory.read_table(SCORES)["score"].unique().tolist() == ["risk_diff"]
    with pytest.raises(Exception, match="no sums of the score gate_mass"):
        identified(rank_by="gate_mass")


def test_an_unknown_score_is_refused_by_name(identified: Any) -> None:
    with pytest.raises(ConfigError, match="'risk' is not known"):
        identified(rank_by="risk")


def test_a_threshold_of_another_score_has_its_own_unit(identified: Any) -> None:
    with pytest.raises(ConfigError, match="threshold 7 is no risk difference"):
        identified(threshold=7.0)
    assert identified(rank_by="contribution", threshold=1e6).unsafe_experts == []


def test_show_prints_how_alike_scores_rank(finished: Path, steermoe: CommandLine) -> None:
    assert steermoe("show", "--run", finished) == 0
    assert "rank correlation of the scores" in steermoe.out
    assert "Contribution" in steermoe.out and "1.00" in steermoe.out
