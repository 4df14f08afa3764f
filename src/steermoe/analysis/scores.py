"""Any score of experts, contrasted and resampled as risk differences are.

Shape legend: N responses, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from steermoe.analysis.bootstrap import errors_and_freedom, half_widths
from steermoe.analysis.counts import PerResponse, RoutingCounts, Segment
from steermoe.analysis.estimators import Contrast, Estimator, build_contrast
from steermoe.analysis.permutation import p_values_of
from steermoe.analysis.selection import RankWithin
from steermoe.analysis.stability import selection_stability
from steermoe.analysis.uncertainty import expert_frame, of_layers, q_values, round_significant
from steermoe.errors import RoutingError
from steermoe.records import NO_BATCH, BoolArray, FloatArray, IntArray, ResponseSums

SCORE_COLUMNS = [
    *("layer", "expert", "score", "value", "se", "ci_low", "ci_high"),
    *("p_value", "q_value", "stability", "held_out"),
]
"""Of `scores.parquet`: one row an expert and score. What was not computed is missing."""

UNCERTAIN = SCORE_COLUMNS[4:9]


@dataclass(frozen=True, slots=True)
class Compared:
    """The N responses that are compared, and how.

    Attributes:
        is_unsafe: `(N,)`.
        batch_idx: `(N,)` mixed batch, -1 for none.
        clusters: `(N,)`: responses that share one are not independent.
        segment: Whose tokens count.
        estimator: How responses are weighted.
    """

    is_unsafe: BoolArray
    batch_idx: IntArray
    clusters: IntArray
    segment: Segment
    estimator: Estimator

    def contrast(self, sums: PerResponse) -> Contrast:
        """The responses that the estimator uses, with some sums of theirs."""
        return build_contrast(
            sums, self.is_unsafe, self.batch_idx, self.clusters, self.estimator, self.segment
        )


@dataclass(frozen=True, slots=True)
class Resampled:
    """How scores are resampled; a number of 0 leaves its columns out.

    Attributes:
        num_permutations: Relabellings behind p-values.
        num_bootstrap: Draws behind intervals.
        num_subsamples: Halves of the goals behind stability.
        seed: Seeds all of them.
        threshold: Least value of a selected expert, which q-values and stability go by.
        top_k: Most experts of a selection.
        rank_within: What experts are ranked among.
        layers: Decoder layers to select from; the family of the q-values.
    """

    num_permutations: int
    num_bootstrap: int
    num_subsamples: int
    seed: int
    threshold: float
    top_k: int
    rank_within: RankWithin
    layers: Sequence[int]


def score_rows(
    name: str, sums: PerResponse, compared: Compared, resampled: Resampled
) -> pd.DataFrame:
    """The rows of one score in `scores.parquet`, but for `held_out`.

    Intervals, p-values and stability come from the functions that risk differences have theirs from. Scores have units
    of their own, so they are divided by the largest mean of any response first, and multiplied again: what those
    functions hold of shares then holds of them.

    Args:
        name: Of the score.
        sums: Its sums of the N responses.
        compared: Which they are.
        resampled: How often they are drawn.

    Raises:
        RoutingError: No stratum has tokens of both classes.
    """
    scale = scale_of(sums, compared.segment)
    scaled = _divided(sums, scale)
    contrast = compared.contrast(scaled)
    difference = contrast.difference()
    columns: dict[str, FloatArray | str] = {
        "score": name,
        "value": round_significant(difference) * scale,
    }
    threshold = resampled.threshold / scale
    if resampled.num_permutations and resampled.num_bootstrap:
        # The same streams as those of the risk differences.
        streams = np.random.SeedSequence(resampled.seed).spawn(2)
        for_bootstrap, for_null = map(np.random.default_rng, streams)
        error, freedom = errors_and_freedom(contrast, resampled.num_bootstrap, for_bootstrap)
        half_width = half_widths(error, freedom, 0.95)
        found = p_values_of(contrast, resampled.num_permutations, for_null, max(threshold, 0.0))
        chosen = of_layers(sums, resampled.layers)
        columns |= {
            "se": round_significant(error) * scale,
            "ci_low": round_significant(difference - half_width) * scale,
            "ci_high": round_significant(difference + half_width) * scale,
            "p_value": round_significant(found.differs),
            "q_value": round_significant(q_values(found.is_above, chosen)),
        }
    table = expert_frame(sums, columns)
    if resampled.num_subsamples:
        # Too few goals to halve are said once, of the risk differences.
        with suppress(RoutingError):
            table["stability"] = _stability(scaled, compared, resampled, threshold)
    return table.reindex(columns=SCORE_COLUMNS)


def _stability(
    sums: PerResponse, compared: Compared, resampled: Resampled, threshold: float
) -> pd.Series[float]:
    """How many halves of the goals select each expert, in the order of layer and expert."""
    found = selection_stability(
        sums,
        compared.is_unsafe,
        (),
        compared.batch_idx,
        threshold=threshold,
        top_k=resampled.top_k,
        layers=resampled.layers,
        estimator=compared.estimator,
        segment=compared.segment,
        num_subsamples=resampled.num_subsamples,
        seed=resampled.seed,
        clusters=compared.clusters,
        rank_within=resampled.rank_within,
    )
    return found.table["stability"]


def plain_values(sums: PerResponse, compared: Compared) -> pd.DataFrame:
    """Columns `layer, expert, value`: the score of every expert, without any uncertainty."""
    scale = scale_of(sums, compared.segment)
    difference = compared.contrast(_divided(sums, scale)).difference()
    return expert_frame(sums, {"value": round_significant(difference) * scale})


def values_per_batch(sums: PerResponse, compared: Compared) -> pd.DataFrame:
    """Columns `batch_idx, layer, expert, score`: the score within each mixed batch that has both classes.

    Args:
        sums: Of the N responses.
        compared: Which they are.
    """
    frames = []
    for batch in sorted({int(i) for i in compared.batch_idx if i != NO_BATCH}):
        rows = np.flatnonzero(compared.batch_idx == batch)
        own = replace(
            compared,
            is_unsafe=compared.is_unsafe[rows],
            batch_idx=compared.batch_idx[rows],
            clusters=compared.clusters[rows],
        )
        try:
            values = plain_values(sums.select(rows), own)
        except RoutingError:
            continue  # a class has no token, so there is nothing to compare
        values.insert(0, "batch_idx", batch)
        frames.append(values.rename(columns={"value": "score"}))
    columns = ["batch_idx", "layer", "expert", "score"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def scale_of(sums: PerResponse, segment: Segment) -> float:
    """The largest mean of any response and expert in a segment, but for its sign; 1 where all are 0."""
    total, num_tokens = sums.segment(segment)
    tokens = np.maximum(num_tokens, 1)[:, None, None]
    largest = float(np.abs(total / tokens).max(initial=0.0))
    return largest if largest > 0 else 1.0


def _divided(sums: PerResponse, scale: float) -> ResponseSums:
    total = sums.active if isinstance(sums, RoutingCounts) else sums.total
    return ResponseSums(total / scale, sums.num_tokens, sums.layer_indices)
