"""When a reply goes in circles, by hand; and whose replies count."""

from __future__ import annotations

import pytest

from made_evidence import by_kind, evidence, prompt, side
from steermoe.measures.repetition import RepetitionRate, goes_in_circles


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], False),
        ([1, 1, 1], False),  # no sequence of four, so none is repeated
        ([1, 1, 1, 1], False),  # one sequence, all different
        ([1, 1, 1, 1, 1], True),  # 1 of 2
        (list(range(13)), False),  # 10 of 10
        # 1 2 3 4 5 1 2 3 4: six sequences, of which the first comes back as the last: 5 of 6 differ
        ([1, 2, 3, 4, 5, 1, 2, 3, 4], False),
        # 1 2 3 4 1 2 3 4: 1234 2341 3412 4123 1234: 4 of 5 differ
        ([1, 2, 3, 4, 1, 2, 3, 4], False),
        # and one more token, 2341 again: 4 of 6 is below 70 %
        ([1, 2, 3, 4, 1, 2, 3, 4, 1], True),
        # 7 of 10 is not below it: seven different ones, then the first three again
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6], False),
        # 7 of 11 is
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7], True),
    ],
)
def test_fewer_than_seventy_percent_of_the_sequences_differ(
    tokens: list[int], expected: bool
) -> None:
    assert goes_in_circles(tokens) is expected


ROUND, STRAIGHT = [7] * 9, list(range(9))


def test_harmless_replies_count_and_no_others() -> None:
    prompts = [
        prompt("benign"),
        prompt("mild", "safe", category="look_alike"),
        prompt("other", "safe"),
        prompt("plain", "safe", category="plain_goal"),
        prompt("unsafe", "unsafe"),
    ]
    ids = [found.prompt_id for found in prompts]
    texts = dict.fromkeys(ids, "as it is")
    own = side(texts, {i: ROUND if i in ("benign", "plain", "unsafe") else STRAIGHT for i in ids})
    (row,) = RepetitionRate().of(evidence(prompts, own))
    assert row.measure == "repetition_rate" and row.source == "tokens"
    assert (row.metric.value, row.metric.n) == (pytest.approx(1 / 3), 3)


def test_the_change_is_paired() -> None:
    prompts = [prompt(f"p{i}") for i in range(6)]
    texts = {f"p{i}": "as it is" for i in range(6)}
    before = side(texts, {f"p{i}": ROUND if i == 5 else STRAIGHT for i in range(6)})
    after = side(texts, {f"p{i}": ROUND if i < 5 else STRAIGHT for i in range(6)})
    rows = by_kind(RepetitionRate().of(evidence(prompts, after, before)))
    assert rows["own"].metric.value == pytest.approx(5 / 6)
    assert rows["change"].metric.value == pytest.approx(4 / 6)
    assert (
        rows["change"].metric.more["only_after"],
        rows["change"].metric.more["only_before"],
    ) == (5, 1)
    assert rows["change"].metric.more["p_value"] == pytest.approx(2 * (1 + 6) / 2**6)


def test_where_tokens_were_not_kept_on_one_side_words_are_counted_on_both() -> None:
    prompts = [prompt("p")]
    circling = side({"p": "on and on and on and on and on"})
    straight = side({"p": "one two three four five six"}, {"p": ROUND})
    rows = by_kind(RepetitionRate().of(evidence(prompts, circling, straight)))
    assert rows["own"].source == "words"
    assert (rows["own"].metric.value, rows["change"].metric.value) == (1.0, 1.0)


def test_a_variant_that_has_not_replied_has_no_figure() -> None:
    assert RepetitionRate().of(evidence([prompt("p")], side({}))) == []
