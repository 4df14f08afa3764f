r"""The variance that both classes would share if the labels said nothing about routing.

For each expert, the score of a response is `e_i = x_i - m_i * rate`, what it has above the overall
activation rate. Its variance has three parts, estimated by the method of moments from both classes
together:

    Var(e_i) = v * a_i  +  (response + cluster) * b_i,      Cov(e_i, e_j) = cluster * m_i * m_j

within one cluster, where `v` is the variance of a single token within its response, and `a_i`, `b_i`
turn it and the variance between responses into the units of x.

Why it is needed: an expert that fires in few tokens may happen not to fire at all in the class with the
shorter replies. That class's own spread is then 0, and any test that believes it finds the expert.

Shape legend: N responses, C clusters, R resamples, M experts of one chunk.
"""

from __future__ import annotations

import numpy as np

from steermoe.analysis.estimators import Contrast
from steermoe.analysis.grouping import Grouping, cluster_groups, sum_of_squares
from steermoe.records import FloatArray, IntArray

NUM_TERMS = 3
"""Components: within a response, between responses of a cluster, between clusters."""


def within_units(contrast: Contrast) -> FloatArray:
    """`a`, `(N,)`: what a token's variance is multiplied by in the variance of x."""
    return contrast.scale**2 * contrast.tokens


def variance_components(contrast: Contrast, values: FloatArray, scores: FloatArray) -> FloatArray:
    """The three components of some experts.

    Args:
        contrast: The responses.
        values: `(N, M)` x.
        scores: `(N, M)` e.

    Returns:
        `(3, M)`: within a response (per token), between responses of a cluster, between clusters.
        None is negative.
    """
    within = _within_responses(contrast, values)
    squares = sum_of_squares(scores)
    size_squares = float(np.sum(contrast.size**2))
    between = np.maximum(0.0, squares - within * within_units(contrast).sum()) / size_squares
    grouping = Grouping.of(contrast.cluster)
    products = sum_of_squares(grouping.sums(scores)) - squares
    size_products = float(np.sum(grouping.sums(contrast.size) ** 2)) - size_squares
    cluster = np.zeros_like(between)
    if size_products > 0:
        cluster = np.clip(products / size_products, 0.0, between)
    return np.stack([within, between - cluster, cluster])


def _within_responses(contrast: Contrast, values: FloatArray) -> FloatArray:
    """The variance of a single token within its response, `(M,)`.

    Of what is not counted it is not known from sums alone: then all of the variance is taken for one between responses,
    of which it is a part.
    """
    if not contrast.is_counted:
        return np.zeros(values.shape[1])
    tokens, scale = contrast.tokens, contrast.scale
    several = tokens > 1
    if several.any():
        # Active tokens times the others, over tokens less one, in the units of x.
        products = (tokens * scale)[:, None] - values
        products *= values
        weight = np.where(several, 1 / (scale**2 * np.maximum(tokens - 1, 1)), 0.0)
        return np.asarray(weight @ products / tokens[several].sum())
    # One token each: the binomial variance is all that can be known.
    rate = (1 / scale) @ values / tokens.sum()
    return np.asarray(rate * (1 - rate))


def variance_terms(contrast: Contrast, coefficients: FloatArray) -> FloatArray:
    """What the components are multiplied by in the variance of a weighted sum of scores.

    Args:
        contrast: The responses.
        coefficients: `(R, N)` weights of the sum.

    Returns:
        `(R, 3)`; times the components `(3, M)` it gives variances `(R, M)`.
    """
    grouping = Grouping.of(contrast.cluster)
    within = coefficients**2 @ within_units(contrast)
    between = coefficients**2 @ contrast.size**2
    sums = np.add.reduceat(
        (coefficients * contrast.size)[:, grouping.rows], grouping.starts, axis=1
    )
    return np.stack([within, between, np.sum(sums**2, axis=1)], axis=1)


def cluster_variances(contrast: Contrast, components: FloatArray) -> FloatArray:
    """Variance of each cluster's part of the risk difference, `(C, ...)`, by the components `(3, ...)`."""
    coefficients = contrast.coefficients()[0]
    return cluster_covariances(contrast, coefficients, coefficients) @ components


