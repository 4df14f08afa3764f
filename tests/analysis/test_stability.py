"""Stability selection: halves, frequencies and the error bound."""

import numpy as np
import pytest
from benchmarks.validity.simulate import RoutingModel, SimulatedRun, simulate_run

from steermoe.analysis.clusters import find_clusters
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.selection import SelectionSettings, identify_unsafe_experts, resolve_rule
from steermoe.analysis.stability import Stability, _half_samples, _selected, selection_stability
from steermoe.analysis.uncertainty import estimate_risk_diff
from steermoe.errors import RoutingError, SelectionError

TINY = RoutingModel(num_layers=2, num_experts=16, top_k=4)


def stability_of(run: SimulatedRun, **options: object) -> Stability:
    return selection_stability(run.counts, run.is_unsafe, run.goals, run.batch_idx, **options)


@pytest.mark.parametrize("design", ["paired", "unpaired", "clustered"])
def test_halves_complement_each_other_and_keep_goals_whole(design: str) -> None:
    run = simulate_run(TINY, 20, 0, design=design)
    clusters = find_clusters(run.goals)
    contrast = build_contrast(
        run.counts, run.is_unsafe, np.zeros(40), clusters, "pooled", "generation"
    )
    halves = _half_samples(contrast, 10, np.random.default_rng(0))
    first, second = halves[:10], halves[10:]
    assert set(np.unique(halves)) == {0.0, 1.0}
    assert (first * second == 0).all()
    for cluster in range(contrast.num_clusters):
        inside = halves[:, contrast.cluster == cluster]
        assert (inside == inside[:, :1]).all()
    if design != "clustered":
        assert (first + second == 1).all()
        assert (first[:, contrast.is_unsafe].sum(axis=1) == 10).all()


def test_planted_experts_are_stable_and_others_are_not() -> None:
    planted = [(0, 3), (1, 15)]
    run = simulate_run(TINY, 100, 0, planted=planted, risk_diff=0.25)
    table = stability_of(run, top_k=4).table.set_index(["layer", "expert"])["stability"]
    assert all(table[expert] == 1.0 for expert in planted)
    assert table.drop(planted).max() < 0.75
    assert table.between(0, 1).all()


def test_experts_below_the_first_layer_are_never_selected_in_a_half() -> None:
    planted = [(0, 3), (1, 15)]
    run = simulate_run(TINY, 100, 0, planted=planted, risk_diff=0.25)
    whole, upper = (
        stability_of(run, threshold=-1.0, top_k=4, layers=layers) for layers in (None, [1])
    )
    table = upper.table.set_index(["layer", "expert"])["stability"]
    assert (table.loc[0] == 0).all() and table[(1, 15)] == 1.0
    # The places that the lower layer's experts held are taken by the next of the upper one.
    assert upper.mean_selected == whole.mean_selected == pytest.approx(4)
    assert (whole.num_candidates, upper.num_candidates) == (32, 16)
    assert upper.error_bound(0.75) == pytest.approx(upper.mean_selected**2 / (0.5 * 16))


def test_the_selection_in_a_half_is_the_threshold_rules() -> None:
    run = simulate_run(TINY, 10, 3)
    table = estimate_risk_diff(run.counts, run.is_unsafe, np.zeros(20), estimator="pooled")
    differences = table["risk_diff"].to_numpy()[None, :]
    chosen = table[_selected(differences, 0.02, 5)[0]]
    expected = identify_unsafe_experts(table, 0.02, 5)
    assert set(zip(chosen["layer"], chosen["expert"], strict=True)) == set(expected)
    ties = np.array([[0.1, 0.3, 0.1, 0.1]])
    assert _selected(ties, 0.1, 2).tolist() == [[True, True, False, False]]


def test_mean_selected_is_the_sum_of_the_frequencies_and_bounds_the_error() -> None:
    result = stability_of(simulate_run(TINY, 40, 1), threshold=0.0, top_k=4)
    assert result.num_subsamples == 200
    assert result.mean_selected == pytest.approx(result.table["stability"].sum()) == 4
    # 4^2 / ((2 * 0.75 - 1) * 32) = 1
    assert result.error_bound(0.75) == pytest.approx(1.0)
    for wrong in (0.5, 1.1):
        with pytest.raises(SelectionError, match=r"the error bound holds between 0\.5 and 1"):
            result.error_bound(wrong)


def test_without_a_true_difference_few_experts_are_stable() -> None:
    """The bound on stable experts that are selected no better than by chance holds on average."""
    stable, bound = [], []
    for seed in range(20):
        result = stability_of(
            simulate_run(TINY, 40, seed), threshold=0.0, top_k=4, num_subsamples=50
        )
        stable.append((result.table["stability"] >= 0.9).sum())
        bound.append(result.error_bound(0.9))
    assert np.mean(stable) <= np.mean(bound)


def test_same_seed_same_frequencies() -> None:
    run = simulate_run(TINY, 20, 0)
    assert stability_of(run, seed=5).table.equals(stability_of(run, seed=5).table)
    assert not stability_of(run, seed=5).table.equals(stability_of(run, seed=6).table)


def test_the_rule_reads_the_column() -> None:
    run = simulate_run(TINY, 100, 0, planted=[(0, 3)], risk_diff=0.25)
    table = estimate_risk_diff(run.counts, run.is_unsafe, run.batch_idx)
    table["stability"] = stability_of(run).table["stability"]
    assert resolve_rule("stability", SelectionSettings(threshold=0.15))(table) == [(0, 3)]


def test_too_few_goals_are_refused() -> None:
    counts = RoutingCounts(np.ones((2, 2, 1, 1), dtype=int), np.ones((2, 2), dtype=int), (0,))
    with pytest.raises(RoutingError, match="too few goals to halve"):
        selection_stability(counts, [0, 1], ["a", "a"], [0, 0])
    with pytest.raises(RoutingError, match="num_subsamples is 1"):
        selection_stability(counts, [0, 1], ["a", "a"], [0, 0], num_subsamples=1)
