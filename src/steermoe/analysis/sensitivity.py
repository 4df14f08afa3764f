"""The same question by other estimators and in the other segment: how much hangs on a choice made before?

One estimator and one segment are fixed by the settings before anything is computed, and the p-values, q-values and the
selection are theirs alone. The others are shown beside without any: whoever looks for a q-value in four estimators
finds one three times as often as it says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from steermoe.analysis.counts import SEGMENTS, RoutingCounts, Segment
from steermoe.analysis.estimators import ESTIMATORS, Estimator, build_contrast
from steermoe.analysis.uncertainty import expert_frame, round_significant
from steermoe.errors import RoutingError
from steermoe.records import Expert

PREFIXES = ("by_", "in_")
"""Columns of other estimators (`by_pooled`) and of the other segment (`in_prompt`)."""


def other_estimates(
    counts: RoutingCounts,
    is_unsafe: npt.ArrayLike,
    batch_idx: npt.ArrayLike,
    *,
    estimator: Estimator,
    segment: Segment,
) -> pd.DataFrame:
    """The risk difference by each estimator that was not chosen, and in the segment that was not.

    Args:
        counts: Counts of N safe and unsafe responses.
        is_unsafe: `(N,)`.
        batch_idx: `(N,)`, -1 for none.
        estimator: The one that was fixed.
        segment: The one that was fixed.

    Returns:
        In the order of layer and expert: `layer, expert`, `by_<estimator>` in the same segment and `in_<segment>` by
        the same estimator; those that are undefined here are left out.
    """
    asked: dict[str, tuple[Estimator, Segment]] = {}
    asked |= {f"by_{name}": (name, segment) for name in ESTIMATORS if name != estimator}
    asked |= {f"in_{name}": (estimator, name) for name in SEGMENTS if name != segment}
    columns: dict[str, npt.NDArray[np.float64] | str] = {}
    alone = np.arange(len(counts))
    for column, (by, inside) in asked.items():
        try:
            contrast = build_contrast(counts, is_unsafe, batch_idx, alone, by, inside)
        except RoutingError:
            continue
        columns[column] = round_significant(contrast.difference())
    return expert_frame(counts, columns)


def sensitivity_of(table: pd.DataFrame, experts: Sequence[Expert]) -> dict[str, dict[str, float]]:
    """What the other estimates say of the selected experts.

    Args:
        table: A risk table with columns of `other_estimates`.
        experts: Those that were selected from it.

    Returns:
        For each such column, and for `risk_diff`: `mean` of the selected experts, and `share_positive` of them. Empty
        where none was selected.
    """
    chosen = pd.MultiIndex.from_frame(table[["layer", "expert"]]).isin(list(experts))
    if not experts or not chosen.any():
        return {}
    columns = ["risk_diff", *(name for name in table.columns if name.startswith(PREFIXES))]
    found = {}
    for column in columns:
        values = table.loc[chosen, column]
        found[column] = {
            "mean": float(round_significant(np.array([values.mean()]))[0]),
            "share_positive": float((values > 0).mean()),
        }
    return found
