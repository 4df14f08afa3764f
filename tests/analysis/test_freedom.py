"""Quantiles of intervals where one cluster is much of the weight."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import Contrast, build_contrast
from steermoe.analysis.freedom import effective_freedom
from steermoe.analysis.variance import degrees_of_freedom


def pairs(sizes: list[int]) -> Contrast:
    """Goals of as many pairs of replies of ten tokens each, pooled."""
    goals = np.tile(np.repeat(np.arange(len(sizes)), sizes), 2)
    unsafe = np.repeat([False, True], sum(sizes))
    active = np.random.default_rng(0).integers(0, 10, len(goals))
    counts = RoutingCounts(
        active.reshape(-1, 1, 1, 1).repeat(2, axis=1), np.full((len(goals), 2), 10), (0,)
    )
    return build_contrast(counts, unsafe, np.zeros(len(goals)), goals, "pooled", "generation")


def ratios(weight: np.ndarray, variance: np.ndarray, num_draws: int) -> np.ndarray:
    """A weighted mean of normals over its cluster-robust error, one draw at a time."""
    generator, found = np.random.default_rng(7), []
    for _ in range(num_draws):
        part = generator.normal(0, np.sqrt(variance))
        residual = part - weight * part.sum()
        square = len(part) / (len(part) - 1) * np.sum(residual**2)
        found.append(abs(part.sum()) / np.sqrt(square))
    return np.array(found)


@pytest.mark.parametrize("number", [4, 12, 60])
def test_alike_clusters_have_as_many_as_there_are_less_one(number: int) -> None:
    assert effective_freedom(pairs([1] * number), np.ones(number)) == pytest.approx(number - 1)


@pytest.mark.parametrize("large", [4, 12, 30])
def test_the_quantile_is_that_of_a_difference_over_its_own_error(large: int) -> None:
    sizes = [large] + [1] * 40
    weight = np.array(sizes) / sum(sizes)
    variance = weight**2  # what clusters vary by all at once
    contrast = pairs(sizes)
    freedom = effective_freedom(contrast, variance)
    least = float(degrees_of_freedom(contrast, variance[:, None])[0])
    assert least <= freedom <= 40
    drawn = ratios(weight, variance, 6000)
    held = np.mean(drawn <= stats.t.ppf(0.975, freedom))
    if freedom < 40:
        assert held == pytest.approx(0.95, abs=3.5 * np.sqrt(0.05 * 0.95 / 6000) + 0.003)
    if large >= 12:
        # Satterthwaite's are too few here: as if error and difference were independent.
        assert freedom > 1.5 * least
        assert np.mean(drawn <= stats.t.ppf(0.975, least)) > held + 0.005


def test_the_same_clusters_have_the_same_degrees_of_freedom() -> None:
    contrast, variance = pairs([9] + [1] * 20), np.array([81.0] + [1.0] * 20)
    found = [effective_freedom(contrast, scale * variance) for scale in (1, 1, 5)]
    assert found[0] == found[1] == pytest.approx(found[2])


def test_where_nothing_varies_the_clusters_count_as_alike() -> None:
    # Every token goes to every expert: no cluster differs from another, and nothing is divided by its variance.
    assert effective_freedom(pairs([1] * 12), np.zeros(12)) == pytest.approx(11)
    uneven = pairs([1, 1, 1, 1, 20])
    assert effective_freedom(uneven, np.zeros(5)) == effective_freedom(uneven, np.ones(5))
