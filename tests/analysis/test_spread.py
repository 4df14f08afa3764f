"""The classes' spread: worked by hand, and warned of where p-values fail and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.validity.nested import plan_replies, simulate_nested
from benchmarks.validity.null_study import Design, null_designs, spread_designs

from steermoe.analysis.clusters import find_clusters
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import ESTIMATORS, build_contrast
from steermoe.analysis.spread import ClassSpread, class_spread


def counts_of(active: list[list[int]], tokens: int) -> RoutingCounts:
    """Counts `(N, experts)` of one layer; both segments alike."""
    shaped = np.array(active)[:, None, None, :].repeat(2, axis=1)
    return RoutingCounts(shaped, np.full((len(active), 2), tokens), (0,))


def test_ratio_and_skewness_worked_by_hand() -> None:
    # Ten tokens each. First expert: unsafe 0.1, 0.1, 0.4 (deviations -0.1, -0.1, 0.2), safe 0.2, 0.4 (-+0.1). Second
    # expert: unsafe 0.3, 0.4, 0.5 (-0.1, 0, 0.1), safe as before. The third never fires.
    active = [[1, 3, 0], [1, 4, 0], [4, 5, 0], [2, 2, 0], [4, 4, 0]]
    contrast = build_contrast(
        counts_of(active, 10), [1, 1, 1, 0, 0], [0] * 5, range(5), "pooled", "generation"
    )
    found = class_spread(contrast)
    # A goal adds its deviation over the number of goals; times that number squared it is a variance.
    ratios = [(0.06 / 3) / (0.02 / 2), (0.02 / 3) / (0.02 / 2)]
    assert found.variance_ratio == pytest.approx(np.mean(ratios))
    cubes = [(-0.001 * 2 + 0.008) / 27, 0.0]
    squares = [0.06 / 9 + 0.02 / 4, 0.02 / 9 + 0.02 / 4]
    skewness = [cube / square**1.5 for cube, square in zip(cubes, squares, strict=True)]
    assert found.skewness == pytest.approx(np.mean(skewness))
    assert (found.num_unsafe, found.num_safe) == (3, 2)


def test_a_pair_adds_its_difference() -> None:
    """Unsafe less safe 0.3, 0, 0: about the mean 0.2, -0.1, -0.1, thirds of which are added."""
    contrast = build_contrast(
        counts_of([[1], [2], [2], [4], [2], [2]], 10),
        [0, 0, 0, 1, 1, 1],
        [0] * 6,
        [0, 1, 2, 0, 1, 2],
        "pooled",
        "generation",
    )
    found = class_spread(contrast)
    assert found.skewness == pytest.approx((0.008 - 0.002) / 0.06**1.5)
    assert (found.num_unsafe, found.num_safe) == (3, 3)


def test_without_an_expert_that_fires_nothing_is_unlike() -> None:
    contrast = build_contrast(
        counts_of([[0], [0]], 10), [0, 1], [0, 0], [0, 1], "pooled", "generation"
    )
    assert class_spread(contrast) == ClassSpread(1.0, 0.0, 1, 1)


def test_the_warning_names_the_numbers_and_is_silent_below_them() -> None:
    assert ClassSpread(5.0, 0.07, 30, 120).warning() is None
    said = ClassSpread(3.5, 0.232, 30, 120).warning()
    assert said is not None
    assert all(part in said for part in ("3.5", "30 and 120", "+0.23", "more unsafe goals"))
    assert "q_value is cautious" in said, "unsafe skewed: experts are hidden"
    other = ClassSpread(0.2, -0.232, 120, 30).warning()
    assert other is not None and "more safe goals" in other
    assert "q_value allows for part of it" in other


def spreads(design: Design, estimator: str, num_runs: int) -> list[ClassSpread]:
    found = []
    for seed in range(num_runs):
        plan = plan_replies(
            design.num_per_class,
            seed,
            goals=design.goals,
            num_unsafe=design.num_unsafe,
            refusals=design.refusals,
        )
        run = simulate_nested(design.model, plan, seed)
        clusters = find_clusters(run.goals)
        found.append(
            class_spread(
                build_contrast(
                    run.counts, run.is_unsafe, run.batch_idx, clusters, estimator, "generation"
                )
            )
        )
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_it_warns_of_few_variable_and_skewed_goals_and_not_of_short_refusals(
    estimator: str,
) -> None:
    safe_skewed, _, _, unsafe_skewed, *_, symmetric = spread_designs()
    for design in (safe_skewed, unsafe_skewed):
        assert all(one.is_too_skewed for one in spreads(design, estimator, 4))
    for design in (symmetric, null_designs(200)[0]):
        assert not any(one.is_too_skewed for one in spreads(design, estimator, 4))
