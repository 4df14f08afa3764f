"""Figures of both models side by side, for a terminal, the page and a model card: one wording for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from steermoe.measures import BY_NAME
from steermoe.measures.groups import parts_of_group_name
from steermoe.report.numbers import (
    corrected,
    is_number,
    number,
    p_of_change,
    percent,
    points,
    signed,
)

SIDES = ("base", "hardened", "paired")


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of both models.

    Attributes:
        name: What it is of, and what it is.
        before: The base model's, with its interval.
        after: The hardened model's.
        change: The change, with its interval where there is one.
        p: The probability of such a change by chance; a dash where it is not known.
        n: Samples, of both where they differ.
        source: Which judge, check or tool it comes from.
    """

    name: str
    before: str
    after: str
    change: str
    p: str
    n: str
    source: str = ""


def benchmark_lines(evaluation: Mapping[str, Any]) -> Iterator[Line]:
    """The categories of `builtin:capability` and the tasks of other tools, as `evaluation.json` holds them."""
    for name, measures in evaluation.get("benchmarks", {}).items():
        for measure, found in measures.items():
            sides = tuple(found.get(side, {}) for side in SIDES)
            known = BY_NAME.get(measure)
            label = name.removeprefix("builtin:") if known is not None else f"{name}, {measure}"
            source = str((sides[1] or sides[0]).get("source", ""))
            yield _line(label, sides, known is not None and known.unit == "share", source)


def measure_lines(evaluation: Mapping[str, Any]) -> Iterator[Line]:
    """Every measure that the registry knows, in its order."""
    for name, measure in BY_NAME.items():
        sides = tuple(evaluation.get(side, {}).get(name) or {} for side in SIDES)
        if any(is_number(side.get("value")) for side in sides):
            label = measure.title if measure.unit == "share" else f"{measure.title}, {measure.unit}"
            yield _line(label, sides, measure.unit == "share", "")


def markdown(evaluation: Mapping[str, Any], confidence: float) -> str:
    """All figures of both models as tables of a model card.

    Args:
        evaluation: What `evaluation.json` holds.
        confidence: Level of the intervals.
    """
    parts = [
        f"Figures on the run's {evaluation['split']} prompts, before and after, with {confidence:.0%} intervals; p is "
        "the exact probability of such a change by chance."
    ]
    of_sets = [
        (f"On the set {name}:", list(measure_lines(found)))
        for name, found in evaluation.get("sets", {}).items()
        if parts_of_group_name(name) is None  # by category they would be a page of their own
    ]
    for heading, lines in (
        ("", list(measure_lines(evaluation))),
        ("", list(benchmark_lines(evaluation))),
        *of_sets,
    ):
        if lines:
            parts += [heading] if heading else []
            rows = [(x.name, x.before, x.after, x.change, x.p, x.n) for x in lines]
            head = [("measure", "before", "after", "change", "p", "n"), ("---",) * 6]
            parts.append("\n".join(f"| {' | '.join(map(_cell, row))} |" for row in [*head, *rows]))
    return "\n\n".join(parts)


def _line(name: str, sides: tuple[Mapping[str, Any], ...], is_share: bool, source: str) -> Line:
    before, after, change = sides
    own = percent if is_share else number
    # What is a comparison by itself is no change of anything.
    changed = own if not before and not after else points if is_share else signed
    sizes = [str(side["n"]) for side in (before, after) if "n" in side]
    if not sizes and "n" in change:
        sizes = [str(change["n"])]
    return Line(
        name,
        _figure(before, own),
        _figure(after, own),
        _figure(change, changed),
        p_of_change(change),
        " / ".join(dict.fromkeys(sizes)),
        source,
    )


def _figure(metric: Mapping[str, Any], form: Any) -> str:
    """A figure with its interval, what could not be scored, and the corrected rate."""
    if not is_number(metric.get("value")):
        return ""
    text = str(form(metric["value"]))
    if is_number(metric.get("ci_low")) and is_number(metric.get("ci_high")):
        text += f" [{form(metric['ci_low'])}, {form(metric['ci_high'])}]"
    if metric.get("num_unscored"):
        text += f", {metric['num_unscored']} unscored"
    found = corrected(metric)
    return f"{text}, corrected {found}" if found else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
