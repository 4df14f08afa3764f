"""How far each cluster moves the risk difference, and the standard errors that follow from it.

The difference is linearised: a cluster's part is what its responses have above a rate, times their coefficients. The
squares of these parts, added up and corrected for few clusters, are the variance of the difference.

Shape legend: N responses, C clusters, M experts of one chunk.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from steermoe.analysis.estimators import Contrast, column_chunks
from steermoe.analysis.grouping import Grouping, cluster_groups, sum_of_squares
from steermoe.records import BoolArray, FloatArray, IntArray


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
