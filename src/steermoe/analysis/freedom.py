"""Degrees of freedom of an interval where a few clusters carry most of the weight.

Satterthwaite's (`variance.degrees_of_freedom`) match the spread of the estimated variance, as if it were independent
of the difference. With a cluster of a fifth of the responses it is not: where that cluster is far off, so is the
difference, and its square is most of the estimated variance. A difference over its own error then stays small, and
Student's quantile is too wide. So the quantile is read off a simulation of just that: normal responses of these sizes
and variances, whose difference and error are computed as an expert's are.

Shape legend: N responses, C clusters, R draws.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

from steermoe.analysis.estimators import Contrast
from steermoe.analysis.grouping import cluster_groups, clusters_alone
from steermoe.analysis.influences import small_sample_ratio
from steermoe.analysis.variance import cluster_variances, degrees_of_freedom, within_units
from steermoe.records import FloatArray

FEW = 30.0
"""Satterthwaite's degrees of freedom from which they are kept: the quantile is then within 4 % of the normal one."""

LEVEL = 0.95
"""Level of the interval whose quantile is matched; at higher ones Student's is the wider."""

NUM_DRAWS = 10_000
"""Draws: the quantile's Monte Carlo error is below one per cent."""

BLOCK_ELEMENTS = 1 << 20
"""Responses times draws that are simulated at once: 8 MiB, however many responses there are."""

SEED = 0
"""Seeds the draws: the same clusters have the same degrees of freedom."""


def effective_freedom(contrast: Contrast, components: FloatArray, resampled: FloatArray) -> float:
    """Degrees of freedom whose Student's quantile is that of the difference over its own standard error.

    Args:
        contrast: The responses.
        components: `(3,)` relative sizes of the variance's components (`variance.variance_components`).
        resampled: `(B, N)` coefficients of some bootstrap draws (`bootstrap.drawn_coefficients`).

    Returns:
        At least Satterthwaite's, at most as many as there are clusters less their kinds. Where nothing varies, those
        of responses that vary alike.
    """
    if not components.any():
        components = np.array([0.0, 1.0, 0.0])
    variances = cluster_variances(contrast, components)
    least = float(degrees_of_freedom(contrast, variances[:, None])[0])
    most = float(contrast.num_clusters - len(cluster_groups(contrast)))
    if least >= min(FEW, most):
        return least
    quantile = float(np.quantile(np.abs(drawn_ratios(contrast, components, resampled)), LEVEL))
    tail = (1 + LEVEL) / 2
    if quantile <= stats.t.ppf(tail, most):
        return most
    if quantile >= stats.t.ppf(tail, least):
        return least
    return float(
        optimize.brentq(lambda freedom: stats.t.ppf(tail, freedom) - quantile, least, most)
    )


def drawn_ratios(
    contrast: Contrast,
    components: FloatArray,
    resampled: FloatArray,
    num_draws: int = NUM_DRAWS,
) -> FloatArray:
    """Normal differences over their own standard errors, `(R,)`.

    Args:
        contrast: The responses.
        components: `(3,)`.
        resampled: `(B, N)`.
        num_draws: R.
    """
    within, between, cluster = components
    alone = np.sqrt(within * within_units(contrast) + between * contrast.size**2)[:, None]
    together = np.sqrt(cluster) * contrast.size[:, None]
    known = float(cluster_variances(contrast, components)[clusters_alone(contrast)].sum())
    coefficients, generator = contrast.coefficients()[0], np.random.default_rng(SEED)
    difference, square = np.empty(num_draws), np.empty(num_draws)
    at_once = max(1, BLOCK_ELEMENTS // max(resampled.shape))
    for start in range(0, num_draws, at_once):
        block = slice(start, min(start + at_once, num_draws))
        number = block.stop - block.start
        values = alone * generator.normal(size=(len(contrast), number))
        if cluster:
            shared = generator.normal(size=(contrast.num_clusters, number))
            values += together * shared[contrast.cluster]
        difference[block] = coefficients @ values
        square[block] = np.var(resampled @ values, axis=0, ddof=1)
        square[block] *= small_sample_ratio(contrast, values)
    return np.asarray(difference / np.sqrt(square + known))
