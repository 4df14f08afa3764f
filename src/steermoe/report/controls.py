"""The part of the page that asks whether the selection mattered: others, trained alike, beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steermoe.analysis.controls import ControlMeasure, Difference
from steermoe.measures import BY_NAME
from steermoe.report.numbers import (
    MISSING,
    counted,
    is_number,
    nats,
    number,
    percent,
    points,
    signed,
)
from steermoe.store.controls_file import ControlFigures

ENOUGH = 5
"""Random sets below which the page says that they are few."""


@dataclass(frozen=True, slots=True)
class ControlRow:
    """One measure, as it is printed."""

    name: str
    selected: str
    random: str
    beyond_random: str
    lowest: str
    beyond_lowest: str
    num_prompts: str


def control_rows(found: ControlFigures) -> list[ControlRow]:
    """One row a measure."""
    return [_row(name, measure) for name, measure in found.measures.items()]


def _row(name: str, found: ControlMeasure) -> ControlRow:
    is_rate = name not in BY_NAME or BY_NAME[name].unit == "share"
    shown = percent if is_rate else nats
    random = MISSING
    if found.random:
        random = f"{shown(float(np.mean(found.random)))} ({shown(min(found.random))} to {shown(max(found.random))})"
    return ControlRow(
        name=BY_NAME[name].title if name in BY_NAME else name,
        selected=shown(found.selected),
        random=random,
        beyond_random=_difference(found.beyond_random, is_rate),
        lowest=MISSING if found.lowest is None else shown(found.lowest),
        beyond_lowest=_difference(found.beyond_lowest, is_rate),
        num_prompts=str(found.num_prompts),
    )


def _difference(found: Difference, is_rate: bool) -> str:
    if found.value is None:
        return MISSING
    shown = points if is_rate else signed
    if not is_number(found.ci_low) or found.ci_low is None or found.ci_high is None:
        return shown(found.value)
    return f"{shown(found.value)} ({shown(found.ci_low)} to {shown(found.ci_high)})"


def controls_part(found: ControlFigures | None) -> Mapping[str, object]:
    """What the template shows of controls."""
    if found is None:
        return {"controls": [], "control_sets": "", "num_control_experts": 0, "few_controls": ""}
    random = sum(1 for one in found.sets if "random" in one.variant)
    overlap = [one.overlap for one in found.sets if "random" in one.variant]
    sets = f"{counted(random, 'random set')}"
    if overlap:
        sets += (
            f" (of whose experts {number(float(np.mean(overlap)), 1)} are selected too on average)"
        )
    if len(found.sets) > random:
        sets += " and the lowest"
    return {
        "controls": control_rows(found),
        "control_sets": sets,
        "num_control_experts": found.num_selected,
        "few_controls": str(random) if 0 < random < ENOUGH else "",
    }
