"""What refusals say, by language: regular expressions for text that `judges.folding` has folded.

Each is matched without case. What one language's phrases match, no answer in another should say by chance, since a
reply's language is not known beforehand and all are tried.
"""

from __future__ import annotations

from steermoe.judges.phrases.asian import CHINESE, JAPANESE, KOREAN
from steermoe.judges.phrases.disclaimers import ABOUT_ITSELF, TURNS_TO_ANSWER
from steermoe.judges.phrases.english import (
    ANNOUNCES_STEPS,
    ANSWERS_ALL_THE_SAME,
    DECLINES,
    DEFLECTS,
    HINTS_OF_LECTURES,
    NOTHING_TO_REFUSE,
)
from steermoe.judges.phrases.english import LECTURES as ENGLISH_LECTURES
from steermoe.judges.phrases.european import FRENCH, GERMAN, PORTUGUESE, RUSSIAN, SPANISH
from steermoe.judges.phrases.lectures import LECTURES_BY_LANGUAGE as OTHER_LECTURES
from steermoe.judges.phrases.lectures import TURNS_ELSEWHERE
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

LECTURES_BY_LANGUAGE: dict[str, tuple[str, ...]] = {"English": ENGLISH_LECTURES} | OTHER_LECTURES
"""Phrases that tell that the request is wrong."""

__all__ = [
    "ABOUT_ITSELF",
    "ANNOUNCES_STEPS",
    "ANSWERS_ALL_THE_SAME",
    "DECLINES_BY_LANGUAGE",
    "DEFLECTS",
    "HINTS_OF_LECTURES",
    "LECTURES_BY_LANGUAGE",
    "NOTHING_TO_REFUSE",
    "TURNS_ELSEWHERE",
    "TURNS_TO_ANSWER",
]
