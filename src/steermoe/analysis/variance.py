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

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from steermoe.analysis.estimators import Contrast, column_chunks
from steermoe.records import BoolArray, FloatArray, IntArray

NUM_TERMS = 3
"""Components: within a response, between responses of a cluster, between clusters."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Responses listed cluster by cluster, so that a cluster's sum is one pass.

    Attributes:
        rows: Positions of the responses, those of a cluster together.
        starts: Where in `rows` each cluster begins.
    """

    rows: IntArray
    starts: IntArray

    @staticmethod
    def of(cluster: IntArray, rows: IntArray | None = None) -> Grouping:
        """Group all responses, or some of them."""
        chosen = np.arange(len(cluster)) if rows is None else rows
        chosen = chosen[np.argsort(cluster[chosen], kind="stable")]
        return Grouping(chosen, np.flatnonzero(np.diff(cluster[chosen], prepend=-1)))

    def __len__(self) -> int:
        return len(self.starts)

    def sums(self, values: FloatArray, weight: FloatArray | None = None) -> FloatArray:
        """Sum of each cluster along the first axis: `(N, ...)` to `(C, ...)`; each row times its weight `(N,)`.

        A product with a sparse matrix, which reads every row once; `np.add.reduceat` takes twenty times as long.
        """
        weights = np.ones(len(self.rows)) if weight is None else weight[self.rows]
        ends = np.append(self.starts, len(self.rows))
        shape = (len(self), len(values))
        return np.asarray(csr_array((weights, self.rows, ends), shape=shape) @ values)


def cluster_kinds(contrast: Contrast) -> tuple[BoolArray, BoolArray]:
    """Which clusters hold unsafe responses, and which hold safe ones: two arrays `(C,)`."""
    has_unsafe = np.zeros(contrast.num_clusters, dtype=np.bool_)
    has_safe = np.zeros(contrast.num_clusters, dtype=np.bool_)
    has_unsafe[contrast.cluster[contrast.is_unsafe]] = True
    has_safe[contrast.cluster[~contrast.is_unsafe]] = True
    return has_unsafe, has_safe


def cluster_groups(contrast: Contrast) -> list[IntArray]:
    """Clusters of one kind: paired (both classes), unsafe only, safe only; kinds that occur."""
    has_unsafe, has_safe = cluster_kinds(contrast)
    kinds = (has_unsafe & has_safe, has_unsafe & ~has_safe, ~has_unsafe & has_safe)
    return [np.flatnonzero(kind) for kind in kinds if kind.any()]


def clusters_alone(contrast: Contrast) -> IntArray:
    """Clusters that are the only ones of their kind: they show no spread of their own."""
    return np.array(
        [group[0] for group in cluster_groups(contrast) if len(group) == 1], dtype=np.int64
    )


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


def cluster_influences(contrast: Contrast, values: FloatArray) -> FloatArray:
    """What each cluster adds to the linearised risk difference, `(C, M)`: squared and added up, its variance.

    Lengths and strata taken as given, the difference is linear in x, and a response adds its coefficient times what
    its x has above the rate of its class in its stratum. But a long reply *is* most of its batch's rate, so that
    little of it is left above that rate, however much it moves the difference. With shares h of the tokens of its
    stratum and class, a cluster keeps `1 - 2 h + sum(h^2)` of the square that it has about the true rate, where
    clusters vary alike (the idea of MacKinnon and White 1985, HC2, and of Bell and McCaffrey 2002); its part is
    divided by the root of that. Equal shares of n clusters give n / (n - 1), of which C / (C - 1) is left to
    `variance_by_kind`, for the C clusters of the whole class. A single cluster has no spread about its own rate and
    is compared with its whole class.

    Args:
        contrast: The responses.
        values: `(N, M)` x of some experts.
    """
    if contrast.stratum[-1] == 0:
        return class_influences(contrast, values)
    of_cell = np.unique(2 * contrast.stratum + contrast.is_unsafe, return_inverse=True)[1]
    cells = Grouping.of(of_cell)
    rate = cells.sums(values) / cells.sums(contrast.size)[:, None]
    kept, is_alone = _kept_of_squares(contrast, of_cell)
    if is_alone.any():
        alone, of_class = of_cell[is_alone], contrast.is_unsafe[is_alone].astype(np.int64)
        rate[alone] = class_rates(contrast, values)[of_class]
    weight = contrast.coefficients()[0] / np.sqrt(kept)
    return _parts_about(contrast, values, weight, of_cell, rate)


def class_influences(contrast: Contrast, values: FloatArray) -> FloatArray:
    """As `cluster_influences`, but about the rate of the whole class, and nothing is corrected, `(C, M)`.

    It is how fast the difference moves as a cluster is drawn more often, if its responses keep the weights that they
    have in the estimator (`bootstrap.drawn_coefficients`).
    """
    of_class, rate = contrast.is_unsafe.astype(np.int64), class_rates(contrast, values)
    return _parts_about(contrast, values, contrast.coefficients()[0], of_class, rate)


