"""The parts of the page that say how far a selection can be trusted, and what hangs on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steermoe.analysis.ablation_figures import AblationFigures, RandomEffects, SetFigures
from steermoe.measures import MEASURES
from steermoe.report.numbers import (
    MISSING,
    is_number,
    number,
    p_value,
    percent,
    points,
    signed,
    words,
)
from steermoe.store.state import Figures

CONFOUNDS = {
    "topic": "the topic: harmless look-alikes differ from other harmless prompts as much",
    "format": "the format of a jailbreak: harmless requests in it differ as much",
    "length": "the lengths of replies: at equal length or equal place the difference is half as large or less",
    "refusal_text": "the words of refusals: among replies of one verdict the difference is half as large or less",
}
"""What else may explain a risk difference, in words."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what, how much, and what that means."""

    name: str
    value: str
    meaning: str


def trust_rows(
    identified: Figures, confounded: Mapping[str, int], is_union: bool = False
) -> list[Row]:
    """What is known of a selection beside its differences.

    Args:
        identified: What identification told of its work.
        confounded: How many of the selected experts each other explanation would account for.
        is_union: Whether the experts that are trained are the union of the batches' own selections.
    """
    rows: list[Row] = []
    of_union = "_of_union" if is_union else ""
    if f"expected_false_share{of_union}" in identified:
        rows.append(
            Row(
                "Expected to be false among the selected",
                percent(identified[f"expected_false_share{of_union}"]),
                "experts that are not higher on unsafe content at all, as the p-values of all experts tell",
            )
        )
    rows += _fixed_before(identified)
    if "stability_error_bound" in identified:
        rows.append(
            Row(
                "Selected by most random halves of the goals",
                f"{identified['num_stable_experts']} of {identified['num_candidates']}",
                f"in {percent(identified['min_stability'])} of the halves or more; at most "
                f"{number(identified['stability_error_bound'], 1)} of them are expected to be no better than chance",
            )
        )
    rows += _replicated(identified.get("replication") or {})
    rows += [
        Row(f"May be explained by {name.replace('_', ' ')}", str(count), CONFOUNDS.get(name, ""))
        for name, count in confounded.items()
    ]
    return rows


def _fixed_before(identified: Figures) -> list[Row]:
    """Which estimate was chosen before anything was computed, the others beside it, and whether p-values hold."""
    rows: list[Row] = []
    others = identified.get("sensitivity") or {}
    if "fixed_before" in identified and others:
        fixed = identified["fixed_before"]
        rows.append(
            Row(
                "Mean difference of the selected",
                signed(others["risk_diff"]["mean"]),
                f"estimate {words(fixed['estimator'])}, segment {fixed['segment']}: fixed before; "
                "q-values are theirs alone",
            )
        )
        rows += [
            Row(
                f"The same, {words(name.removeprefix('by_'))}",
                signed(value["mean"]),
                f"sensitivity, without q-values; positive for {percent(value['share_positive'])} of them",
            )
            for name, value in others.items()
            if name != "risk_diff"
        ]
    spread = identified.get("spread")
    if spread:
        borne = whether_p_values_bear(spread["is_too_skewed"])
        rows.append(
            Row(
                "Variance of unsafe goals, over that of safe ones",
                number(spread["variance_ratio"], 2),
                f"skewness of the differences {signed(spread['skewness'])}, {borne}",
            )
        )
    return rows


def whether_p_values_bear(is_too_skewed: bool) -> str:
    """The end of a sentence on how unlike the classes' spreads are."""
    return "more than p-values bear" if is_too_skewed else "which p-values bear"


def _replicated(found: Mapping[str, Any]) -> list[Row]:
    if not found:
        return []
    goals = " and ".join(found.get("splits", ())) or "held-out"
    interval = ""
    if is_number(found.get("shrinkage_ci_low")):
        interval = (
            f" [{number(found['shrinkage_ci_low'], 2)}, {number(found['shrinkage_ci_high'], 2)}]"
        )
    by_labels = p_value(found.get("overlap_p_value"))
    return [
        Row(
            f"Risk difference on {goals} goals, over that on training goals",
            number(found.get("shrinkage"), 2) + interval,
            "of the selected experts: 1 is no loss, 0 is luck",
        ),
        Row(
            "Correlation of the two over all experts",
            number(found.get("correlation"), 2),
            f"of ranks {number(found.get('rank_correlation'), 2)}",
        ),
        Row(
            f"Among the {found.get('num_selected')} largest on {goals} goals again",
            str(found.get("overlap")),
            f"by chance {number(found.get('overlap_by_chance'), 1)}; p {by_labels}, by exchanging labels",
        ),
    ]


def ablation_tables(found: AblationFigures | None) -> list[dict[str, object]]:
    """What changes while experts are switched off, a table for each model."""
    if found is None or "models" not in found:
        return []
    tables: list[dict[str, object]] = []
    is_ranked = bool(possible_sets(found))  # older runs drew sets that no rank holds for
    for model, figures in found["models"].items():
        rows = []
        for measure in MEASURES:
            if measure.name not in figures:
                continue
            of_measure, is_rate = figures[measure.name], measure.unit == "share"
            rows.append(
                {
                    "name": measure.title,
                    "intact": _value(of_measure["intact"]["value"], is_rate),
                    "selected": _effect(of_measure.get("selected"), is_rate),
                    "lowest": _effect(of_measure.get("lowest"), is_rate),
                    "random": _drawn(of_measure["random"], is_rate),
                    "p_value": _rank(of_measure.get("selected")) if is_ranked else MISSING,
                }
            )
        tables.append({"model": model, "rows": rows})
    return tables


def possible_sets(found: AblationFigures | None) -> str:
    """How many sets the selected one could as well have been, itself among them; empty where that is unknown."""
    known = found.get("random", {}).get("num_possible_sets") if found else None
    return f"{known:.4g}" if is_number(known) else ""


def _value(value: Any, is_rate: bool) -> str:
    return percent(value) if is_rate else number(value)


def _change(value: Any, is_rate: bool) -> str:
    return points(value) if is_rate else signed(value)


def _effect(found: SetFigures | None, is_rate: bool) -> str:
    if found is None:
        return MISSING
    effect = found["effect"]
    if not is_number(effect["ci_low"]) or not is_number(effect["value"]):
        return _change(effect["value"], is_rate)
    low, high = (_change(end, is_rate) for end in (effect["ci_low"], effect["ci_high"]))
    return f"{_change(effect['value'], is_rate)} ({low} to {high})"


def _drawn(found: RandomEffects, is_rate: bool) -> str:
    if not found["num_draws"]:
        return MISSING
    mean, least, largest = (
        _change(value, is_rate)
        for value in (found["mean_effect"], found["least_effect"], found["largest_effect"])
    )
    return f"{mean} ({least} to {largest}), {found['num_draws']} sets"


def _rank(found: SetFigures | None) -> str:
    position = found.get("among_random") if found is not None else None
    return p_value(position["p_value"]) if position else MISSING
