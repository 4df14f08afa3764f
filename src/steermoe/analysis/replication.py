"""Replication: do held-out goals tell the same story?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from steermoe.analysis.bootstrap import blocks_of_draws, errors_and_freedom, half_widths
from steermoe.analysis.estimators import Contrast, Estimator, column_chunks
from steermoe.analysis.permutation import NullModel
from steermoe.errors import RoutingError
from steermoe.records import BoolArray, Expert, FloatArray, IntArray

KEYS, COLUMN = ["layer", "expert"], "risk_diff_pooled"
"""What names an expert in a risk table, and the difference that is compared."""

TIE = 1e-9
"""Two mean differences that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Replication:
    """Risk differences of the same experts on two disjoint sets of goals. None: undefined.

    Attributes:
        num_experts: Experts in both tables.
        num_selected: Experts that were selected, k.
        estimator: Whose differences are compared, on both sides.
        correlation: Pearson's, over all experts.
        rank_correlation: Spearman's, over all experts.
        sign_agreement: Share of all experts whose two differences have the same sign, of those where
            both are not 0; by chance one half.
        sign_agreement_selected: The same among the selected experts.
        overlap: Selected experts that are among the k of largest held-out difference.
        overlap_by_chance: Expected overlap of two random sets of k: k^2 / experts.
        overlap_when_relabelled: Mean overlap where the labels of held-out goals say nothing: busy experts are among the
            largest then too, so it may lie far above that of random sets.
        overlap_p_value: How often relabelled held-out goals overlap as much or more, `(1 + those) / (1 + draws)`. Of
            equal overlaps, the one with the larger mean difference of the selected experts is the larger.
        shrinkage: Mean held-out difference of the selected experts, divided by their mean training
            difference. 1: nothing was lost; 0: the selection was luck.
        shrinkage_ci_low: Lower end of its 95 % interval, over held-out goals. The selected experts and their training
            difference are taken as they are.
        shrinkage_ci_high: Upper end.
    """

    num_experts: int
    num_selected: int
    estimator: Estimator
    correlation: float | None
    rank_correlation: float | None
    sign_agreement: float | None
    sign_agreement_selected: float | None
    overlap: int
    overlap_by_chance: float
    overlap_when_relabelled: float | None
    overlap_p_value: float | None
    shrinkage: float | None
    shrinkage_ci_low: float | None
    shrinkage_ci_high: float | None


@dataclass(frozen=True, slots=True)
class Resampling:
    """Held-out responses to resample: how often, and of which.

    Attributes:
        contrast: The held-out responses, pooled over tokens; columns as the rows of the held-out table in the order of
            layer and expert.
        num_permutations: Relabellings behind the overlap's p-value; 0 for none.
        num_bootstrap: Draws behind the interval of the shrinkage; 0 for none.
        seed: Seeds both.
    """

    contrast: Contrast
    num_permutations: int
    num_bootstrap: int
    seed: int = 0


def replicate(
    train: pd.DataFrame,
    heldout: pd.DataFrame,
    selected: Sequence[Expert],
    resampling: Resampling | None = None,
) -> Replication:
    """Compare two risk tables of the same model, by their pooled differences.

    Held-out goals are in no mixed batches, so pooling is what can be done alike on both sides.

    Args:
        train: Risk table the selection was made from: columns `layer, expert, risk_diff_pooled`.
        heldout: Risk table of goals that the first one has not seen.
        selected: The experts that were selected; there may be none.
        resampling: The held-out responses, for the p-value and the interval; without them there are none.

    Returns:
        The figures.

    Raises:
        RoutingError: If the tables do not hold the same experts, a selected one is not among them, or the responses
            have other experts.
    """
    both = _side_by_side(train, heldout)
    experts = list(zip(both["layer"], both["expert"], strict=True))
    if unknown := sorted(set(selected) - set(experts)):
        raise RoutingError(f"the risk tables have no expert {unknown[0]}; select from these tables")
    chosen = np.array([expert in set(selected) for expert in experts], dtype=np.bool_)
    number, size = len(both), int(chosen.sum())
    first = both[COLUMN].to_numpy(dtype=np.float64)
    second = both[f"{COLUMN}_heldout"].to_numpy(dtype=np.float64)
    top_again = both.sort_values(
        [f"{COLUMN}_heldout", *KEYS], ascending=[False, True, True], kind="stable"
    ).index[:size]
    overlap = int(chosen[top_again].sum())
    mean = float(first[chosen].mean()) if size else 0.0
    shrinkage = float(second[chosen].mean()) / mean if mean > 0 else None
    drawn, error = None, None
    if resampling is not None and size:
        in_order = np.lexsort((both["expert"], both["layer"]))
        drawn, error = _resampled(resampling, chosen[in_order])
    low, high = (None, None) if shrinkage is None else _around(shrinkage, error, mean)
    return Replication(
        num_experts=number,
        num_selected=size,
        estimator="pooled",
        correlation=_correlation(first, second),
        rank_correlation=_correlation(stats.rankdata(first), stats.rankdata(second)),
        sign_agreement=_sign_agreement(first, second),
        sign_agreement_selected=_sign_agreement(first[chosen], second[chosen]),
        overlap=overlap,
        overlap_by_chance=size * size / number,
        overlap_when_relabelled=None if drawn is None else float(drawn.overlap.mean()),
        overlap_p_value=None if drawn is None else drawn.p_value(overlap, second[chosen].mean()),
        shrinkage=shrinkage,
        shrinkage_ci_low=low,
        shrinkage_ci_high=high,
    )


