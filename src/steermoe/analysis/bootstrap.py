"""Standard errors and intervals: clusters of responses are drawn with replacement.

Shape legend: N responses, C clusters, R resamples, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import stats

from steermoe.analysis.estimators import Contrast, column_chunks
from steermoe.analysis.freedom import effective_freedom
from steermoe.analysis.grouping import cluster_groups, clusters_alone, sum_of_squares
from steermoe.analysis.influences import small_sample_ratio
from steermoe.analysis.variance import NUM_TERMS, cluster_covariances, variance_components
from steermoe.records import FloatArray

BLOCK_ELEMENTS = 1 << 22
"""Entries of a block of resamples' coefficients: 32 MiB, however many responses there are."""

ENOUGH_DRAWS = 500
"""Draws behind the degrees of freedom, which need a variance's spread and not its last digit."""


def blocks_of_draws(num_draws: int, num_responses: int) -> Iterator[int]:
    """Sizes of the blocks in which resamples are drawn, so that memory stays bounded."""
    size = max(1, min(num_draws, BLOCK_ELEMENTS // max(1, num_responses)))
    for start in range(0, num_draws, size):
        yield min(size, num_draws - start)


def bootstrap_weights(
    contrast: Contrast, num_draws: int, generator: np.random.Generator
) -> FloatArray:
    """How often each response is drawn when clusters are drawn with replacement, by kind.

    Returns:
        `(R, N)`; responses of one cluster have the same weight.
    """
    weight = np.empty((num_draws, contrast.num_clusters))
    for group in cluster_groups(contrast):
        evenly = np.full(len(group), 1 / len(group))
        weight[:, group] = generator.multinomial(len(group), evenly, size=num_draws)
    return weight[:, contrast.cluster]


def drawn_coefficients(contrast: Contrast, weight: FloatArray) -> FloatArray:
    """What each response's x is multiplied by, in each resample.

    Responses keep the weights that they have in the estimator, and those of a class add up to one again. Weights that
    were found anew from those who were drawn would hide what a long reply does to its batch: drawn once or three
    times, the batch's rate is its own.

    Args:
        contrast: The responses.
        weight: `(R, N)` how often each was drawn.

    Returns:
        `(R, N)`.
    """
    drawn = weight * contrast.coefficients()[0]
    for side, sign in ((contrast.is_unsafe, 1.0), (~contrast.is_unsafe, -1.0)):
        total = drawn[:, side] @ contrast.size[side]
        drawn[:, side] *= (sign / total)[:, None]
    return np.asarray(drawn)


def bootstrap_variances(
    contrast: Contrast, num_draws: int, generator: np.random.Generator
) -> FloatArray:
    """Variance of the risk difference over bootstrap draws, `(L * E,)`."""
    total = np.zeros(contrast.num_experts)
    squares = np.zeros(contrast.num_experts)
    centre = contrast.difference()  # Sums of squares about it lose no digits.
    for number in blocks_of_draws(num_draws, len(contrast)):
        coefficients = drawn_coefficients(contrast, bootstrap_weights(contrast, number, generator))
        for columns in column_chunks(contrast.num_experts):
            drawn = coefficients @ contrast.values(columns) - centre[columns]
            total[columns] += drawn.sum(axis=0)
            squares[columns] += sum_of_squares(drawn)
    return np.asarray(np.maximum(0.0, squares - total**2 / num_draws) / (num_draws - 1))


def half_widths(error: FloatArray, freedom: float, confidence: float) -> FloatArray:
    """Half the width of Student's intervals; 2, which rules nothing out, without degrees of freedom."""
    if freedom == 0:
        return np.full(error.shape, 2.0)
    return np.asarray(error * stats.t.ppf((1 + confidence) / 2, freedom))


def errors_and_freedom(
    contrast: Contrast, num_draws: int, generator: np.random.Generator
) -> tuple[FloatArray, float]:
    """Standard error of every expert's risk difference, and the degrees of freedom of all of them.

    The bootstrap variance is corrected for few clusters of a kind (`small_sample_ratio`).

    The interval is Student's, with degrees of freedom for clusters of unequal weight (`freedom`). How the variance
    divides into its components is averaged over all experts: one expert's is too uncertain to go by, and
    made intervals of clustered goals hold the truth in 97 % of the cases. A kind that has one cluster
    only shows no spread of its own; the spread shared by both classes stands in.

    Returns:
        Errors `(L * E,)` and the degrees of freedom. Where every kind has one cluster only, nothing is known of the
        spread: the error is 1, which no risk difference can exceed, and there are 0 degrees of freedom.
    """
    groups = cluster_groups(contrast)
    number = contrast.num_clusters
    if number == len(groups):
        return np.ones(contrast.num_experts), 0.0
    variance = bootstrap_variances(contrast, num_draws, generator)
    coefficients = contrast.coefficients()[0]
    variance_of = cluster_covariances(contrast, coefficients, coefficients)  # (C, 3)
    of_alone, of_all = variance_of[clusters_alone(contrast)].sum(axis=0), variance_of.sum(axis=0)
    rate = contrast.overall_rate()
    relative = np.zeros(NUM_TERMS)
    for columns in column_chunks(contrast.num_experts):
        values = contrast.values(columns)
        variance[columns] *= small_sample_ratio(contrast, values)
        scores = values - contrast.size[:, None] * rate[columns]
        components = variance_components(contrast, values, scores)
        variance[columns] += of_alone @ components
        total = of_all @ components
        relative += np.sum(components / np.where(total > 0, total, 1.0), axis=1)
    some = drawn_coefficients(contrast, bootstrap_weights(contrast, ENOUGH_DRAWS, generator))
    return np.sqrt(variance), effective_freedom(contrast, relative, some)
