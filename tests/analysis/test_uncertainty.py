"""Errors, intervals, p-values and q-values: slow references, hand-worked cases, invariants, odd input."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.validity.simulate import RoutingModel, SimulatedRun, simulate_run

from steermoe.analysis import bootstrap, permutation
from steermoe.analysis.bootstrap import errors_and_freedom
from steermoe.analysis.clusters import find_clusters
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import ESTIMATORS, Contrast, build_contrast
from steermoe.analysis.influences import cluster_robust_errors
from steermoe.analysis.permutation import NullModel, frequency_pools, p_values_of
from steermoe.analysis.uncertainty import (
    UNCERTAINTY_COLUMNS,
    estimate_risk_diff,
    estimate_uncertainty,
    round_significant,
)
from steermoe.errors import RoutingError

TINY = RoutingModel(num_layers=2, num_experts=16, top_k=4)


def contrast_of(run: SimulatedRun, estimator: str = "pooled") -> Contrast:
    return build_contrast(
        run.counts, run.is_unsafe, run.batch_idx, find_clusters(run.goals), estimator, "generation"
    )


def counts_of(active: list[int], tokens: list[int]) -> RoutingCounts:
    """Counts of one expert in one layer; both segments alike."""
    shaped = np.array(active).reshape(-1, 1, 1, 1).repeat(2, axis=1)
    return RoutingCounts(shaped, np.array(tokens).reshape(-1, 1).repeat(2, axis=1), (0,))


def uncertainty_of(run: SimulatedRun, **options: object) -> pd.DataFrame:
    settings: dict[str, object] = {"num_permutations": 200, "num_bootstrap": 200, **options}
    return estimate_uncertainty(run.counts, run.is_unsafe, run.goals, run.batch_idx, **settings)


# Standard errors and intervals


def test_error_and_interval_worked_by_hand() -> None:
    # Four pairs, ten tokens each. Unsafe less safe: 0.4, 0.2, 0.2, 0.0, so the mean is 0.2 and its standard
    # error sqrt(0.08 / 3 / 4) = 0.081650; Student's t with 3 degrees of freedom is 3.18245.
    counts = counts_of([1, 2, 3, 4, 5, 4, 5, 4], [10] * 8)
    table = estimate_uncertainty(
        counts, [False] * 4 + [True] * 4, list("abcdabcd"), np.zeros(8), num_bootstrap=40_000
    )
    row = table.iloc[0]
    assert row["risk_diff_se"] == pytest.approx(0.081650, rel=0.02)
    assert row["ci_low"] == pytest.approx(0.2 - 3.18245 * 0.081650, rel=0.15)
    assert row["ci_high"] == pytest.approx(0.2 + 3.18245 * 0.081650, rel=0.02)


@pytest.mark.parametrize("design", ["paired", "unpaired"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bootstrap_agrees_with_the_analytic_error(design: str, estimator: str) -> None:
    contrast = contrast_of(simulate_run(TINY, 160, 3, design=design), estimator)
    error, _ = errors_and_freedom(contrast, 2000, np.random.default_rng(0))
    ratio = error / cluster_robust_errors(contrast)
    assert 0.93 < np.median(ratio) < 1.07
    assert (np.abs(ratio - 1) < 0.3).all()


def test_more_goals_make_smaller_errors() -> None:
    small, large = (uncertainty_of(simulate_run(TINY, n, 0, design="unpaired")) for n in (40, 640))
    assert np.median(small["risk_diff_se"] / large["risk_diff_se"]) == pytest.approx(4, rel=0.25)


def test_responses_of_a_goal_count_as_less_than_as_many_goals() -> None:
    """Every response ten times over: as ten goals the error shrinks, as one goal it stays."""
    run = simulate_run(TINY, 16, 1, design="unpaired")
    tenfold = np.repeat(np.arange(32), 10)
    counts, unsafe = run.counts.select(tenfold), run.is_unsafe[tenfold]
    settings = {"estimator": "pooled", "num_permutations": 2, "num_bootstrap": 4000}
    batches = np.zeros(320)
    once = estimate_uncertainty(run.counts, run.is_unsafe, run.goals, np.zeros(32), **settings)
    as_one = estimate_uncertainty(
        counts, unsafe, [run.goals[i] for i in tenfold], batches, **settings
    )
    as_ten = estimate_uncertainty(counts, unsafe, [str(i) for i in range(320)], batches, **settings)
    assert as_one["risk_diff_se"].to_numpy() == pytest.approx(
        once["risk_diff_se"].to_numpy(), rel=0.1
    )
    assert np.median(as_ten["risk_diff_se"] / once["risk_diff_se"]) == pytest.approx(
        np.sqrt(1 / 10), rel=0.1
    )


# P-values


def all_flips(contrast: Contrast) -> np.ndarray:
    """Every sign pattern's studentised statistic `(2^C, experts)`, pairs of equal size, in plain loops."""
    num_pairs, num_experts = contrast.num_clusters, contrast.num_experts
    half = contrast.size[contrast.is_unsafe].sum()
    assert half == contrast.size[~contrast.is_unsafe].sum()
    statistics = []
    for expert in range(num_experts):
        score = [0.0] * num_pairs
        for row in range(len(contrast)):
            sign = 1 if contrast.is_unsafe[row] else -1
            score[contrast.cluster[row]] += (
                sign * contrast.source[contrast.picked[row], expert] / half
            )
        spread = sum(value**2 for value in score) ** 0.5
        statistics.append(
            [
                sum(s * v for s, v in zip(signs, score, strict=True)) / spread if spread else 0.0
                for signs in itertools.product((1, -1), repeat=num_pairs)
            ]
        )
    return np.array(statistics).T


