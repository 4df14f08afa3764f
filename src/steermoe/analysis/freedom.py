"""Degrees of freedom of an interval where a few clusters carry most of the weight.

Satterthwaite's (`variance.degrees_of_freedom`) match the spread of the estimated variance, as if it were independent
of the difference. With a cluster of a fifth of the responses it is not: where that cluster is far off, so is the
difference, and its square is most of the estimated variance. A difference over its own error then stays small, and
Student's quantile is too wide. So the quantile is read off a simulation of just that: normal clusters of these weights
and variances, each about the mean of its kind.

Shape legend: C clusters, R draws.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

from steermoe.analysis.estimators import Contrast
from steermoe.analysis.variance import (
    Grouping,
    cluster_groups,
    degrees_of_freedom,
    small_sample_factor,
)
from steermoe.records import FloatArray

FEW = 30.0
"""Satterthwaite's degrees of freedom from which they are kept: the quantile is then within 4 % of the normal one."""

LEVEL = 0.95
"""Level of the interval whose quantile is matched; at higher ones Student's is the wider."""

NUM_DRAWS = 10_000
"""Draws: the quantile's Monte Carlo error is below one per cent."""

BLOCK_ELEMENTS = 1 << 22
"""Clusters times draws that are simulated at once: 32 MiB, however many clusters there are."""

SEED = 0
"""Seeds the draws: the same clusters have the same degrees of freedom."""


def effective_freedom(contrast: Contrast, variances: FloatArray) -> float:
    """Degrees of freedom whose Student's quantile is that of the difference over its own standard error.

    Args:
        contrast: The responses.
        variances: `(C,)` relative variances of the clusters' parts of the risk difference.

    Returns:
        At least Satterthwaite's, at most as many as there are clusters less their kinds. Where nothing varies, those
        of clusters that vary alike.
    """
    if not variances.any():
        variances = np.ones_like(variances)
    least = float(degrees_of_freedom(contrast, variances[:, None])[0])
    most = float(contrast.num_clusters - len(cluster_groups(contrast)))
    if least >= min(FEW, most):
        return least
    quantile = float(np.quantile(np.abs(drawn_ratios(contrast, variances)), LEVEL))
    tail = (1 + LEVEL) / 2
    if quantile <= stats.t.ppf(tail, most):
        return most
    if quantile >= stats.t.ppf(tail, least):
        return least
    return float(
        optimize.brentq(lambda freedom: stats.t.ppf(tail, freedom) - quantile, least, most)
    )


def drawn_ratios(
    contrast: Contrast, variances: FloatArray, num_draws: int = NUM_DRAWS
) -> FloatArray:
    """Normal differences over their own standard errors, `(R,)`.

    Args:
        contrast: The responses.
        variances: `(C,)`.
        num_draws: R.
    """
    weight = Grouping.of(contrast.cluster).sums(np.abs(contrast.coefficients()[0]) * contrast.size)
    generator = np.random.default_rng(SEED)
    difference, square = np.zeros(num_draws), np.zeros(num_draws)
    at_once = max(1, BLOCK_ELEMENTS // contrast.num_clusters)
    for start in range(0, num_draws, at_once):
        block = slice(start, min(start + at_once, num_draws))
        for group in cluster_groups(contrast):
            shape = (block.stop - block.start, len(group))
            drawn = generator.normal(size=shape) * np.sqrt(variances[group])
            total = drawn.sum(axis=1)
            difference[block] += total
            drawn -= total[:, None] * (weight[group] / weight[group].sum())
            square[block] += small_sample_factor(len(group)) * np.sum(drawn**2, axis=1)
    return np.asarray(difference / np.sqrt(square))
