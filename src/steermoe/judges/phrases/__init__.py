"""What refusals say, by language: regular expressions for text that `judges.folding` has folded.

Each is matched without case. What one language's phrases match, no answer in another should say by chance, since a
reply's language is not known beforehand and all are tried.
"""

from __future__ import annotations

from steermoe.judges.phrases.asian import CHINESE, JAPANESE, KOREAN
from steermoe.judges.phrases.english import (
    ANSWERS_ALL_THE_SAME,
    DECLINES,
    DEFLECTS,
    HINTS_OF_LECTURES,
    LECTURES,
    NOTHING_TO_REFUSE,
)
from steermoe.judges.phrases.european import FRENCH, GERMAN, PORTUGUESE, RUSSIAN, SPANISH
from steermoe.judges.phrases.southern import ARABIC, HINDI

DECLINES_BY_LANGUAGE: dict[str, tuple[str, ...]] = {
    "English": DECLINES,
    "Chinese": CHINESE,
    "Spanish": SPANISH,
    "French": FRENCH,
    "German": GERMAN,
    "Portuguese": PORTUGUESE,
    "Russian": RUSSIAN,
    "Arabic": ARABIC,
    "Hindi": HINDI,
    "Japanese": JAPANESE,
    "Korean": KOREAN,
}
"""Phrases that decline in the first person."""

__all__ = [
    "ANSWERS_ALL_THE_SAME",
    "DECLINES_BY_LANGUAGE",
    "DEFLECTS",
    "HINTS_OF_LECTURES",
    "LECTURES",
    "NOTHING_TO_REFUSE",
]
