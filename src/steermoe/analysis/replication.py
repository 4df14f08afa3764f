"""Replication: do held-out goals tell the same story?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from steermoe.analysis.estimators import Estimator
from steermoe.errors import RoutingError
from steermoe.records import Expert, FloatArray


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
        overlap_p_value: Probability that random sets overlap as much or more (hypergeometric; experts
            of one layer compete, so it is a guide rather than a test).
        shrinkage: Mean held-out difference of the selected experts, divided by their mean training
            difference. 1: nothing was lost; 0: the selection was luck.
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
    overlap_p_value: float
    shrinkage: float | None


def replicate(
    train: pd.DataFrame, heldout: pd.DataFrame, selected: Sequence[Expert]
) -> Replication:
    """Compare two risk tables of the same model, by their pooled differences.

    Held-out goals are in no mixed batches, so pooling is what can be done alike on both sides.

    Args:
        train: Risk table the selection was made from: columns `layer, expert, risk_diff_pooled`.
        heldout: Risk table of goals that the first one has not seen.
        selected: The experts that were selected; there may be none.

    Returns:
        The figures.

    Raises:
        RoutingError: If the tables do not hold the same experts, or a selected one is not among them.
    """
    keys, column = ["layer", "expert"], "risk_diff_pooled"
    both = train[[*keys, column]].merge(
        heldout[[*keys, column]], on=keys, suffixes=("", "_heldout"), validate="one_to_one"
    )
    if not len(both) == len(train) == len(heldout):
        raise RoutingError(
            f"the two risk tables share {len(both)} experts of {len(train)} and {len(heldout)}; "
            "compare tables of one model"
        )
    experts = list(zip(both["layer"], both["expert"], strict=True))
    if unknown := sorted(set(selected) - set(experts)):
        raise RoutingError(f"the risk tables have no expert {unknown[0]}; select from these tables")
    chosen = np.array([expert in set(selected) for expert in experts], dtype=np.bool_)
    number, size = len(both), int(chosen.sum())
    first = both[column].to_numpy(dtype=np.float64)
    second = both[f"{column}_heldout"].to_numpy(dtype=np.float64)
    top_again = both.sort_values(
        [f"{column}_heldout", *keys], ascending=[False, True, True], kind="stable"
    ).index[:size]
    overlap = int(chosen[top_again].sum())
    mean = float(first[chosen].mean()) if size else 0.0
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
        overlap_p_value=float(stats.hypergeom.sf(overlap - 1, number, size, size)),
        shrinkage=float(second[chosen].mean()) / mean if mean > 0 else None,
    )


def _correlation(first: FloatArray, second: FloatArray) -> float | None:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _sign_agreement(first: FloatArray, second: FloatArray) -> float | None:
    known = (first != 0) & (second != 0)
    return float(np.mean((first > 0)[known] == (second > 0)[known])) if known.any() else None
