"""How far scores of experts rank them alike. Importing this loads no statistics: reading a run needs it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def rank_correlations(scores: pd.DataFrame, layers: Sequence[int] | None = None) -> pd.DataFrame:
    """Spearman's correlation of every two scores, over all experts that have both.

    Args:
        scores: `scores.parquet`.
        layers: Decoder layers whose experts count; by default all.

    Returns:
        A square table, scores in their order; NaN where one of two scores is the same for all experts.
    """
    if layers is not None:
        scores = scores[scores["layer"].isin(list(layers))]
    names = list(dict.fromkeys(scores["score"]))
    wide = scores.pivot(index=["layer", "expert"], columns="score", values="value")[names]
    return wide.corr(method="spearman", min_periods=2).rename_axis(index=None, columns=None)
