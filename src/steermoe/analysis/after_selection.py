"""What may be said of experts after they were selected for their differences.

Estimates of selected experts are too large and their ordinary intervals too short, because they were selected for being
large. The functions here take a risk table with its uncertainty and the experts that a rule selected from it, whatever
the rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from steermoe.analysis.bootstrap import half_widths
from steermoe.analysis.uncertainty import round_significant
from steermoe.errors import SelectionError
from steermoe.records import Expert

TOLERABLE_FALSE_SHARE = 0.25
"""Expected false share of a selection above which it is warned of."""

FALSE_COVERAGE_RATE = 0.05
"""Share of the selected experts' intervals that miss the truth, on average."""


def expected_false_share(table: pd.DataFrame, experts: Sequence[Expert]) -> float | None:
    """The share of some experts that is expected not to be higher in unsafe content at all.

    The mean of their local false discovery rates (Efron 2007).

    Args:
        table: A risk table.
        experts: Those that were selected from it.

    Returns:
        Between 0 and 1. None where no expert is given, or the table has no `local_fdr`: unknown.

    Raises:
        SelectionError: If an expert is not in the table.
    """
    if "local_fdr" not in table.columns or len(experts) == 0:
        return None
    return float(table["local_fdr"].to_numpy()[_are_among(table, experts)].mean())


def with_false_coverage_intervals(
    table: pd.DataFrame, experts: Sequence[Expert], num_candidates: int | None = None
) -> pd.DataFrame:
    """The table with intervals that allow for selection.

    R of M experts were selected; an interval of the level 1 - 0.05 R / M each misses the truth in at most 5 % of the
    selected experts on average (Benjamini and Yekutieli 2005, JASA 100:71-81).

    Args:
        table: A risk table with `estimate, risk_diff_se, degrees_of_freedom`.
        experts: Those that were selected; where there are none, the level is that of one.
        num_candidates: Experts that could be selected, M; by default all in the table.

    Returns:
        With the columns `fcr_low, fcr_high`, of all rows; they are meant for those selected. The table as it was where
        it has no uncertainty.

    Raises:
        SelectionError: If an expert is not in the table.
    """
    if "degrees_of_freedom" not in table.columns:
        return table
    number = max(1, int(_are_among(table, experts).sum()))
    level = 1 - FALSE_COVERAGE_RATE * number / (num_candidates or len(table))
    estimate = table["estimate"].to_numpy(dtype=np.float64)
    error = table["risk_diff_se"].to_numpy(dtype=np.float64)
    width = half_widths(error, float(table["degrees_of_freedom"].iloc[0]), level)
    return table.assign(
        fcr_low=round_significant(np.clip(estimate - width, -1, 1)),
        fcr_high=round_significant(np.clip(estimate + width, -1, 1)),
    )


def _are_among(table: pd.DataFrame, experts: Sequence[Expert]) -> np.ndarray:
    """Which rows are some of these experts, `(M,)`."""
    known = set(experts)
    keys = list(zip(table["layer"], table["expert"], strict=True))
    if missing := known - set(keys):
        raise SelectionError(
            f"the risk table has no expert {min(missing)}; pass the table it was selected from"
        )
    return np.array([key in known for key in keys], dtype=np.bool_)
