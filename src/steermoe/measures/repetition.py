"""Whether replies go in circles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from steermoe.measures.evidence import Side, VariantEvidence
from steermoe.metrics import MeasureRow

SEQUENCE = 4
"""Tokens of a sequence."""

LEAST_DIFFERENT = 0.7
"""Share of the sequences of a reply that differ, below which it goes in circles."""


def goes_in_circles(tokens: Sequence[Hashable]) -> bool:
    """Whether fewer than 70 % of the four-token sequences of a reply differ.

    Every four tokens in a row are a sequence, so a reply of T tokens has T - 3. One of fewer than four tokens has none:
    it repeats nothing, and does not go in circles.
    """
    count = len(tokens) - SEQUENCE + 1
    if count < 1:
        return False
    different = len({tuple(tokens[start : start + SEQUENCE]) for start in range(count)})
    return different < LEAST_DIFFERENT * count


@dataclass(frozen=True, slots=True)
class RepetitionRate:
    """The share of replies to harmless prompts that go in circles.

    Sequences are of token ids; where those of a side were not kept, of words on both sides, and the source says so.
    """

    name: str = "repetition_rate"
    title: str = "Harmless replies in circles"
    meaning: str = "share of harmless replies with fewer than 70 % different four-token sequences; lower is better"
    unit: str = "share"
    better: str = "lower"

    def of(self, evidence: VariantEvidence) -> list[MeasureRow]:
        """The share and its change; none without replies."""
        chosen = evidence.replied([i for i, p in evidence.prompts.items() if p.is_harmless])
        if not evidence.own.texts:
            return []
        sides = [evidence.own]
        if evidence.reference is not None and evidence.is_compared:
            sides.append(evidence.reference)
        are_kept = all(i in side.token_ids for side in sides for i in chosen)

        def hits(side: Side) -> list[bool | None]:
            return [
                goes_in_circles(side.token_ids[i] if are_kept else side.texts[i].split())
                for i in chosen
            ]

        source = "tokens" if are_kept else "words"
        return evidence.shares(self.name, source, chosen, hits, worse=True)
