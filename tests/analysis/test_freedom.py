"""Quantiles of intervals where one cluster is much of the weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from steermoe.analysis.bootstrap import (
    bootstrap_weights,
    drawn_coefficients,
    errors_and_freedom,
    half_widths,
)
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import Contrast, build_contrast
from steermoe.analysis.freedom import effective_freedom
from steermoe.analysis.variance import degrees_of_freedom

NUM_DRAWS = 2000

BETWEEN = [0.0, 1.0, 0.0]
"""Responses vary by as much each, whatever their goal."""


def pairs(sizes: list[int]) -> Contrast:
    """Goals of as many pairs of replies of ten tokens each, pooled."""
    goals = np.tile(np.repeat(np.arange(len(sizes)), sizes), 2)
    unsafe = np.repeat([False, True], sum(sizes))
    active = np.random.default_rng(0).integers(0, 10, len(goals))
    counts = RoutingCounts(
        active.reshape(-1, 1, 1, 1).repeat(2, axis=1), np.full((len(goals), 2), 10), (0,)
    )
    return build_contrast(counts, unsafe, np.zeros(len(goals)), goals, "pooled", "generation")


def freedom_of(contrast: Contrast, components: list[float]) -> float:
    generator = np.random.default_rng(3)
    some = drawn_coefficients(contrast, bootstrap_weights(contrast, 300, generator))
    return effective_freedom(contrast, np.array(components), some)


def ratios(sizes: list[int], num_draws: int) -> np.ndarray:
    """A difference of normal pairs over its bootstrap error, one draw at a time."""
    generator, found = np.random.default_rng(7), []
    number, weight = len(sizes), np.array(sizes) / sum(sizes)
    for _ in range(num_draws):
        part = generator.normal(0, np.sqrt(sizes))
        times = generator.multinomial(number, np.full(number, 1 / number), 100)
        drawn = times @ part / (times @ weight)
        found.append(abs(part.sum()) / np.sqrt(number / (number - 1) * np.var(drawn, ddof=1)))
    return np.array(found)


@pytest.mark.parametrize("number", [4, 12, 60])
def test_alike_clusters_have_as_many_as_there_are_less_one(number: int) -> None:
    assert freedom_of(pairs([1] * number), BETWEEN) == pytest.approx(number - 1)


@pytest.mark.parametrize("large", [4, 12, 30])
def test_the_quantile_is_that_of_a_difference_over_its_own_error(large: int) -> None:
    sizes = [large] + [1] * 40
    contrast = pairs(sizes)
    freedom = freedom_of(contrast, BETWEEN)
    variances = np.array(sizes, dtype=float)[:, None]
    least = float(degrees_of_freedom(contrast, variances)[0])
    assert least <= freedom <= 40
    drawn = ratios(sizes, NUM_DRAWS)
    held = np.mean(drawn <= stats.t.ppf(0.975, freedom))
    if freedom < 40:
        # Two Monte Carlo errors: of this count, and of the quantile that the degrees of freedom come from.
        assert held == pytest.approx(0.95, abs=3.5 * np.sqrt(0.05 * 0.95 / NUM_DRAWS) + 0.003)
    if large >= 12:
        # Satterthwaite's are too few here: as if error and difference were independent.
        assert freedom > 1.5 * least
        assert np.mean(drawn <= stats.t.ppf(0.975, least)) > held + 0.005


def in_two_batches(seed: int) -> Contrast:
    """Twelve pairs, of which one has a reply in every second place, in batches; lengths differ."""
    generator = np.random.default_rng(seed)
    goals = np.concatenate([np.tile([0, 1], 4), np.arange(2, 10)])
    goals = np.tile(goals, 2)
    unsafe, batch = np.repeat([False, True], 16), np.tile(np.repeat([0, 1], 8), 2)
    tokens = generator.integers(5, 60, 32)
    active = generator.binomial(tokens, 0.3)
    counts = RoutingCounts(
        active.reshape(-1, 1, 1, 1).repeat(2, axis=1), tokens[:, None].repeat(2, axis=1), (0,)
    )
    return build_contrast(counts, unsafe, batch, goals, "mean_over_batches", "generation")


def test_intervals_of_normal_responses_in_batches_hold_the_truth() -> None:
    # The error that is used is corrected within batches, and so is the one whose quantile is taken.
    contrast = in_two_batches(0)
    freedom = freedom_of(contrast, BETWEEN)
    generator = np.random.default_rng(11)
    drawn = generator.normal(size=(len(contrast), 2000)) * contrast.size[:, None]
    own = replace(
        contrast, source=drawn, picked=np.arange(len(contrast)), scale=np.ones(len(contrast))
    )
    error, _ = errors_and_freedom(own, 400, generator)
    held = np.mean(np.abs(own.difference()) <= half_widths(error, freedom, 0.95))
    assert held == pytest.approx(0.95, abs=3.5 * np.sqrt(0.05 * 0.95 / 2000) + 0.003)


def test_the_same_clusters_have_the_same_degrees_of_freedom() -> None:
    contrast = pairs([9] + [1] * 20)
    found = [freedom_of(contrast, [0.0, scale, 0.0]) for scale in (1.0, 1.0, 5.0)]
    assert found[0] == found[1] == pytest.approx(found[2])


def test_where_nothing_varies_the_responses_count_as_alike() -> None:
    # Every token goes to every expert: no cluster differs from another, and nothing is divided by its variance.
    assert freedom_of(pairs([1] * 12), [0.0, 0.0, 0.0]) == pytest.approx(11)
    uneven = pairs([1, 1, 1, 1, 20])
    assert freedom_of(uneven, [0.0, 0.0, 0.0]) == freedom_of(uneven, BETWEEN)
