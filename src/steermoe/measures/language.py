"""Whether a variant replies in another language than the base model does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from steermoe.measures.evidence import VariantEvidence
from steermoe.metrics import MeasureRow

LEAST_CERTAIN = 0.5
"""Probability of the likeliest language, below which that of a text counts as unknown: code, names, a word or two."""

SOURCE = "py3langid"


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=LEAST_CERTAIN
    )


def language_of(text: str) -> str | None:
    """The ISO 639 code of the language of a text; None where it cannot be told."""
    code, _ = _identifier().classify(text)
    return None if code in ("und", "zxx") else str(code)


@dataclass(frozen=True, slots=True)
class LanguageChanged:
    """The share of replies to harmless prompts whose language is not that of the other model's reply."""

    name: str = "language_changed"
    title: str = "Harmless replies in another language"
    meaning: str = (
        "share of replies to harmless requests whose language is not that of the base model's reply, of those that are "
        "both long enough to tell; lower is better"
    )
    unit: str = "share"
    better: str = "lower"

    def of(self, evidence: VariantEvidence) -> list[MeasureRow]:
        """The share, which is a comparison by itself; none where there is nothing to compare with."""
        from steermoe.analysis import (
            rates,  # its statistics library is slow to load, and words need none
        )

        reference = evidence.reference
        if reference is None or not evidence.own.texts or not evidence.is_compared:
            return []
        chosen = evidence.replied([i for i, p in evidence.prompts.items() if p.is_harmless])
        hits: list[bool | None] = []
        for i in chosen:
            own, before = (
                language_of(side.answers.get(i) or "") for side in (evidence.own, reference)
            )
            hits.append(None if own is None or before is None else own != before)
        arguments = evidence.intervals.arguments()
        metric = rates.rate(hits, evidence.goals(chosen), worse=True, **arguments)
        return [evidence.row(self.name, SOURCE, metric, evidence.reference_name)]
