"""The rates of refusal by kind of request: by category, and by the style in which it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from steermoe.measures.evidence import VariantEvidence
from steermoe.measures.rates import RATES
from steermoe.metrics import MeasureRow
from steermoe.records import JAILBREAK_FORMAT, LOOK_ALIKE, PLAIN_GOAL, Label, Prompt

OF_GROUPS = ("refusal_rate", "over_refusal_rate", "over_refusal_rate_look_alike")

NOT_A_KIND = (LOOK_ALIKE, PLAIN_GOAL, JAILBREAK_FORMAT)
"""Categories that say what a prompt is to its pair, and not what it asks for."""


def group_name(whole: str, by: str, value: str) -> str:
    """The name of a part of a set of prompts, in `measures.parquet`."""
    return f"{whole}/{by}={value}"


def parts_of_group_name(name: str) -> tuple[str, str, str] | None:
    """The whole set, what it was divided by, and the value of that; None of a whole set's name."""
    whole, _, rest = name.partition("/")
    by, equals, value = rest.partition("=")
    return (whole, by, value) if equals else None


@dataclass(frozen=True, slots=True)
class RatesByGroup:
    """The rates of refusal over the prompts of one category, or of one style, each group a set of its own.

    Of one that all prompts are in, nothing is said: it is the whole.

    Attributes:
        name: Of the family; the rows have the names of the rates.
        title: A few words.
        meaning: One sentence.
        by: The field of prompts that divides them.
        unit: A share.
        better: As each rate says.
    """

    name: str
    title: str
    meaning: str
    by: str
    unit: str = "share"
    better: str = ""

    def of(self, evidence: VariantEvidence) -> list[MeasureRow]:
        """The rows of every rate and group; none without replies, or where prompts are not divided."""
        rows: list[MeasureRow] = []
        for value, prompts in self._groups(evidence):
            part = replace(evidence, set=group_name(evidence.set, self.by, value), prompts=prompts)
            for rate in RATES:
                if rate.name in OF_GROUPS and any(map(rate.counts, prompts.values())):
                    rows += rate.of(part)
        return rows

    def _groups(self, evidence: VariantEvidence) -> Iterator[tuple[str, dict[str, Prompt]]]:
        """Every value and its prompts, in the order of the alphabet."""
        values = {i: self._value(prompt) for i, prompt in evidence.prompts.items()}
        known = sorted({value for value in values.values() if value})
        if len({values[i] for i in values}) < 2:
            return
        for value in known:
            yield value, {i: evidence.prompts[i] for i, found in values.items() if found == value}

    def _value(self, prompt: Prompt) -> str:
        value = str(prompt[self.by])
        if self.by == "category" and (value in NOT_A_KIND or prompt.label is Label.SAFE):
            return ""
        return value


BY_GROUP = (
    RatesByGroup(
        "refusal_rate_by_category",
        "Refusal by category",
        "the rates of refusal over the prompts of each category",
        "category",
    ),
    RatesByGroup(
        "refusal_rate_by_style",
        "Refusal by style",
        "the rates of refusal over the prompts of each style of asking",
        "style",
    ),
)
