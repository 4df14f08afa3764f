"""Confounds: does an expert fire on unsafe content, or on its topic, or on a jailbreak's format?

Unsafe prompts differ from safe ones in more than safety. Two contrasts of benign prompts show how much of
an expert's risk difference that alone can explain: look-alikes against plain benign prompts share the
harmful topics' words (`topic_diff`), and benign prompts in a jailbreak's format against plain ones share
the format (`format_diff`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from steermoe.analysis.counts import RoutingCounts, Segment
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.uncertainty import expert_frame, round_significant
from steermoe.errors import RoutingError
from steermoe.records import BoolArray, FloatArray

EXPLAINED_SHARE = 0.5
"""A confound explains an expert if its difference is at least this share of the risk difference."""


def confound_differences(
    counts: RoutingCounts,
    *,
    is_benign: npt.ArrayLike,
    is_look_alike: npt.ArrayLike,
    is_benign_in_format: npt.ArrayLike | None = None,
    segment: Segment = "generation",
) -> pd.DataFrame:
    """Contrasts of benign prompts with one another.

    Tokens are pooled, because these prompts share no mixed batches.

    Args:
        counts: Counts of N responses of any kind.
        is_benign: `(N,)` plain benign prompts: neither look-alikes nor in a jailbreak's format.
        is_look_alike: `(N,)` harmless prompts worded like harmful ones.
        is_benign_in_format: `(N,)` benign prompts in a jailbreak's format, if there are any.
        segment: `generation` or `prompt`.

    Returns:
        One row an expert in the order of layer and expert: `layer, expert`, and `topic_diff` and
        `format_diff` as far as there are responses with tokens on both sides of the contrast.

    Raises:
        RoutingError: If an array does not fit the number of responses, or two overlap.
    """
    plain = _mask("is_benign", is_benign, len(counts))
    exposed = {"topic_diff": _mask("is_look_alike", is_look_alike, len(counts))}
    if is_benign_in_format is not None:
        exposed["format_diff"] = _mask("is_benign_in_format", is_benign_in_format, len(counts))
    columns: dict[str, FloatArray | str] = {}
    _, num_tokens = counts.segment(segment)
    for name, mask in exposed.items():
        if (mask & plain).any():
            raise RoutingError(
                f"{int((mask & plain).sum())} responses are both plain and exposed for {name}; "
                "give each response one role"
            )
        if num_tokens[mask].sum() == 0 or num_tokens[plain].sum() == 0:
            continue
        chosen = np.flatnonzero(mask | plain)
        contrast = build_contrast(
            counts.select(chosen),
            mask[chosen],
            np.zeros(len(chosen)),
            np.arange(len(chosen)),
            "pooled",
            segment,
        )
        columns[name] = round_significant(contrast.difference())
    return expert_frame(counts, columns)


def flag_confounded(table: pd.DataFrame, threshold: float = 0.05) -> pd.Series:
    """Name what explains each expert's risk difference, if a confound does.

    Args:
        table: A risk table with `risk_diff` and at least one of `topic_diff`, `format_diff`.
        threshold: Experts of smaller risk difference are not flagged, nor are those without a positive
            one: there is nothing to explain.

    Returns:
        Text for each row: `topic`, `format`, `topic and format`, or empty. A confound explains an
        expert if its difference is at least half of the risk difference.
    """
    risky = (table["risk_diff"] >= threshold) & (table["risk_diff"] > 0)
    flags = pd.Series("", index=table.index, name="confounded_by", dtype="str")
    for column in ("topic_diff", "format_diff"):
        if column in table.columns:
            explained = risky & (table[column] >= EXPLAINED_SHARE * table["risk_diff"])
            flags[explained] += " and " + column.removesuffix("_diff")
    return flags.str.removeprefix(" and ")


def _mask(name: str, values: npt.ArrayLike, num_responses: int) -> BoolArray:
    mask = np.asarray(values, dtype=np.bool_)
    if mask.shape != (num_responses,):
        raise RoutingError(
            f"{name} has shape {mask.shape}, but there are {num_responses} responses; "
            "give one value a response"
        )
    return mask
