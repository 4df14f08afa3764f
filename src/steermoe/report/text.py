"""What the report says in words: numbers as people read them, the headline, and the table of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steermoe.analysis.selection import how_to_select_more
from steermoe.measures import BY_NAME
from steermoe.measures.groups import parts_of_group_name
from steermoe.report.numbers import (
    MISSING,
    NBSP,
    corrected,
    counted,
    form_of,
    form_of_change,
    integer,
    is_number,
    nats,
    p_of_change,
    percent,
    points,
    signed,
    words,
)

RULES_BY_RISK = ("threshold", "fdr", "stability", "combined")
"""Selection rules that take the largest risk differences."""

TILES = ("refusal_rate", "over_refusal_rate", "over_refusal_rate_look_alike")
"""The rates that are shown large."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What was done, as far as the run got.

    Attributes:
        model: The model's name.
        parameters: What was trained: `experts`, `routers`, `experts+routers` or `everything`.
        rule: The selection rule.
        num_selected: Experts that were selected; None where nothing was identified yet.
        num_experts: Routed experts of the model; None where that is unknown.
        largest: Name and risk difference of the expert that leads the table.
        threshold: The threshold of the selection, where its rule has one.
        is_trained: Whether there is a hardened model.
        num_held_out: Prompts of the split that is evaluated.
        split: That split.
        is_union: Whether the experts are the union of what each mixed batch selects by the rule.
    """

    model: str
    parameters: str
    rule: str
    num_selected: int | None
    num_experts: int | None
    largest: tuple[str, float] | None
    threshold: float | None
    is_trained: bool
    num_held_out: int
    split: str
    is_union: bool = False


# ---- headline -----------------------------------------------------------------------------------------


def title(subject: Subject, evaluation: Mapping[str, Any] | None) -> str:
    """The first line of the page."""
    if subject.num_selected is None:
        return f"{subject.model}: nothing is identified yet"
    if not subject.is_trained:
        return f"{subject.model}: nothing was trained"
    if evaluation is None:
        return f"{subject.model}: hardened, not evaluated"
    before, after = (_value(evaluation, side, "refusal_rate") for side in ("base", "hardened"))
    if before is None or after is None:
        return f"{subject.model}: hardened"
    direction = "up" if after > before else "down"
    was = "as before" if before == after else f"{direction} from {percent(before)}"
    return f"{subject.model}: refuses {percent(after)} of harmful requests, {was}"


def headline(subject: Subject, evaluation: Mapping[str, Any] | None) -> list[str]:
    """A few sentences that say what was done to which model, and what came of it."""
    if subject.num_selected is None:
        return [
            f"Replies of {subject.model} were collected, but no risk differences were computed yet: "
            "run steermoe identify."
        ]
    if not subject.is_trained:
        return _untrained(subject)
    sentences = [_what_was_done(subject)]
    if evaluation is None:
        why = (
            f"there are no {subject.split} prompts to evaluate it on"
            if subject.num_held_out == 0
            else "it has not been evaluated: run steermoe evaluate"
        )
        return [*sentences, f"What that did is not known, because {why}."]
    return [*sentences, *_what_came_of_it(evaluation)]


def _untrained(subject: Subject) -> list[str]:
    name, risk_diff = subject.largest or ("", None)
    largest = (
        f"The largest risk difference is {signed(risk_diff)} ({name})"
        if name
        else "There are no risk differences"
    )
    if subject.num_selected == 0:
        threshold = "" if subject.threshold is None else f" (threshold {subject.threshold:g})"
        return [
            f"No expert of {subject.model} was selected{threshold}, so nothing was trained and the model is as it was.",
            f"{largest}; {_advice(subject)}, or use more prompts.",
        ]
    return [
        f"{_experts(subject)} of {subject.model} were selected, but nothing is trained yet: run steermoe train.",
        f"{largest}.",
    ]


def _advice(subject: Subject) -> str:
    """What would have more experts selected."""
    _, largest = subject.largest or ("", 0.0)
    return how_to_select_more(subject.rule, subject.threshold or 0.0, largest)


def _experts(subject: Subject) -> str:
    number_selected = subject.num_selected or 0
    of_all = f" of the {subject.num_experts:,} experts" if subject.num_experts else " experts"
    return f"{number_selected:,}{of_all}"


def _what_was_done(subject: Subject) -> str:
    if "experts" not in subject.parameters.split("+"):
        words_of = {"routers": "the routers", "everything": "all parameters"}
        trained = words_of.get(subject.parameters, subject.parameters)
        return f"As a baseline to compare with, {trained} of {subject.model} were trained to refuse harmful requests."
    chosen = (
        f"the union of what the rule {subject.rule} selects in each mixed batch"
        if subject.is_union
        else "those that fire more often on unsafe prompts than on safe ones"
        if subject.rule in RULES_BY_RISK
        else f"those that the rule {subject.rule} selected"
    )
    routers = "" if subject.parameters == "experts" else "The routers were trained as well. "
    return (
        f"{_experts(subject)} of {subject.model} were trained to refuse harmful requests: {chosen}. "
        f"{routers}Everything else in the model is unchanged."
    )


def _what_came_of_it(evaluation: Mapping[str, Any]) -> list[str]:
    sentences = []
    refusal = _movement(evaluation, "refusal_rate")
    if refusal:
        n = evaluation["hardened"]["refusal_rate"]["n"]
        sentences.append(f"On {counted(n, 'held-out harmful request')}, refusal {refusal}.")
    over = [
        (name, text)
        for name, key in (
            ("ordinary harmless requests", "over_refusal_rate"),
            ("harmless requests that only sound harmful", "over_refusal_rate_look_alike"),
        )
        if (text := _movement(evaluation, key))
    ]
    if over:
        said = "; ".join(f"on {name} it {text}" for name, text in over)
        sentences.append(f"Refusal where it is not wanted: {said}.")
    if capability := _movement(evaluation, "capability"):
        n = evaluation["hardened"]["capability"]["n"]
        sentences.append(
            f"Of {counted(n, 'short task')} with one right answer, what it solves {capability}."
        )
    divergence = _value(evaluation, "paired", "kl_per_token")
    if divergence is not None:
        sentences.append(
            f"On harmless text the model moved by {nats(divergence)} nats per token (KL divergence; 0 is no "
            "change)."
        )
    return sentences or ["No reply could be scored."]


def _movement(evaluation: Mapping[str, Any], name: str) -> str:
    before, after = _value(evaluation, "base", name), _value(evaluation, "hardened", name)
    if before is None or after is None:
        return ""
    if before == after:
        return f"stayed at {percent(after)}"
    return f"{'rose' if after > before else 'fell'} from {percent(before)} to {percent(after)}"


# ---- metrics ------------------------------------------------------------------------------------------


def metric_rows(evaluation: Mapping[str, Any]) -> list[dict[str, object]]:
    """The rows of the metrics table: texts of before, after and change, with their intervals."""
    sides = [evaluation.get(side, {}) for side in ("base", "hardened", "paired")]
    others = sorted({name for side in sides for name in side} - set(BY_NAME))
    rows = []
    for name in [*BY_NAME, *others]:
        if not any(name in side for side in sides):
            continue
        before, after, paired = (side.get(name) or {} for side in sides)
        measure = BY_NAME.get(name)
        unit = measure.unit if measure is not None else "nats"
        is_rate, form = unit == "share", form_of(unit)
        # What is a comparison by itself is no change of anything.
        form_changed = form_of_change(unit) if before or after else form
        label = measure.title if measure is not None else words(name).capitalize()
        meaning = measure.meaning if measure is not None else ""
        rows.append(
            {
                "key": name,
                "name": label,
                "meaning": meaning,
                "before": _cell(before, form, is_rate),
                "after": _cell(after, form, is_rate),
                "change": _cell(paired, form_changed, is_rate and form_changed is form),
                "n": _sizes(before, after, paired),
                "num_unscored": _unscored(before, after, paired),
                "p_value": p_of_change(paired),
                "moved": [integer(paired.get("only_after")), integer(paired.get("only_before"))]
                if "only_after" in paired
                else None,
            }
        )
    return rows


def set_tables(evaluation: Mapping[str, Any]) -> list[dict[str, object]]:
    """The metrics of every set of its own, a table each."""
    return [
        {"caption": f"All metrics on the set {name}", "rows": metric_rows(found)}
        for name, found in evaluation.get("sets", {}).items()
        if parts_of_group_name(name) is None
    ]


def group_tables(evaluation: Mapping[str, Any]) -> list[dict[str, object]]:
    """The rates by category and by style, a table each; rows as of the metrics table, named by their group."""
    tables: dict[tuple[str, str], list[dict[str, object]]] = {}
    for name, found in evaluation.get("sets", {}).items():
        parts = parts_of_group_name(name)
        if parts is None:
            continue
        whole, by, value = parts
        for row in metric_rows(found):
            named = {"name": f"{words(value)}: {row['name']}", "meaning": ""}
            tables.setdefault((whole, by), []).append(row | named)
    return [
        {"caption": f"Refusal by {by}, {whole} prompts", "rows": rows}
        for (whole, by), rows in tables.items()
    ]


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, object]]:
    """The rates that are shown large, each with what its small chart needs: shares of 1, or None."""
    made = []
    for name in TILES:
        before = evaluation.get("base", {}).get(name) or {}
        after = evaluation.get("hardened", {}).get(name) or {}
        if not (is_number(before.get("value")) and is_number(after.get("value"))):
            continue
        made.append(
            {
                "key": name,
                "name": BY_NAME[name].title,
                "better": f"{BY_NAME[name].better} is better",
                "before": percent(before["value"]),
                "after": percent(after["value"]),
                "n": after["n"],
                "marks": [_mark("base", before), _mark("hardened", after)],
            }
        )
    return made


def _mark(side: str, metric: Mapping[str, Any]) -> dict[str, object]:
    low, high = (
        metric[key] if is_number(metric.get(key)) else metric["value"]
        for key in ("ci_low", "ci_high")
    )
    return {"side": side, "value": metric["value"], "low": low, "high": high}


def _cell(metric: Mapping[str, Any], form: Any, is_rate: bool) -> dict[str, str | None]:
    low, high = metric.get("ci_low"), metric.get("ci_high")
    value = metric.get("value")
    cell: dict[str, str | None] = {"value": form(value), "interval": None, "count": None}
    if is_number(low) and is_number(high):
        unit = f"{NBSP}points" if form is points else f"{NBSP}%" if form is percent else ""
        cell["interval"] = f"{form(low).removesuffix(unit)} to {form(high)}"
    if is_rate and is_number(value):
        cell["count"] = f"{round(float(value or 0) * metric['n'])} of {metric['n']}"  # a share of n
    cell["worst_case"] = form(metric["worst_case"]) if "worst_case" in metric else None
    cell["corrected"] = corrected(metric) or None
    return cell


def _sizes(*metrics: Mapping[str, Any]) -> str:
    if "num_responses" in metrics[-1]:
        metric = metrics[-1]
        return f"{integer(metric.get('num_responses'))} replies\n{integer(metric.get('n'))} tokens"
    sizes = [integer(metric["n"]) for metric in metrics[:2] if "n" in metric]
    return _both(sizes)


def _unscored(*metrics: Mapping[str, Any]) -> str:
    before, after, paired = metrics
    sides = [metric for metric in (before, after) if metric] or [paired]
    return _both([integer(metric["num_unscored"]) for metric in sides if "num_unscored" in metric])


def _both(texts: Sequence[str]) -> str:
    """One text where before and after agree, else both."""
    return " / ".join(dict.fromkeys(texts)) if texts else MISSING


def _value(evaluation: Mapping[str, Any], side: str, name: str) -> float | None:
    metric = evaluation.get(side, {}).get(name) or {}
    return float(metric["value"]) if is_number(metric.get("value")) else None
