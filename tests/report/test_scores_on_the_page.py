"""What the page says of scores, of a forecast and its outcome, and of controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from steermoe.analysis.controls import ControlMeasure, Difference
from steermoe.analysis.forecast import Interval, KindForecast
from steermoe.analysis.rank_correlation import rank_correlations
from steermoe.report.controls import control_rows, controls_part
from steermoe.report.numbers import MISSING
from steermoe.report.scoring import correlation_map, correlations_of, forecast_rows, score_rows
from steermoe.store.controls_file import ControlFigures, ControlSet
from steermoe.store.forecast_file import Forecast

UNKNOWN = Interval(None, None, None)


def scores(**values: list[float]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"layer": [0, 0, 1, 1], "expert": [0, 1, 0, 1], "score": name, "value": of})
        for name, of in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


TABLE = scores(risk_diff=[1.0, 2, 3, 4], gate_mass=[4.0, 3, 2, 1], taylor=[1.0, 2, 4, 3])


def test_the_table_and_the_picture_hold_the_same_correlations() -> None:
    found = correlations_of(TABLE, {0, 1})
    assert found is not None
    rows = score_rows(found)
    assert [row.name for row in rows] == ["Risk difference", "Gate mass", "Taylor"]
    first = rows[0].correlations
    assert (first[0], first[2]) == ("1.00", "0.80")
    picture = correlation_map(found)
    assert picture.data[0]["z"][0] == [1.0, -1.0, 0.8]
    assert "The least alike are Gate mass and Risk difference, -1.00." in picture.description
    assert rank_correlations(TABLE, [1]).loc["risk_diff", "taylor"] == pytest.approx(-1)


def test_one_score_alone_has_no_table() -> None:
    assert correlations_of(scores(risk_diff=[1.0, 2, 3, 4]), {0, 1}) is None
    assert correlations_of(None, {0}) is None


def kind(value: float, *ends: float) -> KindForecast:
    own = Interval(value, *ends) if ends else Interval(value, None, None)
    return KindForecast(8, own, Interval(1.2, 1.0, 1.4), UNKNOWN, 1.1, 1.3, 0, 20)


def test_a_forecast_stands_beside_its_outcome() -> None:
    found = Forecast(5, 8, {"look_alike": kind(0.5, 0.4, 0.6), "benign": kind(0.25)})
    metric = {"value": 0.1, "ci_low": 0.02, "ci_high": 0.2}
    evaluation = {
        "paired": {
            "refusal_rate": {"value": 0.4, "ci_low": 0.3, "ci_high": 0.5},
            "over_refusal_rate_look_alike": metric,
        }
    }
    look_alike, benign = forecast_rows(found, evaluation)
    assert look_alike.kind == "Look-alikes" and look_alike.selected == "0.50 (0.40 to 0.60)"
    assert look_alike.random == "1.20 (1.10 to 1.30)"
    assert look_alike.ratio == "0.25" and "10" in look_alike.outcome
    assert benign.outcome == benign.ratio == MISSING and benign.selected == "0.25"
    assert forecast_rows(found, None)[0].outcome == MISSING
    assert forecast_rows(None, evaluation) == []


def test_a_forecast_reads_back_and_says_what_it_is() -> None:
    from dataclasses import asdict

    found = Forecast(5, 8, {"look_alike": kind(0.5, 0.4, 0.6), "benign": kind(0.25)})
    assert Forecast.from_json(asdict(found)) == found
    first, second = found.sentences()
    assert "5 selected experts on look-alikes 0.50 [0.40, 0.60]" in first
    assert "20 random sets 1.20 (1.10 to 1.30), 0 of them lower" in first
    assert "benign prompts 0.25;" in second
    undefined = KindForecast(8, UNKNOWN, UNKNOWN, UNKNOWN, None, None, 0, 0)
    assert "undefined" in Forecast(5, 8, {"safe": undefined}).sentences()[0]


FIGURES = ControlFigures(
    "test",
    5,
    (ControlSet("control-lowest", 5, 0), ControlSet("control-random-00", 5, 2)),
    {
        "refusal_rate": ControlMeasure(
            40, 0.9, (0.8,), 0.5, Difference(0.1, 0.0, 0.2), Difference(0.4, 0.3, 0.5)
        ),
        "kl_per_token": ControlMeasure(
            30, 0.01, (0.02,), None, Difference(-0.01, None, None), Difference(None, None, None)
        ),
    },
)


def test_controls_are_shown_measure_by_measure() -> None:
    rate, kl = control_rows(FIGURES)
    assert rate.num_prompts == "40" and "90" in rate.selected and "80" in rate.random
    assert "40" in rate.beyond_lowest and "30" in rate.beyond_lowest
    assert kl.lowest == kl.beyond_lowest == MISSING and "0.01" in kl.selected
    part = controls_part(FIGURES)
    assert (
        part["control_sets"].startswith("1 random set") and "and the lowest" in part["control_sets"]
    )
    assert part["few_controls"] == "1" and part["num_control_experts"] == 5
    assert controls_part(None)["controls"] == []
    assert ControlFigures.from_json(FIGURES.as_json()) == FIGURES


def test_ranks_are_numbers_or_missing() -> None:
    found = rank_correlations(scores(risk_diff=[1.0, 2, 3, 4], gate_mass=[0.0] * 4))
    assert np.isnan(found.loc["risk_diff", "gate_mass"])
    assert score_rows(found)[0].correlations[1] == MISSING
    assert correlation_map(found).data[0]["z"][0][1] is None
