"""One-sided p-values: greater than 0, and greater than a threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from benchmarks.validity.nested import Effects, NestedModel, plan_replies, simulate_nested

from steermoe.analysis import permutation
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import ESTIMATORS, Contrast, build_contrast
from steermoe.analysis.permutation import NullModel, p_values_of
from steermoe.analysis.uncertainty import estimate_uncertainty


def pairs(unsafe: list[list[int]], safe: list[list[int]], tokens: int) -> Contrast:
    """Pairs of equally long replies, pooled; one row a pair and one column an expert."""
    active = np.array(safe + unsafe)
    counts = RoutingCounts(
        active[:, None, None, :].repeat(2, axis=1), np.full((len(active), 2), tokens), (0,)
    )
    is_unsafe = np.repeat([False, True], len(unsafe))
    goals = np.tile(np.arange(len(unsafe)), 2)
    return build_contrast(counts, is_unsafe, np.zeros(len(active)), goals, "pooled", "generation")


@pytest.fixture
def own_spread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The references below studentise by the pairs' own spread alone."""
    zeros = np.zeros((3, 1))
    monkeypatch.setattr(permutation, "variance_components", lambda *_: zeros)
    monkeypatch.setattr(permutation, "lost_to_rate", lambda *_: 1.0)


@pytest.mark.usefixtures("own_spread_only")
@pytest.mark.parametrize("bound", [0.0, 0.1, 0.25])
def test_one_sided_p_values_agree_with_all_sign_flips(bound: float) -> None:
    # Ten tokens each; the pairs' differences are 0.5 0.4 0.3 0.6 0.1 0.2 0.5 0.3 and their mirror image.
    difference = [5, 4, 3, 6, 1, 2, 5, 3]
    contrast = pairs([[2 + d, 8 - d] for d in difference], [[2, 8]] * 8, 10)
    d = np.array(difference) / 10
    signs = np.array(list(itertools.product((1, -1), repeat=8)))

    def studentised(values: np.ndarray) -> np.ndarray:
        return signs @ values / np.sqrt(np.sum(values**2))

    drawn = np.concatenate([studentised(d), studentised(-d)])  # both experts make up the pool
    observed = {False: studentised(d)[0], True: studentised(d - bound)[0]}
    expected = {k: np.mean(drawn >= v * (1 - 1e-9)) for k, v in observed.items()}
    found = p_values_of(contrast, 20_000, np.random.default_rng(0), bound)
    assert found.is_higher[0] == pytest.approx(max(expected[False], 1 / 256), abs=0.005)
    assert found.is_above[0] == pytest.approx(max(expected[True], 1 / 256), abs=0.01)
    assert found.differs[0] == pytest.approx(2 * found.is_higher[0], rel=0.3)
    assert found.is_higher[1] > 0.99 and found.is_above[1] > 0.99
    if bound == 0:
        assert (found.is_above == found.is_higher).all()


@pytest.mark.parametrize("goals", ["paired", "unpaired"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_shift_of_the_unsafe_replies_is_taken_off_the_difference(
    goals: str, estimator: str
) -> None:
    """What is compared with a bound is the difference of replies from which the bound has been taken."""
    plan = plan_replies(32, 0, goals=goals)
    run = simulate_nested(NestedModel(num_layers=1, tail=0.2), plan, 0)
    contrast = build_contrast(
        run.counts, plan.is_unsafe, run.batch_idx, plan.goal_of, estimator, "generation"
    )
    null = NullModel(contrast)
    experts = np.arange(contrast.num_experts)
    rate, observed = contrast.overall_rate(), null.as_observed
    values = contrast.values(experts)
    at = [null.statistics(values, rate, observed, above)[0] for above in (0.0, 0.03)]
    difference = contrast.difference()
    assert np.sign(at[1]) == pytest.approx(np.sign(difference - 0.03))
    assert (at[1] < at[0])[difference < 0.05].all()


def test_two_sided_p_values_are_those_of_the_absolute_statistics() -> None:
    plan = plan_replies(24, 3)
    run = simulate_nested(NestedModel(num_layers=1), plan, 3)
    contrast = build_contrast(
        run.counts, plan.is_unsafe, run.batch_idx, plan.goal_of, "pooled", "generation"
    )
    found = p_values_of(contrast, 300, np.random.default_rng(5))
    null, generator = NullModel(contrast), np.random.default_rng(5)
    rate = contrast.overall_rate()
    relabelling = null.draw(300, generator)
    for pool in permutation.frequency_pools(rate):
        values = contrast.values(pool)
        drawn = np.abs(null.statistics(values, rate[pool], relabelling)).astype(np.float32)
        seen = np.abs(null.statistics(values, rate[pool], null.as_observed)[0])
        for place, expert in enumerate(pool):
            larger = np.sum(drawn >= seen[place] * (1 - permutation.TIE) - permutation.TIE)
            assert found.differs[expert] == (1 + larger) / (1 + drawn.size)


def test_experts_at_the_threshold_are_seldom_called_greater() -> None:
    """Eight experts truly at 0.06; the threshold is 0.06. At 0 all of them would be found."""
    planted = {(0, 8 * slot + 2): 0.06 for slot in range(8)}
    p_at, p_zero = [], []
    for seed in range(12):
        plan = plan_replies(160, seed)
        model = NestedModel(num_layers=1, tail=0.3, base_spread=3.0)
        run = simulate_nested(model, plan, seed, effects=Effects(planted, 0.5))
        table = estimate_uncertainty(
            run.counts, plan.is_unsafe, run.goals, run.batch_idx, num_permutations=300,
            num_bootstrap=2, threshold=0.06, seed=seed,
        )  # fmt: skip
        at = table["expert"].isin([expert for _, expert in planted]).to_numpy()
        p_at += table["p_above"].to_numpy()[at].tolist()
        p_zero += table["p_higher"].to_numpy()[at].tolist()
    assert np.mean(np.array(p_at) <= 0.05) < 0.12
    assert np.mean(np.array(p_zero) <= 0.05) > 0.9


def test_experts_that_are_lower_are_never_found_and_do_not_let_others_through() -> None:
    """Every layer sums to zero: raising a few lowers the many. One-sided, none of those is selected."""
    raised = {(0, 8 * slot): 0.25 for slot in range(8)}
    false = one_sided = 0
    for seed in range(6):
        plan = plan_replies(120, seed)
        model = NestedModel(num_layers=1, tail=0.3, base_spread=3.0)
        run = simulate_nested(model, plan, seed, effects=Effects(raised))
        table = estimate_uncertainty(
            run.counts, plan.is_unsafe, run.goals, run.batch_idx, num_permutations=300,
            num_bootstrap=2, seed=seed,
        )  # fmt: skip
        truth = run.truth.ravel()
        found = (table["q_value"] <= 0.05).to_numpy()
        false += int((found & (truth <= 0)).sum())
        one_sided += int((found & (truth > 0)).sum())
        assert (table["q_value"].to_numpy()[truth < 0] > 0.5).all()
    assert (false, one_sided) == (0, 6 * 8)
