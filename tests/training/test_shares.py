"""Shares of a micro-batch: which rows each process computes, and what they count."""

from __future__ import annotations

import pytest

from steermoe.records import Label
from steermoe.training.dataset import TrainingRow
from steermoe.training.objectives.refusal import Refusal
from steermoe.training.objectives.retention import Retention
from steermoe.training.objectives.token_weights import FirstTokens
from steermoe.training.shares import deal_rows, own_share, weight_of


def row(name: str, objective: str, prompt: int, completion: int) -> TrainingRow:
    ids = tuple(range(prompt)), tuple(range(completion))
    return TrainingRow(name, Label.UNSAFE, 0, objective, (), "", *ids)


ROWS = [
    row("a", "refusal", 5, 5),
    row("b", "refusal", 1, 1),
    row("c", "retention", 2, 4),
    row("d", "refusal", 4, 3),
]
"""10, 2, 6 and 7 tokens."""


def names(rows: list[TrainingRow]) -> str:
    return "".join(row.prompt_id for row in rows)


def test_rows_are_dealt_by_tokens_and_keep_their_order() -> None:
    # Refusals: a (10) to the first, d (7) and b (2) to the second; then c to it too, which has 9 against 10.
    assert [names(rows) for rows in deal_rows(ROWS, 2)] == ["a", "bcd"]
    assert [names(rows) for rows in deal_rows(ROWS, 1)] == ["abcd"]


def test_a_share_counts_by_the_weight_of_its_tokens() -> None:
    refusal, retention = Refusal(first=FirstTokens(2, 3.0)), Retention()
    # Of five tokens two weigh 3: 9; of one that one: 3; of three two: 7.
    assert [weight_of(refusal, row) for row in (ROWS[0], ROWS[1], ROWS[3])] == [9, 3, 7]
    first, factors = own_share(ROWS, (refusal, retention), 0, 2)
    assert factors == {"refusal": pytest.approx(2 * 9 / 19), "retention": 0}
    assert names(first) == "ac"  # c stands in, so that both processes run the base model
    second, factors = own_share(ROWS, (refusal, retention), 1, 2)
    assert factors == {"refusal": pytest.approx(2 * 10 / 19), "retention": 2}
    assert names(second) == "bcd"


def test_an_objective_that_says_nothing_of_weights_counts_tokens() -> None:
    class Own:
        name, weight = "own", 1.0

    assert weight_of(Own(), row("x", "own", 3, 4)) == 4  # type: ignore[arg-type]  # rows and loss are not read
    assert weight_of(None, row("x", "own", 3, 2)) == 2


def test_more_processes_than_rows_all_have_one() -> None:
    rows = [row("x", "refusal", 1, 1)]
    shares = [own_share(rows, (Refusal(),), rank, 3) for rank in range(3)]
    assert [names(own) for own, _ in shares] == ["x", "x", "x"]
    assert [factors["refusal"] for _, factors in shares] == [3, 0, 0]
