"""When two prompts ask nearly the same: the measure that the shipped prompts are held to.

Three shares, because each misses something: all words, which sees the same sentence in another order; word trigrams,
which see the same phrase; and content words, which see the same request in other words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MOST_WORDS = 0.42
MOST_TRIGRAMS = 0.2
MOST_CONTENT = 0.5
"""Of the content words of the shorter prompt; the other two are Jaccard similarities."""


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


FORM = """
a an the and or but of to in on at for from with without by as is are was were be do does did how what
which who whom why when where that this these those it its i me my you your he she him his her they
their them we us our so can could would should will may must have has had not no up down out off over
into about after before than then more most while because if write explain give help want need tell
show describe suggest draft plan list create compose make way get
"""
FORM_WORDS = frozenset(words(FORM))
"""Words that carry a request's form, not its subject; what remains are content words."""


@dataclass(frozen=True)
class Features:
    words: frozenset[str]
    trigrams: frozenset[tuple[str, str, str]]
    content: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Features:
        tokens = words(text)
        trigrams = zip(tokens, tokens[1:], tokens[2:], strict=False)
        return cls(frozenset(tokens), frozenset(trigrams), frozenset(tokens) - FORM_WORDS)


def jaccard(one: frozenset[object], other: frozenset[object]) -> float:
    return len(one & other) / (len(one | other) or 1)


def are_near(one: Features, other: Features) -> bool:
    if not one.content & other.content and not one.trigrams & other.trigrams:
        return jaccard(one.words, other.words) > MOST_WORDS
    smaller = min(len(one.content), len(other.content))
    return (
        jaccard(one.words, other.words) > MOST_WORDS
        or jaccard(one.trigrams, other.trigrams) > MOST_TRIGRAMS
        or len(one.content & other.content) > MOST_CONTENT * smaller
    )


def near_duplicates(
    texts: Sequence[str], others: Sequence[str] | None = None
) -> Iterator[tuple[int, int]]:
    """Positions of texts that ask nearly the same: of two in `texts`, or of one there and one in `others`."""
    features = [Features.of(text) for text in texts]
    theirs = features if others is None else [Features.of(text) for text in others]
    for i, one in enumerate(features):
        for j in range(i + 1 if others is None else 0, len(theirs)):
            if are_near(one, theirs[j]):
                yield i, j
