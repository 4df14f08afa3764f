"""Scores are contrasted and resampled as risk differences are, whatever their unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.rank_correlation import rank_correlations
from steermoe.analysis.scores import (
    SCORE_COLUMNS,
    Compared,
    Resampled,
    plain_values,
    score_rows,
    values_per_batch,
)
from steermoe.analysis.selection import SelectionSettings, identify_unsafe_experts, resolve_rule
from steermoe.analysis.stability import selection_stability
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.records import ResponseSums

DRAWS = Resampled(50, 50, 20, 3, 0.0, 4, "model", (0, 1))


def sums_of(values: list[list[float]], tokens: list[int]) -> ResponseSums:
    """One layer of as many experts as a response has values, in the generation segment."""
    total = np.zeros((len(values), 2, 1, len(values[0])))
    total[:, 1, 0] = values
    return ResponseSums(total, np.array([[1, n] for n in tokens]), (0,))


def compared(unsafe: list[int], batch: list[int], estimator: str = "mean_over_batches") -> Compared:
    return Compared(
        np.array(unsafe, bool),
        np.array(batch),
        np.arange(len(unsafe)),
        "generation",
        estimator,  # type: ignore[arg-type]
    )


def random_counts(seed: int = 0, number: int = 16) -> tuple[RoutingCounts, Compared]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(4, 9, number)
    active = generator.binomial(tokens[:, None, None, None], 0.4, (number, 2, 2, 5))
    counts = RoutingCounts(active.astype(np.int32), np.stack([tokens, tokens], axis=1), (0, 1))
    return counts, compared([0, 1] * (number // 2), [i // 4 for i in range(number)])


def test_values_worked_by_hand() -> None:
    sums = sums_of([[2.0, -1.0], [3.0, 0.0], [1.0, 4.0], [0.0, 0.0]], [2, 3, 1, 4])
    # Batch 0: 3/3 - 2/2 and 0/3 - -1/2; batch 1: 0/4 - 1/1 and 0/4 - 4/1.
    by_batch = compared([0, 1, 0, 1], [0, 0, 1, 1])
    assert plain_values(sums, by_batch)["value"].tolist() == pytest.approx([-0.5, -1.75])
    pooled = plain_values(sums, compared([0, 1, 0, 1], [0, 0, 1, 1], "pooled"))["value"]
    assert pooled.tolist() == pytest.approx([3 / 7 - 3 / 3, 0 / 7 - 3 / 3], rel=1e-5)
    per_batch = values_per_batch(sums, by_batch)
    assert per_batch["score"].tolist() == pytest.approx([0.0, 0.5, -1.0, -4.0])
    assert per_batch["batch_idx"].tolist() == [0, 0, 1, 1]


def test_a_batch_of_one_class_has_no_value() -> None:
    sums = sums_of([[2.0], [3.0], [1.0]], [1, 1, 1])
    found = values_per_batch(sums, compared([0, 1, 1], [0, 0, 1]))
    assert found["batch_idx"].tolist() == [0]
    none = values_per_batch(sums, compared([0, 0, 1], [0, 0, -1], "pooled"))
    assert none.empty and list(none.columns) == ["batch_idx", "layer", "expert", "score"]


def test_of_counts_all_that_needs_no_variance_of_tokens_is_what_risk_differences_have() -> None:
    counts, how = random_counts()
    sums = ResponseSums(counts.active, counts.num_tokens, counts.layer_indices)
    rows = score_rows("mine", sums, how, DRAWS)
    assert list(rows.columns) == SCORE_COLUMNS and set(rows["score"]) == {"mine"}
    table = estimate_uncertainty(
        counts,
        how.is_unsafe,
        (),
        how.batch_idx,
        num_permutations=50,
        num_bootstrap=50,
        seed=3,
        clusters=how.clusters,
    )
    stability = selection_stability(
        counts,
        how.is_unsafe,
        (),
        how.batch_idx,
        threshold=0.0,
        top_k=4,
        num_subsamples=20,
        seed=3,
        clusters=how.clusters,
    )
    np.testing.assert_allclose(rows["value"], table["estimate"], rtol=1e-5)
    np.testing.assert_allclose(rows["se"], table["risk_diff_se"], rtol=1e-5)
    assert rows["stability"].tolist() == stability.table["stability"].tolist()
    assert rows["q_value"].between(0, 1).all() and rows["held_out"].isna().all()


@pytest.mark.parametrize("unit", [1e-9, 1e3])
def test_a_unit_changes_values_and_no_p_values(unit: float) -> None:
    counts, how = random_counts(1)
    whole = counts.active.astype(float)
    one = score_rows("a", ResponseSums(whole, counts.num_tokens, (0, 1)), how, DRAWS)
    other = score_rows("a", ResponseSums(whole * unit, counts.num_tokens, (0, 1)), how, DRAWS)
    for name in ("value", "se", "ci_low", "ci_high"):
        np.testing.assert_allclose(other[name], one[name] * unit, rtol=2e-5)
    for name in ("p_value", "q_value", "stability"):
        assert other[name].tolist() == one[name].tolist()


def test_a_true_difference_is_found_and_none_is_not() -> None:
    generator = np.random.default_rng(5)
    number = 80
    unsafe = [0, 1] * (number // 2)
    values = generator.normal(0, 1, (number, 12))
    values[:, 3] += 2.0 * np.array(unsafe)
    sums = sums_of(values.tolist(), [1] * number)
    how = compared(unsafe, [0] * number, "mean_over_responses")
    draws = Resampled(400, 200, 40, 0, 0.0, 1, "model", (0,))
    rows = score_rows("a", sums, how, draws).set_index("expert")
    assert rows.loc[3, "q_value"] < 0.01 and rows.loc[3, "stability"] == 1
    assert rows.loc[3, "ci_low"] > 1 and (rows.drop(3)["q_value"] > 0.05).all()


def test_what_is_not_asked_for_is_missing_and_zeros_are_no_error() -> None:
    sums = sums_of([[0.0], [0.0], [0.0], [0.0]], [1, 1, 1, 1])
    how = compared([0, 1, 0, 1], [0, 0, 1, 1])
    rows = score_rows("a", sums, how, Resampled(0, 0, 0, 0, 0.0, 1, "model", (0,)))
    assert rows["value"].tolist() == [0.0] and rows["se"].isna().all()
    assert rows["stability"].isna().all()
    tested = score_rows("a", sums, how, DRAWS)
    assert tested["p_value"].tolist() == [1.0]


def scores_table(columns: dict[str, list[float]]) -> pd.DataFrame:
    return pd.concat(
        pd.DataFrame({"layer": 0, "expert": range(len(v)), "score": name, "value": v})
        for name, v in columns.items()
    )


def test_rank_correlations_worked_by_hand() -> None:
    table = scores_table({"a": [1, 2, 3, 4], "b": [4, 3, 2, 1], "c": [1, 2, 4, 3], "d": [5] * 4})
    found = rank_correlations(table)
    assert list(found.columns) == ["a", "b", "c", "d"]
    assert found.loc["a", "b"] == pytest.approx(-1) and found.loc["a", "a"] == pytest.approx(1)
    assert found.loc["a", "c"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # two neighbours exchanged
    assert found["d"].isna().all()


TABLE = pd.DataFrame(
    {
        "layer": [0, 0, 0, 1, 1, 1],
        "expert": [0, 1, 2, 0, 1, 2],
        "risk_diff": [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
        "score": [6.0, 8.0, 7.0, 1.0, 3.0, 2.0],
    }
)


def test_a_score_in_the_table_is_what_is_ranked_by() -> None:
    assert identify_unsafe_experts(TABLE, 2.5, 3) == [(0, 1), (0, 2), (0, 0)]
    without = TABLE.drop(columns="score")
    assert identify_unsafe_experts(without, 0.05, 2) == [(0, 0), (0, 1)]
    lowest = resolve_rule("lowest", SelectionSettings(0.0, 2))
    assert lowest(TABLE) == [(1, 0), (1, 2)]


def test_within_layers_the_first_of_each_come_first() -> None:
    assert identify_unsafe_experts(TABLE, 0, 4, rank_within="layer") == [
        (0, 1),
        (1, 1),
        (0, 2),
        (1, 2),
    ]
    assert identify_unsafe_experts(TABLE, 2.5, 4, rank_within="layer") == [
        (0, 1),
        (1, 1),
        (0, 2),
        (0, 0),
    ]


@pytest.mark.parametrize("rank_within", ["model", "layer"])
def test_halves_select_as_the_rule_does(rank_within: str) -> None:
    counts, how = random_counts(2, 24)
    sums = ResponseSums(counts.active, counts.num_tokens, counts.layer_indices)
    rng_independent = selection_stability(
        sums,
        how.is_unsafe,
        (),
        how.batch_idx,
        threshold=-1.0,
        top_k=3,
        num_subsamples=10,
        clusters=how.clusters,
        rank_within=rank_within,  # type: ignore[arg-type]
    ).table
    # However the halves fall, each selects three; within two layers, at least one of either.
    assert rng_independent["stability"].sum() == pytest.approx(3)
    if rank_within == "layer":
        of_layer = rng_independent.groupby("layer")["stability"].sum()
        assert of_layer.min() >= 1 and of_layer.max() <= 2
