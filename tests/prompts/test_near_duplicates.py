"""The measure of near-duplicates, on pairs where a reader sees what it should say."""

from __future__ import annotations

import pytest

from near_duplicates import Features, are_near, near_duplicates


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        # Four of six words: 4 / 8.
        ("red apples fall off old trees", "red apples fall off steep hills", True),
        # Content words {oats, soaked, night} and {oats, soaked, birds, ...}: two of three.
        ("oats soaked at night", "how birds like it when oats are soaked by somebody", True),
        # One content word of two is a half, which is allowed.
        ("wash apples", "peel apples", False),
        # Trigrams: (in, spite, of) alone of 4 + 4 - 1.
        ("rain in spite of forecasts now", "sun in spite of clouds there", False),
        ("bake bread", "fix bikes", False),
        # No content word at all: the same form words in another order.
        ("what is it to you", "what is it to me", True),
    ],
)
def test_by_hand(one: str, other: str, near: bool) -> None:
    assert are_near(Features.of(one), Features.of(other)) is near
    assert are_near(Features.of(other), Features.of(one)) is near


def test_positions_are_those_of_the_texts() -> None:
    assert list(near_duplicates(["wash a", "fix my red bike", "fix our red bike"])) == [(1, 2)]
    assert list(near_duplicates(["fix my red bike"], ["wash a", "fix a red bike"])) == [(0, 1)]