def _side_by_side(train: pd.DataFrame, heldout: pd.DataFrame) -> pd.DataFrame:
    """The pooled differences of both tables, one row an expert."""
    both = train[[*KEYS, COLUMN]].merge(
        heldout[[*KEYS, COLUMN]], on=KEYS, suffixes=("", "_heldout"), validate="one_to_one"
    )
    if not len(both) == len(train) == len(heldout):
        raise RoutingError(
            f"the two risk tables share {len(both)} experts of {len(train)} and {len(heldout)}; "
            "compare tables of one model"
        )
    return both


@dataclass(frozen=True, slots=True)
class Relabelled:
    """What became of k selected experts when labels were exchanged R times.

    Attributes:
        overlap: `(R,)` how many of them are among the k largest.
        mean: `(R,)` their mean difference.
    """

    overlap: IntArray
    mean: FloatArray

    def p_value(self, overlap: int, mean: float) -> float:
        """How often as much was drawn as was observed, the observed labels counting as one draw."""
        as_much = (self.overlap == overlap) & (self.mean >= mean - TIE)
        return float((1 + ((self.overlap > overlap) | as_much).sum()) / (1 + len(self.overlap)))


def relabel(
    contrast: Contrast, chosen: BoolArray, num_draws: int, generator: np.random.Generator
) -> Relabelled:
    """Exchange the labels of held-out responses and look at some experts again.

    Whole goals are flipped or permuted (`permutation.NullModel`), so experts that fire together stay together.

    Args:
        contrast: Responses of M experts.
        chosen: `(M,)` k of them.
        num_draws: R.
        generator: Draws the labels.
    """
    null, rate = NullModel(contrast), contrast.overall_rate()
    overlaps: list[IntArray] = []
    means: list[FloatArray] = []
    for number in blocks_of_draws(num_draws, max(len(contrast), contrast.num_experts)):
        relabelling = null.draw(number, generator)
        drawn = np.empty((number, contrast.num_experts))
        for columns in column_chunks(contrast.num_experts):
            values = contrast.values(columns)
            drawn[:, columns] = null.differences(values, rate[columns], relabelling)
        overlaps.append(_largest(drawn, int(chosen.sum()))[:, chosen].sum(axis=1))
        means.append(drawn[:, chosen].mean(axis=1))
    return Relabelled(np.concatenate(overlaps), np.concatenate(means))


def _largest(values: FloatArray, number: int) -> BoolArray:
    """The largest of each row; of equal ones, the first."""
    least = -np.partition(-values, number - 1, axis=1)[:, number - 1 : number]
    above, level = values > least, values == least
    left = number - above.sum(axis=1, keepdims=True)
    return np.asarray(above | (level & (np.cumsum(level, axis=1) <= left)))


def _resampled(
    resampling: Resampling, chosen: BoolArray
) -> tuple[Relabelled | None, tuple[float, float] | None]:
    """The chosen experts in relabelled held-out goals; error and degrees of freedom of their mean difference."""
    contrast = resampling.contrast
    if contrast.num_experts != len(chosen):
        raise RoutingError(
            f"the held-out responses have {contrast.num_experts} experts and the tables {len(chosen)}; "
            "compare those of one model"
        )
    for_null, for_bootstrap = map(
        np.random.default_rng, np.random.SeedSequence(resampling.seed).spawn(2)
    )
    drawn, error = None, None
    if resampling.num_permutations:
        drawn = relabel(contrast, chosen, resampling.num_permutations, for_null)
    if resampling.num_bootstrap:
        # As if the chosen experts were one, which fires as often as they do on average.
        together = contrast.source[:, chosen].mean(axis=1, keepdims=True)
        alone = replace(contrast, source=together)
        errors, freedom = errors_and_freedom(alone, resampling.num_bootstrap, for_bootstrap)
        error = (float(errors[0]), freedom)
    return drawn, error


def _around(
    shrinkage: float, error: tuple[float, float] | None, mean: float
) -> tuple[float | None, float | None]:
    """The interval of the shrinkage; none where nothing is known of the error."""
    if error is None or error[1] == 0:
        return None, None
    width = float(half_widths(np.array(error[0]), error[1], 0.95)) / mean
    return shrinkage - width, shrinkage + width


def _correlation(first: FloatArray, second: FloatArray) -> float | None:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _sign_agreement(first: FloatArray, second: FloatArray) -> float | None:
    known = (first != 0) & (second != 0)
    return float(np.mean((first > 0)[known] == (second > 0)[known])) if known.any() else None
