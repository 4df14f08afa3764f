"""Stability selection: is an expert selected whichever half of the goals is looked at?

Complementary pairs (Shah and Samworth 2013, JRSS-B 75:55-80): the goals are split at random into two
halves, the selection is repeated on each, and so on for many splits.

Shape legend: N responses, C clusters, R subsamples, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from steermoe.analysis.clusters import find_clusters
from steermoe.analysis.counts import PerResponse, Segment
from steermoe.analysis.estimators import Contrast, Estimator, build_contrast, column_chunks
from steermoe.analysis.grouping import cluster_groups
from steermoe.analysis.selection import RankWithin
from steermoe.analysis.uncertainty import expert_frame, of_layers
from steermoe.errors import RoutingError, SelectionError
from steermoe.records import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Stability:
    """Result of stability selection.

    Attributes:
        table: Columns `layer, expert, stability`: the share of half samples in which the expert was
            selected. In the order of layer and expert.
        num_subsamples: Half samples that were drawn.
        mean_selected: Mean number of experts selected in one.
        num_candidates: Experts that could be selected.
    """

    table: pd.DataFrame
    num_subsamples: int
    mean_selected: float
    num_candidates: int

    def error_bound(self, min_stability: float) -> float:
        """Expected number, at most, of selected experts that a half sample selects no better than by chance.

        `q^2 / ((2 t - 1) M)` with q experts selected on average, M that may be selected and t the least
        stability (Meinshausen and Buhlmann 2010; without their exchangeability for complementary pairs
        by Shah and Samworth 2013, theorem 1 with theta = q / M).

        Raises:
            SelectionError: If `min_stability` is not above 0.5, where there is no bound, or above 1.
        """
        if not 0.5 < min_stability <= 1:
            raise SelectionError(
                f"the least stability is {min_stability}; the error bound holds between 0.5 and 1"
            )
        return self.mean_selected**2 / ((2 * min_stability - 1) * self.num_candidates)


def selection_stability(
    counts: PerResponse,
    is_unsafe: npt.ArrayLike,
    goals: Sequence[str],
    batch_idx: npt.ArrayLike,
    *,
    threshold: float = 0.05,
    top_k: int = 50,
    layers: Iterable[int] | None = None,
    estimator: Estimator = "mean_over_batches",
    segment: Segment = "generation",
    num_subsamples: int = 200,
    seed: int = 0,
    clusters: npt.ArrayLike | None = None,
    rank_within: RankWithin = "model",
) -> Stability:
    """Repeat the rule `threshold` on random halves of the goals.

    Args:
        counts: Counts of N safe and unsafe responses.
        is_unsafe: `(N,)`.
        goals: `(N,)`; a goal's responses go into the same half.
        batch_idx: `(N,)`, -1 for none. A half keeps the batches, each with the responses left to it.
        threshold: Least risk difference.
        top_k: Most experts selected in a half.
        layers: Decoder layers to select from; by default all.
        estimator: One of `estimators.ESTIMATORS`.
        segment: `generation` or `prompt`.
        num_subsamples: Halves, in pairs that complement each other.
        seed: Seeds the splits.
        clusters: `(N,)` integers to use instead of goals.
        rank_within: Whether the largest of the model are taken, or the first of every layer before the second of any.

    Returns:
        The share of halves that selected each expert, and what bounds the error.

    Raises:
        RoutingError: If there is no kind of clusters (paired, unsafe only, safe only) with two members,
            so that no half can be taken, or `num_subsamples` is below 2.
    """
    if num_subsamples < 2:
        raise RoutingError(f"num_subsamples is {num_subsamples}; give at least 2")
    groups = find_clusters(goals) if clusters is None else clusters
    contrast = build_contrast(counts, is_unsafe, batch_idx, groups, estimator, segment)
    coefficients = _coefficients_of_halves(contrast, num_subsamples // 2, seed)
    differences = np.empty((len(coefficients), contrast.num_experts))
    for columns in column_chunks(contrast.num_experts):
        differences[:, columns] = coefficients @ contrast.values(columns)
    may_be_selected = of_layers(counts, layers)
    differences[:, ~may_be_selected] = -np.inf
    num_experts = counts.num_experts if rank_within == "layer" else None
    share = _selected(differences, threshold, top_k, num_experts).mean(axis=0)
    return Stability(
        expert_frame(counts, {"stability": share}),
        len(coefficients),
        float(share.sum()),
        int(may_be_selected.sum()),
    )


def _coefficients_of_halves(contrast: Contrast, num_pairs: int, seed: int) -> FloatArray:
    """The coefficients of every half that has tokens of both classes, a row each."""
    generator = np.random.default_rng(seed)
    coefficients = contrast.coefficients(weight=_half_samples(contrast, num_pairs, generator))
    coefficients = coefficients[np.any(coefficients != 0, axis=1)]
    if len(coefficients) == 0:
        raise RoutingError(
            "too few goals to halve: no half has tokens of both classes; collect more responses"
        )
    return coefficients


def _ranks(values: FloatArray, before: IntArray | None = None) -> npt.NDArray[np.int64]:
    """The place of each value along the last axis, the largest first; of unlike `before`, the smaller first."""
    keys = (-values,) if before is None else (-values, before)
    order = np.lexsort(keys, axis=-1)
    rank = np.empty(values.shape, dtype=np.int64)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(values.shape[-1]), values.shape), -1)
    return rank


def _half_samples(
    contrast: Contrast, num_splits: int, generator: np.random.Generator
) -> FloatArray:
    """Which responses are in each half, `(2 * splits, N)` of 0 and 1; each kind of clusters is halved."""
    first = np.zeros((num_splits, contrast.num_clusters))
    second = np.zeros((num_splits, contrast.num_clusters))
    for group in cluster_groups(contrast):
        half = len(group) // 2
        order = group[np.argsort(generator.random((num_splits, len(group))), axis=1)]
        np.put_along_axis(first, order[:, :half], 1.0, axis=1)
        np.put_along_axis(second, order[:, half : 2 * half], 1.0, axis=1)
    return np.concatenate([first, second])[:, contrast.cluster]


def _selected(
    differences: FloatArray, threshold: float, top_k: int, num_experts: int | None = None
) -> npt.NDArray[np.bool_]:
    """What `threshold` selects of each row of differences; ties go to the lower layer and expert.

    With `num_experts` of a layer, the first of every layer come before the second of any.
    """
    if num_experts is None:
        rank = _ranks(differences)
    else:
        of_layers = _ranks(differences.reshape(len(differences), -1, num_experts))
        rank = _ranks(differences, before=of_layers.reshape(differences.shape))
    return np.asarray((rank < top_k) & (differences >= threshold))
