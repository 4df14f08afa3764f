"""Text in the form that phrases are matched in, with the way back to where each character stood."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

_PLAIN = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bc\u00b4`\u2032", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
)
_DROPPED = frozenset("*_#>|~\u0640")
"""Marks of Markdown, and the Arabic stroke that only stretches a word."""

_ARABIC_SIGNS = re.compile("[\u064b-\u0652\u0670]")
_MARKS_OF_STEPS = re.compile(r"(?m)^\s*(?:(?:\*\*)?\d{1,2}[.)]|step \d)|```", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text.

    Attributes:
        text: With straight quotes and plain forms of full-width characters, without Markdown's marks, invisible
            characters and Arabic vowel signs, and with one space for any white space.
        places: For each of its characters, the place in the text before.
    """

    text: str
    places: tuple[int, ...]

    def up_to(self, place: int) -> str:
        """The part that comes from before a place of the text before."""
        return self.text[: bisect_left(self.places, place)]


def fold(text: str) -> Folded:
    """Fold a text (NFC first, so places count composed characters)."""
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(unicodedata.normalize("NFC", text)):
        for plain in folded_character(character):
            if plain == " " and (not characters or characters[-1] == " "):
                continue
            characters.append(plain)
            places.append(place)
    return Folded("".join(characters), tuple(places))


@lru_cache(maxsize=8192)
def folded_character(character: str) -> str:
    """What one character becomes; empty where it is dropped."""
    if character in _DROPPED or _ARABIC_SIGNS.match(character):
        return ""
    if character.isspace():
        return " "
    if unicodedata.category(character) == "Cf":
        return ""
    return unicodedata.normalize("NFKC", character.translate(_PLAIN)).translate(_PLAIN)


def gives_steps(answer: str) -> bool:
    """Whether a text has a code block, or two numbered items and more: an answer with a warning has, a lecture not."""
    found = _MARKS_OF_STEPS.findall(answer)
    return len(found) >= 2
