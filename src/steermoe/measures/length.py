"""How long replies are."""

from __future__ import annotations

from dataclasses import dataclass

from steermoe.measures.evidence import VariantEvidence
from steermoe.metrics import MeasureRow


@dataclass(frozen=True, slots=True)
class ReplyLength:
    """Mean tokens of a reply to a harmless prompt, reasoning and the end of turn included, as far as it was let run."""

    name: str = "reply_length"
    title: str = "Length of harmless replies"
    meaning: str = (
        "mean tokens of a reply to a harmless request, as far as it was let run; no way is better"
    )
    unit: str = "tokens"
    better: str = ""

    def of(self, evidence: VariantEvidence) -> list[MeasureRow]:
        """The mean and its change; none without replies."""
        if not evidence.own.texts:
            return []
        chosen = evidence.replied([i for i, p in evidence.prompts.items() if p.is_harmless])
        return evidence.means(
            self.name, "tokens", chosen, lambda side: [float(side.num_tokens[i]) for i in chosen]
        )
