"""Confounds: does an expert fire on unsafe content, or on its topic, a jailbreak's format, length, or refusals?

Unsafe prompts differ from safe ones in more than safety. Two contrasts of benign prompts show how much of
an expert's risk difference that alone can explain: look-alikes against plain benign prompts share the
harmful topics' words (`topic_diff`), and benign prompts in a jailbreak's format against plain ones share
the format (`format_diff`).

Replies differ in more than safety too. Three other columns are what disappears of the difference when only replies
of equal length are compared (`length_diff`), only tokens at equal positions (`position_diff`), or only replies with
the same verdict (`refusal_text_diff`). The last comparison is of all replies, whatever filter the pairs have passed:
choosing pairs by what became of them makes a difference between the sides, but none between replies with one verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from steermoe.analysis.counts import RoutingCounts, Segment
from steermoe.analysis.estimators import Contrast, build_contrast
from steermoe.analysis.linear import Linear, errors_of, higher_p_values
from steermoe.analysis.uncertainty import expert_frame, q_values, round_significant
from steermoe.errors import RoutingError
from steermoe.records import NO_BATCH, BoolArray, FloatArray

EXPLAINED_SHARE = 0.5
"""A confound explains an expert if its difference is at least this share of the risk difference."""

CONFOUND_OF = {
    "topic_diff": "topic",
    "format_diff": "format",
    "length_diff": "length",
    "position_diff": "length",
    "refusal_text_diff": "refusal_text",
}
"""What each column speaks for. Unequal positions are another face of unequal length."""

MATCHED = {
    "length_diff": "at_equal_length",
    "position_diff": "at_equal_position",
    "refusal_text_diff": "at_same_verdict",
}
"""What is left of the risk difference where the replies are alike: the estimate less the column."""


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
    contrasts = confound_contrasts(
        counts,
        np.arange(len(counts)),
        is_benign=is_benign,
        is_look_alike=is_look_alike,
        is_benign_in_format=is_benign_in_format,
        segment=segment,
    )
    return expert_frame(
        counts, {name: round_significant(found.difference()) for name, found in contrasts.items()}
    )


def confound_contrasts(
    counts: RoutingCounts,
    clusters: npt.ArrayLike,
    *,
    is_benign: npt.ArrayLike,
    is_look_alike: npt.ArrayLike,
    is_benign_in_format: npt.ArrayLike | None = None,
    segment: Segment = "generation",
) -> dict[str, Contrast]:
    """The contrasts behind `confound_differences`, whose arguments these are, by column.

    `clusters` are those of the N responses; `Contrast.rows` are positions among them.
    """
    plain = _mask("is_benign", is_benign, len(counts))
    exposed = {"topic_diff": _mask("is_look_alike", is_look_alike, len(counts))}
    if is_benign_in_format is not None:
        exposed["format_diff"] = _mask("is_benign_in_format", is_benign_in_format, len(counts))
    found: dict[str, Contrast] = {}
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
            np.asarray(clusters)[chosen],
            "pooled",
            segment,
        )
        found[name] = replace(contrast, rows=chosen[contrast.rows])
    return found


def within_strata(
    counts: RoutingCounts,
    is_unsafe: npt.ArrayLike,
    strata: npt.ArrayLike,
    clusters: npt.ArrayLike,
    segment: Segment = "generation",
) -> Contrast:
    """Compare responses of one stratum only with one another, such as those that have the same verdict.

    Each response's frequency counts alike; the mean over strata is weighted by `U S / (U + S)` responses, as
    `equal_length` weights its strata of like length.

    Args:
        counts: Counts of N safe and unsafe responses.
        is_unsafe: `(N,)`.
        strata: `(N,)` integers; negative for responses that are left out.
        clusters: `(N,)`.
        segment: `generation` or `prompt`.

    Raises:
        RoutingError: If no stratum has responses with tokens of both classes.
    """
    stratum = np.asarray(strata, dtype=np.int64)
    # A batch is a stratum; only the weights are those of like lengths.
    contrast = build_contrast(
        counts,
        is_unsafe,
        np.where(stratum < 0, NO_BATCH, stratum),
        clusters,
        "mean_over_batches",
        segment,
    )
    return replace(
        contrast,
        scale=1 / contrast.tokens,
        size=np.ones(len(contrast)),
        estimator="equal_length",
    )


def explain(
    default: Linear,
    contrasts: Mapping[str, Linear],
    matched: Mapping[str, Linear],
    may_be_selected: BoolArray,
) -> dict[str, FloatArray | str]:
    """How much of each expert's risk difference each confound can make, and how certain that is.

    Args:
        default: The estimate in question.
        contrasts: By column (`topic_diff`, `format_diff`): what the confound alone makes.
        matched: By column (`length_diff`, ..): the estimate where replies are alike in it.
        may_be_selected: `(L * E,)` the family of the q-values.

    Returns:
        Arrays `(L * E,)`: for each column `X_diff` its standard error `X_diff_se`; `X_diff_q`, one-sided for a
        difference above 0; and `X_margin_se`, the error of `X_diff - estimate / 2`, by whose sign an expert is flagged.
        For each matched estimate also itself, its error and its q-value (`at_equal_length`, `at_equal_length_se`, ..).
    """
    terms = {"default": default, **contrasts, **matched}
    sums: dict[str, dict[str, float]] = {}
    for name in contrasts:
        sums[name] = {name: 1.0}
        sums[f"{name} margin"] = {name: 1.0, "default": -EXPLAINED_SHARE}
    for name in matched:
        sums[name] = {"default": 1.0, name: -1.0}
        sums[f"{name} margin"] = {"default": 1 - EXPLAINED_SHARE, name: -1.0}
        sums[MATCHED[name]] = {name: 1.0}
    errors = errors_of(terms, sums) if len(terms) > 1 else {}
    estimates = {name: term.difference() for name, term in terms.items()}
    columns: dict[str, FloatArray | str] = {}

    def add(column: str, total: Mapping[str, float]) -> None:
        values = np.sum([weight * estimates[term] for term, weight in total.items()], axis=0)
        clusters = min(terms[term].least_clusters for term in total)
        p_value = higher_p_values(values, errors[column], clusters)
        columns[column] = round_significant(values)
        columns[f"{column}_se"] = round_significant(errors[column])
        columns[f"{column}_q"] = round_significant(q_values(p_value, may_be_selected))

    for name in (*contrasts, *matched):
        add(name, sums[name])
        margin = f"{name.removesuffix('_diff')}_margin_se"
        columns[margin] = round_significant(errors[f"{name} margin"])
        if name in matched:
            add(MATCHED[name], sums[MATCHED[name]])
    return columns


def flag_confounded(table: pd.DataFrame, threshold: float = 0.05) -> pd.Series:
    """Name what explains each expert's risk difference, if a confound does.

    Args:
        table: A risk table with `risk_diff` and at least one of the columns of `CONFOUND_OF`. What disappears in a
            matched comparison is measured by the table's `estimate`, where it has one.
        threshold: Experts of smaller risk difference are not flagged, nor are those without a positive
            one: there is nothing to explain.

    Returns:
        Text for each row: `topic`, `format`, `length`, `refusal_text`, several joined by `and`, or empty. A confound
        explains an expert if its difference is at least half of the risk difference.
    """
    risky = (table["risk_diff"] >= threshold) & (table["risk_diff"] > 0)
    explained: dict[str, pd.Series] = {}
    for column, confound in CONFOUND_OF.items():
        if column in table.columns:
            whole = "risk_diff" if column not in MATCHED else _estimate_of(table)
            flagged = risky & (table[column] >= EXPLAINED_SHARE * table[whole])
            explained[confound] = explained.get(confound, False) | flagged
    flags = pd.Series("", index=table.index, name="confounded_by", dtype="str")
    for confound, flagged in explained.items():
        flags[flagged] += " and " + confound
    return flags.str.removeprefix(" and ")


def _estimate_of(table: pd.DataFrame) -> str:
    return "estimate" if "estimate" in table.columns else "risk_diff"


def _mask(name: str, values: npt.ArrayLike, num_responses: int) -> BoolArray:
    mask = np.asarray(values, dtype=np.bool_)
    if mask.shape != (num_responses,):
        raise RoutingError(
            f"{name} has shape {mask.shape}, but there are {num_responses} responses; "
            "give one value a response"
        )
    return mask