def cluster_covariances(contrast: Contrast, left: FloatArray, right: FloatArray) -> FloatArray:
    """Covariance of two weighted sums of each cluster's scores, in units of the components.

    Args:
        contrast: The responses.
        left: `(N,)` weights of one sum.
        right: `(N,)` weights of the other.

    Returns:
        `(C, 3)`; times the components `(3, M)` it gives covariances `(C, M)`.
    """
    grouping = Grouping.of(contrast.cluster)
    between = contrast.size**2
    return np.stack(
        [
            grouping.sums(left * right * within_units(contrast)),
            grouping.sums(left * right * between),
            grouping.sums(left * contrast.size) * grouping.sums(right * contrast.size),
        ],
        axis=1,
    )


def lost_to_rate(contrast: Contrast, components: FloatArray, clusters: IntArray) -> FloatArray:
    """How much smaller some clusters' sum of squares is because the overall rate was estimated.

    The estimated rate takes a part of each score away, most where few clusters carry most weight.

    Args:
        contrast: The responses.
        components: `(3, M)`.
        clusters: The clusters whose parts of the risk difference are squared and added.

    Returns:
        `(M,)` expected sum of squares divided by the sum of variances, between 0.5 and 1.
    """
    coefficients, ones = contrast.coefficients()[0], np.ones(len(contrast))
    own = cluster_covariances(contrast, coefficients, coefficients)[clusters] @ components
    with_total = cluster_covariances(contrast, coefficients, ones)[clusters] @ components
    of_total = cluster_covariances(contrast, ones, ones).sum(axis=0) @ components
    weight = Grouping.of(contrast.cluster).sums(coefficients * contrast.size)[clusters, None]
    whole = contrast.size.sum()
    variance = own.sum(axis=0)
    change = np.sum(weight**2, axis=0) * of_total / whole - 2 * np.sum(weight * with_total, axis=0)
    share = 1 + change / whole / np.where(variance > 0, variance, 1.0)
    return np.asarray(np.clip(share, 0.5, 1.0))


def degrees_of_freedom(contrast: Contrast, variances: FloatArray) -> FloatArray:
    """Degrees of freedom of a cluster-robust variance, by Satterthwaite's approximation.

    A cluster's residual is its score less its weight times the sum of its kind's scores. With S the
    diagonal matrix of the clusters' variances s, and w their weights, the residuals have the covariance
    `O = S - w s' - s w' + w w' sum(s)`, and the degrees of freedom are `trace(O)^2 / trace(O^2)`
    (Bell and McCaffrey 2002, for a mean). Clusters of equal size and variance give C - 1 a kind.

    Args:
        contrast: The responses.
        variances: `(C, M)` of `cluster_variances`.

    Returns:
        `(M,)`, at least 1.
    """
    weight = Grouping.of(contrast.cluster).sums(np.abs(contrast.coefficients()[0]) * contrast.size)
    # An expert that is never active has no variance; equal ones give its degrees of freedom.
    s_all = np.where(variances.sum(axis=0) > 0, variances, 1.0)
    trace = np.zeros(variances.shape[1])
    trace_of_square = np.zeros(variances.shape[1])
    for group in cluster_groups(contrast):
        w = weight[group, None] / weight[group].sum()  # (C, 1)
        s = s_all[group]  # (C, M)
        ww, total, sw = np.sum(w**2), s.sum(axis=0), np.sum(s * w, axis=0)
        ss, ssw, sww = np.sum(s**2, axis=0), np.sum(s**2 * w, axis=0), np.sum(s * w**2, axis=0)
        trace += total - 2 * sw + ww * total
        trace_of_square += (
            (ss - 4 * ssw + 2 * total * sww + 2 * sw**2 + 2 * ww * ss)
            - 4 * total * sw * ww
            + (total * ww) ** 2
        )
    safe = np.maximum(trace_of_square, np.finfo(np.float64).tiny)
    return np.maximum(1.0, trace**2 / safe)
