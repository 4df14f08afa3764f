"""How far a variant is from the base model on harmless text."""

from __future__ import annotations

from dataclasses import dataclass

from steermoe.measures.evidence import VariantEvidence
from steermoe.metrics import MeasureRow
from steermoe.records import Label

BASE_MODEL = "base"


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(base || variant) in nats, full vocabulary, on the base model's greedy replies to benign prompts.

    Attributes:
        name: As in `measures.parquet`.
        title: A few words.
        meaning: One sentence.
        leading: How many leading tokens of each reply count; None for all.
        unit: Nats.
        better: Lower.
    """

    name: str
    title: str
    meaning: str
    leading: int | None = None
    unit: str = "nats"
    better: str = "lower"

    def of(self, evidence: VariantEvidence) -> list[MeasureRow]:
        """The mean over tokens; none of the base model, which is fed no reply of its own."""
        if evidence.own.scored is None:
            return []
        benign = [i for i, p in evidence.prompts.items() if p.label is Label.BENIGN]
        values = evidence.values_of(evidence.own, "kl", benign)
        metric = evidence.per_token({i: found[: self.leading] for i, found in values.items()})
        source = f"teacher_forced{evidence.tokens}"
        return [
            MeasureRow(
                evidence.variant,
                evidence.set,
                self.name,
                metric,
                source,
                BASE_MODEL,
            )
        ]


DIVERGENCES = (
    Divergence(
        "kl_per_token",
        "Change on harmless text",
        "KL divergence from the base model in nats per token, on replies to benign prompts; lower is better",
    ),
    Divergence(
        "kl_first_token",
        "Change of the first token",
        "the same of the first token of each reply alone, where a refusal begins; lower is better",
        leading=1,
    ),
)
