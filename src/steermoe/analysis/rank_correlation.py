"""How far scores of experts rank them alike. Importing this loads no statistics: reading a run needs it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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
    found: npt.NDArray[np.float64] = np.full((len(names), len(names)), np.nan)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            both = wide[[first, second]].dropna().to_numpy()
            if len(both) > 1 and np.ptp(both[:, 0]) > 0 and np.ptp(both[:, -1]) > 0:
                ranks = pd.DataFrame(both).rank().to_numpy()
                found[i, j] = np.corrcoef(ranks[:, 0], ranks[:, -1])[0, 1]
    return pd.DataFrame(found, index=names, columns=names)
