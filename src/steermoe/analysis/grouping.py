"""Sums over clusters of responses, and which clusters are of one kind.

Shape legend: N responses, C clusters, M experts of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steermoe.analysis.estimators import Contrast
from steermoe.records import BoolArray, FloatArray, IntArray


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
        from scipy.sparse import csr_array  # figures of a finished run are shown without it

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


def sum_of_squares(values: FloatArray) -> FloatArray:
    """Of each column of `(N, M)`, without a copy of it, `(M,)`."""
    return np.asarray(np.einsum("ij,ij->j", values, values))


def sum_of_cubes(values: FloatArray) -> FloatArray:
    """The same of third powers."""
    return np.asarray(np.einsum("ij,ij,ij->j", values, values, values))