def class_rates(contrast: Contrast, values: FloatArray) -> FloatArray:
    """The rate of the safe and of the unsafe class, weighted as the estimator weights its responses, `(2, M)`."""
    weight = np.abs(contrast.coefficients()[0])
    of_sides = np.stack(
        [np.where(contrast.is_unsafe == side, weight, 0.0) for side in (False, True)]
    )
    return np.asarray(of_sides @ values / (of_sides @ contrast.size)[:, None])


def _parts_about(
    contrast: Contrast, values: FloatArray, weight: FloatArray, of_rate: IntArray, rate: FloatArray
) -> FloatArray:
    """Each cluster's sum of weights times what x has above a rate, `(C, M)`, without an array of what each has above.

    Args:
        contrast: The responses.
        values: `(N, M)` x.
        weight: `(N,)`.
        of_rate: `(N,)` 0 .. Q-1, which rate each response is compared with.
        rate: `(Q, M)`.
    """
    taken_off = csr_array(
        (weight * contrast.size, (contrast.cluster, of_rate)),
        shape=(contrast.num_clusters, len(rate)),
    )
    parts = Grouping.of(contrast.cluster).sums(values, weight)
    parts -= np.asarray(taken_off @ rate)
    return parts


def sum_of_squares(values: FloatArray) -> FloatArray:
    """Of each column of `(N, M)`, without a copy of it, `(M,)`."""
    return np.asarray(np.einsum("ij,ij->j", values, values))


def _kept_of_squares(contrast: Contrast, of_cell: IntArray) -> tuple[FloatArray, BoolArray]:
    """What `cluster_influences` divides by, squared, and whether a response's cluster is alone, two arrays `(N,)`.

    Args:
        contrast: The responses.
        of_cell: `(N,)` 0 .. Q-1, the class and stratum of each.
    """
    parts, of_part = np.unique(
        np.stack([of_cell, contrast.cluster]), axis=1, return_inverse=True
    )  # a cluster's responses in one cell are one part
    cell = parts[0]
    size = np.bincount(of_part, contrast.size)
    share = size / np.bincount(cell, size)[cell]
    kept = 1 - 2 * share + np.bincount(cell, share**2)[cell]
    is_alone = (np.bincount(cell) == 1)[cell]
    of_class = [
        small_sample_factor(len(np.unique(contrast.cluster[side])))
        for side in (~contrast.is_unsafe, contrast.is_unsafe)
    ]
    whole = np.asarray(of_class)[contrast.is_unsafe.astype(np.int64)]
    kept_of_response = np.where(is_alone[of_part], 1.0, kept[of_part] * whole)
    return kept_of_response, is_alone[of_part]


def small_sample_factor(number: int) -> float:
    """By how much the spread of so many about their own mean is too small: n / (n - 1), 1 of a single one."""
    return number / (number - 1) if number > 1 else 1.0


def variance_by_kind(contrast: Contrast, influences: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sum of squares of the clusters' influences, and the same corrected for few clusters of a kind.

    Each kind of clusters (paired, unsafe only, safe only) has its own factor: five unsafe goals among two
    hundred safe ones are five.

    Args:
        contrast: The responses.
        influences: `(C, M)` of `cluster_influences`.

    Returns:
        Two arrays `(M,)`.
    """
    groups = cluster_groups(contrast)
    squares = [
        sum_of_squares(influences if len(group) == len(influences) else influences[group])
        for group in groups
    ]
    factors = [small_sample_factor(len(group)) for group in groups]
    corrected = [factor * square for factor, square in zip(factors, squares, strict=True)]
    return np.sum(squares, axis=0), np.sum(corrected, axis=0)


def small_sample_ratio(contrast: Contrast, values: FloatArray) -> FloatArray:
    """What a bootstrap variance is multiplied by, `(M,)`.

    C clusters that are resampled vary less than C new ones, by C / (C - 1) for each kind of clusters, and they are
    compared with all of their class rather than with their stratum. So it is the ratio of the linearised difference's
    variance with these corrections (`cluster_influences`) to that without (`class_influences`). 1 where nothing varies.

    Args:
        contrast: The responses.
        values: `(N, M)` x of some experts.
    """
    spread, _ = variance_by_kind(contrast, class_influences(contrast, values))
    _, corrected = variance_by_kind(contrast, cluster_influences(contrast, values))
    return np.where(spread > 0, corrected / np.where(spread > 0, spread, 1.0), 1.0)


def cluster_robust_errors(contrast: Contrast) -> FloatArray:
    """Analytic standard errors, without resampling: a cross-check of the bootstrap.

    The risk difference is linearised, and the squares of the clusters' parts are added up, each kind of
    clusters with its factor for small numbers.

    Returns:
        `(L * E,)`.
    """
    error = np.empty(contrast.num_experts)
    for columns in column_chunks(contrast.num_experts):
        influences = cluster_influences(contrast, contrast.values(columns))
        error[columns] = np.sqrt(variance_by_kind(contrast, influences)[1])
    return error
