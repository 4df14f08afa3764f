"""Held-out goals resampled: the overlap's p-value by exchanged labels, and the interval of the shrinkage."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from benchmarks.validity.nested import Effects, NestedModel, plan_replies, simulate_nested
from scipy import stats

from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import Contrast, build_contrast
from steermoe.analysis.replication import Relabelled, Resampling, relabel, replicate
from steermoe.analysis.risk import risk_tables
from steermoe.errors import RoutingError


def contrast_of(counts: RoutingCounts, is_unsafe: np.ndarray, goals: np.ndarray) -> Contrast:
    return build_contrast(counts, is_unsafe, np.zeros(len(goals)), goals, "pooled", "generation")


def pairs_of(differences: np.ndarray) -> tuple[RoutingCounts, np.ndarray, np.ndarray]:
    """Pairs of 100 tokens a reply: `(pairs, experts)` unsafe less safe activations."""
    safe = np.full(differences.shape, 50)
    active = np.concatenate([safe, safe + differences])
    counts = RoutingCounts(
        active[:, None, None, :].repeat(2, axis=1), np.full((len(active), 2), 100), (0,)
    )
    number = len(differences)
    return counts, np.repeat([False, True], number), np.tile(np.arange(number), 2)


def table_of(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"layer": 0, "expert": range(len(values)), "risk_diff_pooled": values})


def test_overlaps_are_those_of_all_sign_patterns() -> None:
    generator = np.random.default_rng(0)
    # Experts 0 and 1 vary most and together, so chance alone puts them at the top together.
    shared = generator.integers(-20, 21, 6)
    differences = generator.integers(-5, 6, (6, 8))
    differences[:, 0] += shared
    differences[:, 1] += shared
    counts, unsafe, goals = pairs_of(differences)
    chosen = np.isin(np.arange(8), [0, 1])
    signs = np.array(list(itertools.product((1, -1), repeat=6)))
    means = signs @ differences / 6 / 100
    every = [int(chosen[np.argsort(-row, kind="stable")[:2]].sum()) for row in means]
    assert np.mean(every) > 1.4 * 4 / 8  # far more than two random pairs share
    drawn = relabel(contrast_of(counts, unsafe, goals), chosen, 20_000, np.random.default_rng(1))
    assert np.unique(drawn.mean.round(9)) == pytest.approx(
        np.unique(means[:, :2].mean(axis=1).round(9))
    )
    for overlap in (0, 1, 2):
        assert np.mean(drawn.overlap == overlap) == pytest.approx(
            np.mean(np.array(every) == overlap), abs=0.015
        )


def test_of_equal_overlaps_the_larger_mean_is_the_larger() -> None:
    drawn = Relabelled(np.array([0, 1, 1, 1, 2]), np.array([0.9, 0.1, 0.2, 0.3, -0.5]))
    assert drawn.p_value(1, 0.2) == (1 + 3) / 6
    assert drawn.p_value(1, 0.31) == (1 + 1) / 6
    assert drawn.p_value(0, 1.0) == (1 + 4) / 6
    assert drawn.p_value(3, 0.0) == 1 / 6


def test_the_p_value_counts_what_is_at_least_as_large() -> None:
    differences = np.array([[30, 0, -5, 1], [28, 1, -3, 0], [33, -1, 2, 1], [29, 0, -1, -1]])
    counts, unsafe, goals = pairs_of(differences)
    held_out = risk_tables(counts, unsafe, np.full(8, -1)).aggregated
    train = table_of([0.2, 0.1, 0.0, 0.0])
    resampling = Resampling(contrast_of(counts, unsafe, goals), 999, 4000)
    found = replicate(train, held_out, [(0, 0)], resampling)
    # Only the labels as they are give expert 0 so large a mean; it is at the top in about half of the patterns.
    signs = np.array(list(itertools.product((1, -1), repeat=4)))
    sums = signs @ differences
    expected = np.mean(sums.argmax(axis=1) == 0)
    assert found.overlap == 1 and 0.3 < expected < 0.7
    assert found.overlap_p_value == pytest.approx(1 / 16, abs=0.03)
    assert found.overlap_when_relabelled == pytest.approx(expected, abs=0.05)
    # Shrinkage 0.3 / 0.2; the pairs' differences 0.30 0.28 0.33 0.29 have the error 0.0108; t of 3 degrees is 3.182.
    error = np.std([0.30, 0.28, 0.33, 0.29], ddof=1) / 2
    width = stats.t.ppf(0.975, 3) * error / 0.2
    assert found.shrinkage == pytest.approx(1.5)
    assert found.shrinkage_ci_low == pytest.approx(1.5 - width, abs=0.15 * width)
    assert found.shrinkage_ci_high == pytest.approx(1.5 + width, abs=0.15 * width)


def test_the_tables_order_does_not_matter_to_what_is_resampled() -> None:
    run = simulate_nested(NestedModel(num_layers=2), plan_replies(20, 0), 0)
    held_out = risk_tables(run.counts, run.is_unsafe, np.full(40, -1)).aggregated
    resampling = Resampling(contrast_of(run.counts, run.is_unsafe, run.plan.goal_of), 50, 50)
    chosen = [(0, 3), (1, 9), (1, 60)]
    found = [
        replicate(held_out.sample(frac=1, random_state=seed), held_out, chosen, resampling)
        for seed in (0, 1)
    ]
    assert found[0] == found[1]


def test_under_no_difference_small_p_values_are_rare_and_relabelled_overlaps_expected() -> None:
    """The largest of training are the busy ones; without a difference they are the largest again, by chance."""
    p_values, overlaps = [], []
    for seed in range(60):
        model = NestedModel(num_layers=1)
        whole = simulate_nested(model, plan_replies(48, seed), seed)
        first = np.isin(whole.plan.goal_of, np.arange(24))
        tables = []
        for rows in (first, ~first):
            counts = whole.counts.select(rows)
            batches = np.full(rows.sum(), -1)
            tables.append(risk_tables(counts, whole.is_unsafe[rows], batches).aggregated)
        chosen = [tuple(map(int, row)) for row in tables[0][["layer", "expert"]].to_numpy()[:8]]
        contrast = contrast_of(
            whole.counts.select(~first), whole.is_unsafe[~first], whole.plan.goal_of[~first]
        )
        found = replicate(tables[0], tables[1], chosen, Resampling(contrast, 199, 0, seed))
        p_values.append(found.overlap_p_value)
        overlaps.append(found.overlap - found.overlap_when_relabelled)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert abs(np.mean(overlaps)) < 3 * np.std(overlaps) / np.sqrt(60)


def test_planted_experts_are_found_again() -> None:
    planted = {(0, 8 * slot): 0.2 for slot in range(8)}
    plan = plan_replies(60, 0)
    run = simulate_nested(NestedModel(num_layers=1), plan, 0, effects=Effects(planted))
    held_out = risk_tables(run.counts, run.is_unsafe, np.full(120, -1)).aggregated
    resampling = Resampling(contrast_of(run.counts, run.is_unsafe, plan.goal_of), 499, 50)
    found = replicate(held_out, held_out, list(planted), resampling)
    # Planted experts rise and fall together under exchanged labels too, so the p-value is not as small as it looks.
    assert found.overlap == 8 > 2 * found.overlap_when_relabelled
    assert found.overlap_p_value <= 0.06
    assert found.shrinkage == 1.0 and found.shrinkage_ci_low > 0.8


def test_responses_of_another_model_are_refused() -> None:
    counts, unsafe, goals = pairs_of(np.ones((3, 2), dtype=int))
    resampling = Resampling(contrast_of(counts, unsafe, goals), 10, 10)
    table = table_of([0.3, 0.2, 0.1])
    with pytest.raises(RoutingError, match="2 experts and the tables 3"):
        replicate(table, table, [(0, 0)], resampling)
