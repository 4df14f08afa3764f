"""How far a risk difference can be trusted: standard errors, intervals, p-values and q-values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from steermoe.analysis.bootstrap import errors_and_freedom, half_widths
from steermoe.analysis.clusters import find_clusters
from steermoe.analysis.counts import PerResponse, RoutingCounts, Segment
from steermoe.analysis.estimators import Contrast, Estimator, build_contrast
from steermoe.analysis.permutation import p_values_of
from steermoe.analysis.shrinkage import shrink
from steermoe.errors import RoutingError
from steermoe.records import BoolArray, FloatArray

UNCERTAINTY_COLUMNS = [
    "risk_diff_se",
    "ci_low",
    "ci_high",
    "p_value",
    "p_higher",
    "p_above",
    "q_value",
    "estimator",
    "estimate",
    "degrees_of_freedom",
    "local_fdr",
    "shrunken",
]

DIGITS = 6
"""Significant digits kept: more than is known, and few enough that the order in which a matrix product
adds its terms leaves no trace in a file."""


def estimate_uncertainty(
    counts: RoutingCounts,
    is_unsafe: npt.ArrayLike,
    goals: Sequence[str],
    batch_idx: npt.ArrayLike,
    *,
    estimator: Estimator = "mean_over_batches",
    segment: Segment = "generation",
    num_permutations: int = 2000,
    num_bootstrap: int = 2000,
    seed: int = 0,
    clusters: npt.ArrayLike | None = None,
    layers: Iterable[int] | None = None,
    threshold: float = 0.0,
) -> pd.DataFrame:
    """Standard error, 95 % interval, p-values and q-value of every expert's risk difference.

    The response is the unit and goals are clusters. Errors are from a bootstrap over clusters; p-values
    are from relabelled clusters (`permutation.NullModel`). A q-value is of the question that a selection answers: is
    the difference greater than the threshold? It is Benjamini and Hochberg's over the one-sided p-values of all experts
    that may be selected, of whatever layer. Those that may not are a family of their own: neither family's q-values
    depend on the other.

    Args:
        counts: Counts of N safe and unsafe responses (no benign ones).
        is_unsafe: `(N,)`.
        goals: `(N,)` the goal of each response. Those of one goal are not independent.
        batch_idx: `(N,)` mixed batch of each response, -1 for none.
        estimator: Whose uncertainty: `mean_over_batches` belongs to the column `risk_diff`, `pooled` to
            `risk_diff_pooled`; also `mean_over_responses` and `equal_length`.
        segment: `generation` or `prompt`.
        num_permutations: Relabellings.
        num_bootstrap: Bootstrap draws.
        seed: Seeds both.
        clusters: `(N,)` integers to use instead of goals, as where look-alike pairs share a `pair_id`
            but not a goal (`clusters.find_clusters`).
        layers: Decoder layers to select from; by default all.
        threshold: What `p_above` and `q_value` compare the difference with; 0 where it is negative.

    Returns:
        One row an expert in the order of layer and expert, with `layer, expert` and
        `UNCERTAINTY_COLUMNS`; `estimate` is the risk difference by the estimator, `p_value` two-sided, `p_higher`
        that it is above 0, `p_above` that it is above the threshold; `local_fdr` and `shrunken` are
        `shrinkage`'s. Nothing is ever NaN:
        with one cluster of each kind the error is 1, the interval [-1, 1] and the p-value 1; an expert
        that is never active has error 0 and p-value 1.

    Raises:
        RoutingError: If the arrays do not fit, no class contrast is defined, or a number of draws is
            too small.
    """
    draws = _Draws(num_permutations, num_bootstrap, seed)
    if clusters is None and len(goals) != len(counts):
        raise RoutingError(f"{len(goals)} goals were given for {len(counts)} responses")
    groups = find_clusters(goals) if clusters is None else clusters
    contrast = build_contrast(counts, is_unsafe, batch_idx, groups, estimator, segment)
    columns = _columns(contrast, draws, max(threshold, 0.0), of_layers(counts, layers))
    return expert_frame(counts, columns)


@dataclass(frozen=True, slots=True)
class _Draws:
    """How many relabellings and bootstrap draws, and what seeds both."""

    num_permutations: int
    num_bootstrap: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_permutations", "num_bootstrap"):
            number = getattr(self, name)
            if number < 2:
                raise RoutingError(f"{name} is {number}; give at least 2")


def _columns(
    contrast: Contrast, draws: _Draws, threshold: float, chosen: BoolArray
) -> dict[str, FloatArray | str]:
    """`UNCERTAINTY_COLUMNS` of all experts `(L * E,)`, of which some may be selected."""
    # Each part has its own stream, so that one's number of draws does not change the other.
    for_bootstrap, for_null = map(
        np.random.default_rng, np.random.SeedSequence(draws.seed).spawn(2)
    )
    difference = contrast.difference()
    error, freedom = errors_and_freedom(contrast, draws.num_bootstrap, for_bootstrap)
    half_width = half_widths(error, freedom, 0.95)
    p_values = p_values_of(contrast, draws.num_permutations, for_null, threshold)
    low, high = difference - half_width, difference + half_width
    false_rate, left = np.ones_like(difference), np.zeros_like(difference)
    for family in (chosen, ~chosen):
        found = shrink(p_values.is_higher[family])
        false_rate[family], left[family] = found.local_fdr, found.left
    return {
        "risk_diff_se": round_significant(error),
        "ci_low": round_significant(np.clip(low, -1, 1)),
        "ci_high": round_significant(np.clip(high, -1, 1)),
        "p_value": round_significant(p_values.differs),
        "p_higher": round_significant(p_values.is_higher),
        "p_above": round_significant(p_values.is_above),
        "q_value": round_significant(q_values(p_values.is_above, chosen)),
        "estimator": contrast.estimator,
        "estimate": round_significant(difference),
        "degrees_of_freedom": round_significant(np.full_like(difference, freedom)),
        "local_fdr": round_significant(false_rate),
        "shrunken": round_significant(difference * left),
    }


def estimate_risk_diff(
    counts: RoutingCounts,
    is_unsafe: npt.ArrayLike,
    batch_idx: npt.ArrayLike,
    *,
    estimator: Estimator = "mean_over_batches",
    segment: Segment = "generation",
) -> pd.DataFrame:
    """The risk difference of every expert by any of the estimators.

    Args:
        counts: Counts of N safe and unsafe responses.
        is_unsafe: `(N,)`.
        batch_idx: `(N,)`, -1 for no batch.
        estimator: One of `estimators.ESTIMATORS`.
        segment: `generation` or `prompt`.

    Returns:
        Columns `layer, expert, risk_diff, estimator`, in the order of layer and expert.

    Raises:
        RoutingError: As `estimate_uncertainty`.
    """
    alone = np.arange(len(counts))
    contrast = build_contrast(counts, is_unsafe, batch_idx, alone, estimator, segment)
    return expert_frame(counts, {"risk_diff": contrast.difference(), "estimator": estimator})


def q_values(p_value: FloatArray, may_be_selected: BoolArray) -> FloatArray:
    """Benjamini and Hochberg's adjusted p-values, of either family of experts."""
    adjusted = np.empty_like(p_value)
    for family in (may_be_selected, ~may_be_selected):
        if family.any():
            adjusted[family] = stats.false_discovery_control(p_value[family])
    return adjusted


def expert_frame(counts: PerResponse, columns: dict[str, FloatArray | str]) -> pd.DataFrame:
    """A table of all experts from arrays `(L * E,)`, in the order of layer and expert."""
    layers = np.repeat(np.asarray(counts.layer_indices, dtype=np.int64), counts.num_experts)
    experts = np.tile(np.arange(counts.num_experts, dtype=np.int64), counts.num_layers)
    return pd.DataFrame({"layer": layers, "expert": experts, **columns})


def of_layers(counts: PerResponse, layers: Iterable[int] | None) -> BoolArray:
    """Which of all experts `(L * E,)`, in the order of layer and expert, are of these decoder layers; None: all."""
    chosen = counts.layer_indices if layers is None else list(layers)
    return np.repeat(np.isin(counts.layer_indices, chosen), counts.num_experts)


def round_significant(values: FloatArray, digits: int = DIGITS) -> FloatArray:
    """Round to a number of significant digits."""
    magnitude = np.floor(np.log10(np.where(values == 0, 1.0, np.abs(values))))
    # What is left of a sum that should be 0 is no digit worth keeping.
    places = np.minimum(digits - 1 - magnitude, 14.0)
    return np.asarray(np.rint(values * 10.0**places) / 10.0**places)
