"""Right and wrong, accuracies and their changes, on numbers that were worked by hand."""

from __future__ import annotations

from dataclasses import asdict
from math import inf, log, nan

import pandas as pd
import pytest

from steermoe.capability.checks import Number
from steermoe.capability.grading import accuracy_rows, change_rows, per_byte, score_items
from steermoe.capability.items import Item
from steermoe.errors import RunDirectoryError, SteerMoEError

SUM = Item("sum-1", "arithmetic", "2 + 2?", "4", check=Number(4), max_tokens=8)
CITY = Item("city-1", "facts", "Where?", "Rome", ("Rome", "Constantinople"), "In")


def graded(item: Item, given: object) -> tuple[bool, str]:
    replies = {item.item_id: given} if item.check else {}
    likelihoods = {} if item.check else {item.item_id: given}
    (found,) = score_items([item], replies, likelihoods)  # type: ignore[arg-type]
    assert (found.item_id, found.category, found.scoring) == (
        item.item_id,
        item.category,
        item.scoring,
    )
    return found.correct, found.reason


def test_a_reply_is_right_wrong_or_cannot_be_read_and_then_is_wrong_too() -> None:
    assert graded(SUM, "4") == (True, "")
    assert graded(SUM, "5") == (False, "says 5, not 4")
    assert graded(SUM, "four") == (False, "no number in 'four'")
    assert graded(SUM, None) == (False, "the reply ended inside its reasoning")
    assert graded(SUM, " 2 +  2?") == (False, "repeats the question")


def test_options_are_compared_by_byte() -> None:
    # "Rome" has 4 bytes and "Constantinople" 14: -8 / 4 = -2 is less likely a byte than -14 / 14 = -1.
    assert graded(CITY, [-8.0, -14.0]) == (False, "likeliest is 'Constantinople'")
    assert graded(CITY, [-3.9, -14.0]) == (True, "")
    assert per_byte("\u00e9\u00e9", -8.0) == -2.0


def test_likelihoods_that_say_nothing_are_wrong() -> None:
    assert graded(CITY, [-4.0, -14.0]) == (False, "2 options are equally likely")
    assert graded(CITY, [nan, -14.0]) == (False, "likelihoods are not finite")
    assert graded(CITY, [-4.0, -inf]) == (False, "likelihoods are not finite")


def test_what_was_not_asked_is_an_error_and_not_wrong() -> None:
    with pytest.raises(SteerMoEError, match="sum-1 has not been answered"):
        score_items([SUM], {}, {})
    with pytest.raises(SteerMoEError, match="city-1 has 2 options and 1 likelihoods"):
        score_items([CITY], {}, {"city-1": [log(0.5)]})


def table(*correct: bool) -> pd.DataFrame:
    """Four items of category a, the others of b."""
    items = [
        Item(f"i{i}", "a" if i < 4 else "b", "2 + 2?", "4", check=Number(4), max_tokens=8)
        for i in range(len(correct))
    ]
    replies = {
        item.item_id: "4" if right else "5" for item, right in zip(items, correct, strict=True)
    }
    return pd.DataFrame([asdict(grade) for grade in score_items(items, replies, {})])


def test_accuracy_counts_every_item_with_wilsons_interval() -> None:
    rows = accuracy_rows("base", table(True, True, True, False, *[False] * 6))
    assert [row.set for row in rows] == [
        "builtin:capability",
        "builtin:capability/a",
        "builtin:capability/b",
    ]
    assert {(row.variant, row.measure, row.compared_with) for row in rows} == {
        ("base", "capability", "")
    }
    whole, a, b = (row.metric for row in rows)
    assert (whole.value, whole.n, whole.num_unscored) == (0.3, 10, 0)
    # Wilson 1927: centre (p + z^2 / 2n) / (1 + z^2 / n) = .3553, half-width .2480, z = 1.959964.
    assert whole.ci_low == pytest.approx(0.10779, abs=1e-5)
    assert whole.ci_high == pytest.approx(0.60322, abs=1e-5)
    assert (a.value, a.n) == (0.75, 4)
    assert (b.value, b.n) == (0.0, 6)


def test_changes_are_paired_by_item_with_mcnemars_exact_test() -> None:
    base = table(True, True, True, True, True, True, True, False, False, False)
    # Six items that the base had right are wrong, one that it had wrong is right.
    after = table(False, False, False, False, False, False, True, True, False, False)
    shuffled = base.sample(frac=1.0, random_state=1)
    whole, a, b = (
        row.metric for row in change_rows("hardened", after, "base", shuffled, num_bootstrap=200)
    )
    assert whole.value == pytest.approx(-0.5)
    assert whole.n == 10
    assert (whole.more["only_before"], whole.more["only_after"]) == (6, 1)
    # Two-sided binomial: 2 (C(7,0) + C(7,1)) / 2^7 = 16 / 128.
    assert whole.more["p_value"] == pytest.approx(0.125)
    assert a.value == -1.0
    assert a.more["p_value"] == pytest.approx(0.125)  # 4 of 4: 2 / 2^4
    assert b.n == 6
    assert (b.more["only_before"], b.more["only_after"]) == (2, 1)


def test_changes_between_different_items_are_refused() -> None:
    with pytest.raises(RunDirectoryError, match="different items"):
        change_rows("hardened", table(True, True), "base", table(True))
