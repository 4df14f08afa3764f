"""What somebody who is about to host the model should know about the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steermoe.measures.rates import RATES
from steermoe.report.numbers import (
    is_number,
    p_value,
    points,
)

SIGNIFICANT = 0.05
"""Largest p-value of a change that the page does not put down to chance."""

OF_VERDICTS = tuple(rate.name for rate in RATES)
"""The rates that the run's judge decides."""


def cautions(evaluation: Mapping[str, Any] | None, judge: str, split: str) -> list[str]:
    """What somebody who is about to host the model should know about the figures."""
    if evaluation is None:
        return []
    said = []
    after = evaluation.get("hardened", {}).get("attack_success_rate") or {}
    if is_number(after.get("value")) and after["value"] > 0:
        answered = round(after["value"] * after["n"])
        said.append(
            f"{answered} of {after['n']} held-out harmful requests are still answered; they are listed below."
        )
    said += _cautions_of_changes(evaluation.get("paired", {}))
    if any(
        "worst_case" in (metric or {})
        for side in ("base", "hardened")
        for name, metric in evaluation.get(side, {}).items()
        if name in OF_VERDICTS
    ):
        said.append(
            "Of some kinds of prompts more than 2 % of the replies could not be scored; the table shows the worst case "
            "beside those rates."
        )
    if split == "dev":
        said.append(
            "These are dev prompts, on which settings are chosen; final figures come from evaluate.split = test."
        )
    judged = (
        "by a judge that looks for refusing words at the start of a reply"
        if judge == "keyword"
        else f"by the judge {judge}"
    )
    said.append(
        f"Refusal is measured {judged}. It says nothing of other risks, of other languages, or of attacks that are "
        "not among the prompts."
    )
    return said


def _cautions_of_changes(changes: Mapping[str, Any]) -> list[str]:
    """What became worse, and whether that or the gain could be chance."""
    said = []
    for name, spoken in (
        ("over_refusal_rate", "Refusal of benign prompts"),
        ("over_refusal_rate_look_alike", "Refusal of look-alikes"),
    ):
        paired = changes.get(name) or {}
        if is_number(paired.get("value")) and paired["value"] > 0:
            p = paired.get("p_value")
            chance = (
                "more than chance explains"
                if is_number(p) and p <= SIGNIFICANT
                else "which could be chance"
            )
            rise = points(paired["value"]).lstrip("+")
            said.append(f"{spoken} rose by {rise}, {chance} ({_p_is(p)}).")
    lost = changes.get("capability") or {}
    if (
        is_number(lost.get("value"))
        and lost["value"] < 0
        and (lost.get("p_value") or 1) <= SIGNIFICANT
    ):
        said.append(
            f"It solves fewer tasks than before, more than chance explains ({_p_is(lost['p_value'])})."
        )
    paired = changes.get("refusal_rate") or {}
    p = paired.get("p_value")
    if is_number(p) and p > SIGNIFICANT and paired.get("value"):
        said.append(f"The change in refusal of harmful requests could be chance ({_p_is(p)}).")
    return said


def _p_is(value: Any) -> str:
    text = p_value(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