def test_p_values_agree_with_all_sign_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight pairs of equally long replies have 256 sign patterns; the null is pooled over all experts."""
    zeros = np.zeros((3, 1))  # The shared variance is switched off: the reference has none.
    monkeypatch.setattr(permutation, "variance_components", lambda *_: zeros)
    monkeypatch.setattr(permutation, "lost_to_rate", lambda *_: 1.0)
    model = RoutingModel(num_layers=2, num_experts=16, top_k=4, token_spread=0.0)
    contrast = contrast_of(simulate_run(model, 8, 4), "pooled")
    every = np.abs(all_flips(contrast))  # (256, 32), the first row as observed
    exact = np.array([np.mean(every >= observed * (1 - 1e-9)) for observed in every[0]])
    ours = p_values_of(contrast, 4000, np.random.default_rng(0)).differs
    assert ours == pytest.approx(np.maximum(exact, 2 / 256), abs=0.012)


def test_permuted_labels_keep_every_strata_balance_and_whole_goals() -> None:
    run = simulate_run(TINY, 40, 0, design="clustered")
    null = NullModel(contrast_of(run, "mean_over_batches"))
    labels = null._shuffled(50, np.random.default_rng(0))[:, null.contrast.cluster]
    for stratum in np.unique(null.contrast.stratum):
        inside = null.contrast.stratum == stratum
        assert set(labels[:, inside].sum(axis=1)) == {null.contrast.is_unsafe[inside].sum()}
    for cluster in range(null.contrast.num_clusters):
        inside = labels[:, null.contrast.cluster == cluster]
        assert (inside == inside[:, :1]).all()
    assert len({row.tobytes() for row in labels}) > 10


def test_pairs_are_flipped_and_unpaired_goals_permuted() -> None:
    # Goals a and b are pairs; c, d, e have one response each, d and e safe; f has two unsafe responses.
    goals, unsafe = list("aabbcdeff"), [0, 1, 0, 1, 1, 0, 0, 1, 1]
    counts = counts_of([1, 2, 3, 4, 5, 4, 3, 2, 1], [9] * 9)
    clusters = find_clusters(goals)
    null = NullModel(build_contrast(counts, unsafe, np.zeros(9), clusters, "pooled", "generation"))
    assert null.block.tolist() == [-1, -1, 0, 0, 0, -1]
    # 2^3 flips of a, b and f, times 3 places for the unsafe label among c, d and e; two-sided.
    assert null.smallest_p_value() == pytest.approx(2 / (8 * 3))


def test_the_observed_labelling_is_one_of_the_null_models_own() -> None:
    """Drawn labels that happen to equal the true ones give the observed statistic."""
    run = simulate_run(TINY, 6, 0, design="unpaired")
    contrast = contrast_of(run)
    null = NullModel(contrast)
    values, rate = contrast.values(np.arange(32)), contrast.overall_rate()
    draws = null.draw(3000, np.random.default_rng(0))
    same = (np.sign(draws.coefficients) == np.sign(null.as_observed.coefficients)).all(axis=1)
    opposite = (np.sign(draws.coefficients) == -np.sign(null.as_observed.coefficients)).all(axis=1)
    assert same.any() and opposite.any()
    drawn, observed = (
        null.statistics(values, rate, draws),
        null.statistics(values, rate, null.as_observed),
    )
    assert drawn[same] == pytest.approx(np.tile(observed, (same.sum(), 1)))
    assert drawn[opposite] == pytest.approx(np.tile(-observed, (opposite.sum(), 1)))


def test_pools_hold_every_expert_once_and_are_ordered_by_frequency() -> None:
    rate = np.random.default_rng(0).random(1000)
    pools = frequency_pools(rate)
    assert len(pools) == 10
    assert sorted(np.concatenate(pools)) == list(range(1000))
    assert all(rate[a].max() <= rate[b].min() for a, b in itertools.pairwise(pools))
    assert len(frequency_pools(rate[:40])) == 1


def test_q_values_are_benjamini_and_hochbergs_over_all_layers() -> None:
    table = uncertainty_of(simulate_run(TINY, 30, 5, planted=[(1, 3)], risk_diff=0.2))
    p = table["p_above"].to_numpy()
    expected = [min(min(1.0, q * len(p) / (p <= q).sum()) for q in p[p >= value]) for value in p]
    assert table["q_value"].to_numpy() == pytest.approx(expected, rel=1e-5)


def test_experts_that_cannot_be_selected_take_no_part_in_the_q_values() -> None:
    run = simulate_run(TINY, 30, 5, planted=[(1, 3)], risk_diff=0.2)
    table = uncertainty_of(run, layers=[1])
    for layer in (0, 1):
        p = table["p_above"][table["layer"] == layer].to_numpy()
        expected = [min(min(1.0, q * 16 / (p <= q).sum()) for q in p[p >= value]) for value in p]
        q_value = table["q_value"][table["layer"] == layer]
        assert q_value.to_numpy() == pytest.approx(expected, rel=1e-5)
    over_all = uncertainty_of(run)
    pd.testing.assert_series_equal(over_all["p_value"], table["p_value"])
    assert (over_all["q_value"] != table["q_value"]).any()


def test_an_expert_silent_in_short_replies_is_not_found() -> None:
    """480 safe tokens without a rare expert say little, however well the class agrees with itself."""
    generator = np.random.default_rng(0)
    tokens = np.array([12] * 40 + [60] * 40)
    active = generator.binomial(tokens[:, None], 0.005, (80, 64))
    active[:40, 0] = 0
    active[40:, 0] = generator.permutation([1] * 12 + [0] * 28)
    counts = RoutingCounts(
        active.reshape(80, 1, 1, 64).repeat(2, axis=1), tokens[:, None].repeat(2, axis=1), (0,)
    )
    goals = [str(i % 40) for i in range(80)]
    table = estimate_uncertainty(
        counts, np.arange(80) >= 40, goals, np.zeros(80), num_permutations=500, num_bootstrap=50
    )
    assert table["p_value"][0] > 0.01


# The table


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_planted_experts_are_found_and_little_else(estimator: str) -> None:
    planted = [(0, 3), (1, 15), (1, 0)]
    run = simulate_run(TINY, 100, 0, planted=planted, risk_diff=0.25)
    table = uncertainty_of(run, estimator=estimator, num_permutations=1000)
    found = table[(table["q_value"] <= 0.05) & (table["ci_low"] > 0)]
    assert set(planted) == set(zip(found["layer"], found["expert"], strict=True))
    assert set(table["estimator"]) == {estimator}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimate_beside_an_interval_is_the_estimators_own(estimator: str) -> None:
    run = simulate_run(RoutingModel(num_layers=2, num_experts=16, top_k=4, token_spread=0.5), 40, 2)
    table = uncertainty_of(run, estimator=estimator)
    expected = estimate_risk_diff(run.counts, run.is_unsafe, run.batch_idx, estimator=estimator)
    assert table["estimate"].to_numpy() == pytest.approx(expected["risk_diff"].to_numpy(), rel=1e-5)
    inside = table["ci_low"].gt(-1) & table["ci_high"].lt(1)
    middle = (table["ci_low"] + table["ci_high"]) / 2
    assert middle[inside].to_numpy() == pytest.approx(
        table["estimate"][inside].to_numpy(), abs=1e-5
    )


def test_same_seed_same_table_and_each_part_has_its_own_stream() -> None:
    run = simulate_run(TINY, 20, 0)
    first = uncertainty_of(run, seed=3)
    pd.testing.assert_frame_equal(first, uncertainty_of(run, seed=3), check_exact=True)
    assert not first.equals(uncertainty_of(run, seed=4))
    other = uncertainty_of(run, seed=3, num_bootstrap=100)
    assert first["p_value"].equals(other["p_value"])
    assert not first["risk_diff_se"].equals(other["risk_diff_se"])


def test_memory_blocks_do_not_change_paired_results(monkeypatch: pytest.MonkeyPatch) -> None:
    run = simulate_run(TINY, 20, 0)
    whole = uncertainty_of(run)
    monkeypatch.setattr(bootstrap, "BLOCK_ELEMENTS", 40 * 30)
    pd.testing.assert_frame_equal(whole, uncertainty_of(run), check_exact=True)


def test_exchanging_the_classes_mirrors_the_interval() -> None:
    run = simulate_run(TINY, 24, 7)
    there = uncertainty_of(run)
    back = estimate_uncertainty(
        run.counts,
        ~run.is_unsafe,
        run.goals,
        run.batch_idx,
        num_permutations=200,
        num_bootstrap=200,
    )
    assert back["ci_low"].to_numpy() == pytest.approx(-there["ci_high"].to_numpy(), abs=1e-6)
    assert back["p_value"].to_numpy() == pytest.approx(there["p_value"].to_numpy(), rel=1e-5)


def test_the_number_of_threads_leaves_no_trace() -> None:
    program = (
        "from benchmarks.validity.simulate import *; from steermoe.analysis.uncertainty import *;"
        "import pandas as pd; r = simulate_run(RoutingModel(num_layers=8), 120, 0, design='unpaired');"
        "t = estimate_uncertainty(r.counts, r.is_unsafe, r.goals, r.batch_idx,"
        "num_permutations=300, num_bootstrap=300); print(pd.util.hash_pandas_object(t).sum())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(printed) == 1


def test_rounding_keeps_significant_digits() -> None:
    values = np.array([0.0, 1.23456789, -0.000123456789, 1e-30, 0.9999999])
    rounded = round_significant(values)
    assert rounded[:3].tolist() == [0.0, 1.23457, -0.000123457]
    assert rounded[4] == 1.0
    assert np.isfinite(rounded).all()


# Odd cases


def odd_cases() -> dict[str, tuple[RoutingCounts, list[int], list[str]]]:
    never = np.zeros((8, 2, 1, 3), dtype=int)
    never[:, :, 0, 1] = np.array([1, 2, 3, 4, 4, 3, 2, 2])[:, None]
    never[:, :, 0, 2] = 5  # Always active.
    all_tokens = np.full((8, 2), 5)
    empty_tokens = all_tokens.copy()
    empty_tokens[[0, 5]] = 0
    some_empty = never.copy()
    some_empty[[0, 5]] = 0
    half = [0] * 4 + [1] * 4
    return {
        "one response a class": (counts_of([1, 3], [5, 5]), [0, 1], ["a", "b"]),
        "one pair": (counts_of([1, 3], [5, 5]), [0, 1], ["a", "a"]),
        "never and always active": (RoutingCounts(never, all_tokens, (0,)), half, list("abcdabcd")),
        "replies without tokens": (
            RoutingCounts(some_empty, empty_tokens, (0,)),
            half,
            list("abcdefgh"),
        ),
        "identical classes": (
            counts_of([1, 2, 3, 1, 2, 3], [5] * 6),
            [0, 0, 0, 1, 1, 1],
            list("abcdef"),
        ),
        "one safe response": (counts_of([1, 2, 3, 4, 5], [9] * 5), [0, 1, 1, 1, 1], list("abcde")),
        "a goal with ten responses": (
            counts_of([1] * 10 + [2, 3, 1, 2, 3], [5] * 15),
            [1] * 10 + [1, 1, 0, 0, 0],
            ["a"] * 10 + list("bcdef"),
        ),
        "one token each": (counts_of([0, 1, 1, 1], [1] * 4), [0, 0, 1, 1], list("abcd")),
    }


@pytest.mark.parametrize("name", odd_cases())
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_odd_cases_give_finite_and_sensible_figures(name: str, estimator: str) -> None:
    counts, unsafe, goals = odd_cases()[name]
    table = estimate_uncertainty(
        counts,
        unsafe,
        goals,
        np.zeros(len(unsafe)),
        estimator=estimator,
        num_permutations=50,
        num_bootstrap=50,
    )
    assert list(table.columns) == ["layer", "expert", *UNCERTAINTY_COLUMNS]
    numbers = table.drop(columns="estimator").to_numpy(dtype=float)
    assert np.isfinite(numbers).all()
    assert table["p_value"].between(0, 1, inclusive="right").all()
    assert (table["q_value"] >= table["p_above"]).all()
    assert (table["p_above"] == table["p_higher"]).all()  # the threshold is 0
    assert table["local_fdr"].between(0, 1).all()
    assert (table["shrunken"].abs() <= table["estimate"].abs()).all()
    assert ((table["ci_low"] >= -1) & (table["ci_high"] <= 1)).all()
    assert (table["ci_low"] <= table["ci_high"]).all()


ONE_OF_EACH_KIND = {
    "one response a class": (counts_of([1, 3], [5, 5]), [0, 1], "ab"),
    "one pair": (counts_of([1, 3], [5, 5]), [0, 1], "aa"),
    "goals of unequal size": (counts_of([1, 1, 3, 3, 4], [5] * 5), [0, 0, 1, 1, 1], "aabbb"),
    "a pair and a goal of either class": (counts_of([1, 3, 4, 1], [5] * 4), [0, 1, 1, 0], "aabc"),
}


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_cluster_of_each_kind_tells_nothing(name: str, estimator: str) -> None:
    counts, unsafe, goals = ONE_OF_EACH_KIND[name]
    batches = np.zeros(len(unsafe))
    row = estimate_uncertainty(counts, unsafe, list(goals), batches, estimator=estimator).iloc[0]
    assert (row["risk_diff_se"], row["p_value"], row["q_value"]) == (1, 1, 1)
    assert (row["ci_low"], row["ci_high"]) == (-1, 1)


def test_a_single_safe_response_borrows_the_spread_of_the_others() -> None:
    counts, unsafe, goals = odd_cases()["one safe response"]
    alone = estimate_uncertainty(counts, unsafe, goals, np.zeros(5), estimator="pooled").iloc[0]
    others = np.array([2, 3, 4, 5]) / 9
    assert alone["risk_diff_se"] > 1.5 * others.std(ddof=1) / 2


def test_experts_that_never_or_always_fire_have_no_error_and_no_p_value() -> None:
    counts, unsafe, goals = odd_cases()["never and always active"]
    table = estimate_uncertainty(counts, unsafe, goals, np.zeros(8))
    for expert in (0, 2):
        row = table.iloc[expert]
        assert (row["risk_diff_se"], row["ci_low"], row["ci_high"], row["p_value"]) == (0, 0, 0, 1)
    assert table.iloc[1]["risk_diff_se"] > 0


def test_identical_classes_have_p_value_one() -> None:
    counts, unsafe, goals = odd_cases()["identical classes"]
    assert estimate_uncertainty(counts, unsafe, goals, np.zeros(6))["p_value"].tolist() == [1.0]


def test_input_that_does_not_fit_is_refused() -> None:
    run = simulate_run(TINY, 4, 0)
    with pytest.raises(RoutingError, match="7 goals were given for 8 responses"):
        estimate_uncertainty(run.counts, run.is_unsafe, run.goals[1:], run.batch_idx)
    with pytest.raises(RoutingError, match="num_bootstrap is 1; give at least 2"):
        uncertainty_of(run, num_bootstrap=1)
    with pytest.raises(RoutingError, match="num_permutations is 0"):
        uncertainty_of(run, num_permutations=0)
