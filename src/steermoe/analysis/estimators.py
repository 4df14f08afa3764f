r"""Four ways to estimate a risk difference, as one formula that can be resampled.

Every estimator here is a weighted mean over strata `s` of a difference of two ratios,

    D = sum_s w_s (sum_{i in U_s} x_i / sum_{i in U_s} m_i  -  sum_{i in S_s} x_i / sum_{i in S_s} m_i)

where U_s and S_s are the unsafe and the safe responses of the stratum, and

| estimator           | stratum              | x_i            | m_i          | w_s                  |
| ------------------- | -------------------- | -------------- | ------------ | -------------------- |
| mean_over_batches   | mixed batch          | active tokens  | tokens       | equal                |
| pooled              | all responses        | active tokens  | tokens       | 1                    |
| mean_over_responses | all responses        | frequency      | 1            | 1                    |
| equal_length        | responses of like length | frequency  | 1            | U_s S_s / (U_s + S_s) |

For given labels and weights of the responses, D is linear in the counts. So any number of resamples is
one matrix product of coefficients `(R, N)` with counts `(N, L * E)`.

Shape legend: N responses, S strata, C clusters, R resamples, L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from steermoe.analysis.counts import PerResponse, RoutingCounts, Segment
from steermoe.analysis.risk import check_classes
from steermoe.errors import RoutingError
from steermoe.records import NO_BATCH, BoolArray, FloatArray, IntArray

Estimator = Literal["mean_over_batches", "pooled", "mean_over_responses", "equal_length"]

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

CHUNK_COLUMNS = 512
"""Experts whose counts are held as floats at a time."""

LENGTH_RATIO = 1.25
"""Responses of one length stratum differ in length by less than this factor."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The responses of one contrast that an estimator uses, sorted by stratum.

    Attributes:
        rows: `(N,)` position of each response among those the contrast was built from.
        source: `(A, L * E)` activation counts, or other sums over tokens, of those responses and others: never copied.
        picked: `(N,)` row of each response in `source`.
        scale: `(N,)` factor that turns counts into x.
        size: `(N,)` m.
        tokens: `(N,)` tokens of the segment.
        stratum: `(N,)` 0 .. S-1, ascending.
        is_unsafe: `(N,)`.
        cluster: `(N,)` 0 .. C-1: responses of one cluster are not independent.
        estimator: Whose contrast this is.
        is_counted: Whether x counts tokens; then the variance within a response is known from the counts alone.
    """

    rows: IntArray
    source: IntArray | FloatArray
    picked: IntArray
    scale: FloatArray
    size: FloatArray
    tokens: FloatArray
    stratum: IntArray
    is_unsafe: BoolArray
    cluster: IntArray
    estimator: Estimator
    is_counted: bool = True

    def __len__(self) -> int:
        return len(self.size)

    @property
    def num_clusters(self) -> int:
        """C."""
        return int(self.cluster.max()) + 1

    @property
    def num_experts(self) -> int:
        """Experts of all layers together, L * E."""
        return int(self.source.shape[1])

    def values(self, columns: IntArray | slice) -> FloatArray:
        """Numerators x of some experts, `(N, columns)`."""
        counts = self.source[:, columns]
        if not self._has_all:
            counts = counts[self.picked]
        if self._is_unscaled:
            return counts.astype(np.float64, order="C")
        return np.multiply(counts, self.scale[:, None], order="C")

    @property
    def _has_all(self) -> bool:
        """Whether the responses are those of `source`, in order."""
        return np.array_equal(self.picked, np.arange(len(self.source)))

    @property
    def _is_unscaled(self) -> bool:
        return bool((self.scale == 1).all())

    def of_experts(self, columns: IntArray) -> Contrast:
        """The same responses, with the counts of some experts only."""
        return replace(self, source=self.source[:, columns])

    def overall_rate(self) -> FloatArray:
        """Activation frequency of every expert over both classes, `(L * E,)`."""
        return self.weighted_sum(np.full(len(self), 1 / self.size.sum()))

    def difference(self) -> FloatArray:
        """D, the risk difference of every expert, `(L * E,)`."""
        return self.weighted_sum(self.coefficients()[0])

    def weighted_sum(self, coefficients: FloatArray) -> FloatArray:
        """The sum of coefficient `(N,)` times x, for every expert."""
        total = np.empty(self.num_experts)
        for columns in column_chunks(self.num_experts):
            total[columns] = coefficients @ self.values(columns)
        return total

    def coefficients(
        self, is_unsafe: BoolArray | None = None, weight: FloatArray | None = None
    ) -> FloatArray:
        """What each response's x is multiplied by in D, for each resample.

        Strata in which a resample has lost a class have no difference and are left out of its mean.

        Args:
            is_unsafe: `(R, N)` labels of each resample; by default the true ones.
            weight: `(R, N)` how often each response was drawn; by default once.

        Returns:
            `(R, N)`, 0 everywhere for a resample in which no stratum has both classes.
        """
        unsafe = np.atleast_2d(self.is_unsafe if is_unsafe is None else is_unsafe)
        drawn = np.ones((1, len(self))) if weight is None else np.atleast_2d(weight)
        starts = np.flatnonzero(np.diff(self.stratum, prepend=-1))
        size = drawn * self.size
        unsafe_size = np.add.reduceat(np.where(unsafe, size, 0.0), starts, axis=1)  # (R, S)
        safe_size = np.add.reduceat(np.where(unsafe, 0.0, size), starts, axis=1)
        defined = (unsafe_size > 0) & (safe_size > 0)
        share = defined.astype(np.float64)
        if self.estimator == "equal_length":
            total = np.where(defined, unsafe_size + safe_size, 1.0)
            share = np.where(defined, unsafe_size * safe_size / total, 0.0)
        share /= np.maximum(share.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        of_unsafe = np.where(defined, share / np.where(defined, unsafe_size, 1.0), 0.0)
        of_safe = np.where(defined, share / np.where(defined, safe_size, 1.0), 0.0)
        signed = np.where(unsafe, of_unsafe[:, self.stratum], -of_safe[:, self.stratum])
        return np.asarray(drawn * signed)


def build_contrast(
    counts: PerResponse,
    is_unsafe: npt.ArrayLike,
    batch_idx: npt.ArrayLike,
    clusters: npt.ArrayLike,
    estimator: Estimator,
    segment: Segment,
) -> Contrast:
    """Choose and arrange the responses that an estimator uses.

    Left out are responses without tokens in the segment, for `mean_over_batches` those in no batch, and
    strata without tokens of both classes.

    Args:
        counts: Counts, or other sums, of N safe and unsafe responses.
        is_unsafe: `(N,)`.
        batch_idx: `(N,)`, -1 for no batch.
        clusters: `(N,)` integers: responses that share one are not independent.
        estimator: One of `ESTIMATORS`.
        segment: `generation` or `prompt`.

    Raises:
        RoutingError: If the estimator is unknown, lengths do not fit, or no stratum has tokens of both
            classes.
    """
    if estimator not in ESTIMATORS:
        raise RoutingError(
            f"unknown estimator '{estimator}'; choose one of {', '.join(ESTIMATORS)}"
        )
    active, num_tokens = counts.segment(segment)
    unsafe, batches = check_classes(is_unsafe, batch_idx, len(counts))
    cluster = np.asarray(clusters)
    if cluster.shape != (len(counts),):
        raise RoutingError(f"{len(cluster)} clusters were given for {len(counts)} responses")
    stratum = _strata(estimator, num_tokens, batches)
    included = num_tokens > 0
    if estimator == "mean_over_batches":
        included &= batches != NO_BATCH
    rows = _rows_of_both_classes(stratum, included, unsafe)
    if len(rows) == 0:
        what = "mixed batch" if estimator == "mean_over_batches" else "stratum of responses"
        raise RoutingError(
            f"no {what} has tokens of both classes in the segment '{segment}', so the estimator "
            f"'{estimator}' is undefined; choose another one or collect more responses"
        )
    tokens = num_tokens[rows].astype(np.float64)
    by_tokens = estimator in ("mean_over_batches", "pooled")
    return Contrast(
        rows=rows,
        source=active.reshape(len(active), -1),
        picked=rows,
        scale=np.ones(len(rows)) if by_tokens else 1 / tokens,
        size=tokens if by_tokens else np.ones(len(rows)),
        tokens=tokens,
        stratum=np.unique(stratum[rows], return_inverse=True)[1],
        is_unsafe=unsafe[rows],
        cluster=np.unique(cluster[rows], return_inverse=True)[1],
        estimator=estimator,
        is_counted=isinstance(counts, RoutingCounts),
    )


def _rows_of_both_classes(stratum: IntArray, included: BoolArray, is_unsafe: BoolArray) -> IntArray:
    """Included responses of strata that have some of both classes, stratum by stratum."""
    both = np.intersect1d(stratum[included & is_unsafe], stratum[included & ~is_unsafe])
    rows = np.flatnonzero(included & np.isin(stratum, both))
    return rows[np.argsort(stratum[rows], kind="stable")]


def column_chunks(num_experts: int) -> list[slice]:
    """Experts a few hundred at a time, so that their counts fit in memory as floats.

    Slices, because experts in a row are read where they lie, which takes a fraction of the time.
    """
    chunks = np.array_split(np.arange(num_experts), -(-num_experts // CHUNK_COLUMNS))
    return [slice(int(chunk[0]), int(chunk[-1]) + 1) for chunk in chunks]


def _strata(estimator: Estimator, num_tokens: IntArray, batches: IntArray) -> IntArray:
    if estimator == "mean_over_batches":
        return batches
    if estimator == "equal_length":
        length = np.log(np.maximum(num_tokens, 1)) / np.log(LENGTH_RATIO)
        # A length that is a power of the ratio starts a stratum, whatever the logarithm's last digit.
        return np.asarray(np.floor(length + 1e-9), dtype=np.int64)
    return np.zeros(len(num_tokens), dtype=np.int64)
