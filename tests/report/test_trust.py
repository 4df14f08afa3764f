"""What the page says of how far a selection can be trusted."""

from __future__ import annotations

import pytest

from steermoe.report.numbers import MISSING, p_of_change
from steermoe.report.trust import CONFOUNDS, ablation_tables, possible_sets, trust_rows

IDENTIFIED = {
    "expected_false_share": 0.125,
    "expected_false_share_of_union": 0.5,
    "fixed_before": {"estimator": "mean_over_batches", "segment": "generation"},
    "sensitivity": {
        "risk_diff": {"mean": 0.0625, "share_positive": 1.0},
        "by_equal_length": {"mean": -0.031, "share_positive": 0.25},
    },
    "spread": {"variance_ratio": 3.5, "skewness": -0.21, "is_too_skewed": True},
}


def values(is_union: bool = False) -> dict[str, tuple[str, str]]:
    return {row.name: (row.value, row.meaning) for row in trust_rows(IDENTIFIED, {}, is_union)}


def test_the_expected_false_share_is_of_the_experts_that_are_trained() -> None:
    name = "Expected to be false among the selected"
    assert values()[name][0].startswith("12.5")
    assert values(is_union=True)[name][0].startswith("50")


def test_one_estimate_was_fixed_before_and_the_others_stand_beside_without_q_values() -> None:
    value, meaning = values()["Mean difference of the selected"]
    assert value == "+0.062" and "mean over batches" in meaning and "fixed before" in meaning
    value, meaning = values()["The same, equal length"]
    assert value.endswith("0.031") and "without q-values" in meaning


def test_the_spread_of_the_classes_is_named_with_both_of_its_numbers() -> None:
    value, meaning = values()["Variance of unsafe goals, over that of safe ones"]
    assert value == "3.50" and "0.210" in meaning and "more than p-values bear" in meaning


def test_what_an_older_run_does_not_tell_is_left_out() -> None:
    assert trust_rows({}, {}) == []
    assert trust_rows({"fixed_before": {}, "sensitivity": {}}, {}) == []


def test_every_flag_is_explained() -> None:
    rows = trust_rows({}, dict.fromkeys(CONFOUNDS, 1))
    assert len(rows) == 4 and all(row.meaning for row in rows)


def metric(value: float) -> dict[str, object]:
    return {"value": value, "ci_low": value, "ci_high": value, "n": 8, "num_unscored": 0}


@pytest.mark.parametrize(
    ("more", "rank", "sets"), [({"num_possible_sets": 70}, "0.048", "70"), ({}, MISSING, "")]
)
def test_a_rank_is_shown_only_where_it_is_known_among_how_many_sets(
    more: dict[str, float], rank: str, sets: str
) -> None:
    among = {"p_value": 1 / 21, "percentile": 1.0, "num_draws": 20}
    figures = {
        "intact": metric(0.5),
        "random": {"num_draws": 20, "mean_effect": 0.0, "least_effect": 0.0, "largest_effect": 0.1},
        "selected": metric(0.7) | {"effect": metric(0.2), "among_random": among},
    }
    found = {"random": more, "models": {"base": {"kl_per_token": figures}}}
    (table,) = ablation_tables(found)  # type: ignore[arg-type]
    assert table["rows"][0]["p_value"] == rank  # type: ignore[index]
    assert possible_sets(found) == sets  # type: ignore[arg-type]


def test_a_change_with_many_unscored_answers_has_a_second_p_value() -> None:
    assert p_of_change({"p_value": 0.0078}) == "0.008"
    assert p_of_change({"p_value": 0.0078, "worst_case_p_value": 1.0}) == "0.008, at worst 1.000"
    assert p_of_change({}) == MISSING
