"""When two goals count as the same, and an order that depends on a seed but not on the rows' order."""

from __future__ import annotations

import hashlib
import re
import unicodedata

SENTENCE_ENDS = frozenset(".,;:!?'\"-\u2013\u2014\u2019\u201d\u00bb\u3002\u3001\u061f\u060c\u0964")
"""Marks that end a sentence or a quotation, in several scripts. `#` and `%` are not among them: C is not C#."""

_BEFORE = SENTENCE_ENDS | frozenset("\u00bf\u00a1*\u2022\u00b7>([{")
_AFTER = SENTENCE_ENDS | frozenset(")]}")
"""Marks around a goal: those that begin a sentence or an item of a list, and brackets, beside the ends."""

# Apostrophes, quotation marks and primes, of all scripts. NFKC makes a blank and an accent of a lone accent.
_QUOTES = re.compile(
    " [\u0300\u0301]|['\"`\u02b9\u02bb\u02bc\u2018-\u201f\u2032-\u2037\u2039\u203a\u00ab\u00bb"
    "\u300c-\u300f\u301d-\u301f\uff02\uff07]"
)
_DASHES = re.compile("[-\u058a\u05be\u2010-\u2015\u2043\u2212\u2e3a\u2e3b\u301c\ufe58\ufe63\uff0d]")
# What is no letter and cannot be seen: fillers of Hangul and Braille, and marks that choose a glyph's form.
_UNSEEN = re.compile(
    "[\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


def normalised_goal(goal: str) -> str:
    """A goal without what does not change its meaning.

    That is case, spacing, quotation marks, dashes, invisible characters, and punctuation at both ends.
    Compatibility forms are folded too (Unicode NFKC), so full-width letters equal the plain ones. What is left of
    a goal of such marks alone is the goal as it stands.
    """
    text = unicodedata.normalize("NFKC", goal).casefold()
    text = _DASHES.sub(" ", _QUOTES.sub("", _UNSEEN.sub("", _without_controls(text))))
    text = unicodedata.normalize("NFKC", text)  # what was apart may now be together
    return _stripped(" ".join(text.split())) or plain_form(goal)


def plain_form(goal: str) -> str:
    """A goal without case, spacing and punctuation at the end.

    Digests of published goals, and the order in which goals are dealt to splits, are made of this form, which
    must therefore never change; `normalised_goal` tells which goals are one.
    """
    folded = " ".join(unicodedata.normalize("NFKC", goal).casefold().split())
    end = len(folded)
    while end and (folded[end - 1] == " " or folded[end - 1] in SENTENCE_ENDS):
        end -= 1
    return folded[:end] or folded


def seeded_rank(seed: int, key: str) -> bytes:
    """Sorts keys into an order that looks random, and is the same for the same keys on any machine."""
    return hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()


def _without_controls(text: str) -> str:
    """The text without control and format characters, but for those that are white space."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter
        for letter in text
        if letter.isspace() or unicodedata.category(letter) not in ("Cc", "Cf")
    )


def _stripped(text: str) -> str:
    start, end = 0, len(text)
    while start < end and (text[start] == " " or text[start] in _BEFORE):
        start += 1
    while start < end and (text[end - 1] == " " or text[end - 1] in _AFTER):
        end -= 1
    return text[start:end]
