"""Scores by name: those that ship, and a user's own."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from steermoe.analysis.counts import RoutingCounts
from steermoe.errors import ConfigError, RoutingError
from steermoe.records import ResponseSums
from steermoe.scores import CLASSES, COUNTS, KNOWN, RECORDED, needs_of, score_named, title_of
from steermoe.scores.source import Source

COUNTED = RoutingCounts(np.ones((2, 2, 1, 3), np.int32), np.full((2, 2), 4), (5,))


def source(**recorded: ResponseSums) -> Source:
    none = np.zeros(0, int)
    return Source((), COUNTED, recorded.get, lambda: iter(()), none, none)


def use(monkeypatch: pytest.MonkeyPatch, score: Any) -> str:
    module = types.ModuleType("my_scores")
    module.mine = score  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_scores", module)
    return "my_scores:mine"


def test_every_score_that_ships_has_its_file_and_says_what_it_is() -> None:
    assert set(CLASSES) == set(KNOWN)
    for name, known in KNOWN.items():
        score = score_named(name)
        assert score.name == name and score.needs == known.needs == needs_of(name)
        assert known.title and known.meaning and known.unit


def test_recorded_scores_are_what_collecting_left() -> None:
    sums = ResponseSums(np.zeros((2, 2, 1, 3)), COUNTED.num_tokens, (5,))
    assert score_named("gate_mass").sums(source(gate_mass=sums)) is sums
    counted = score_named("risk_diff").sums(source())
    assert counted.total is COUNTED.active
    with pytest.raises(RoutingError, match="no sums of the score contribution"):
        score_named("contribution").sums(source())
    assert RECORDED == ("risk_diff", "gate_mass", "contribution")


def test_a_function_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    name = use(monkeypatch, lambda given: given.counts.active * 2.0)
    score = score_named(name)
    found = score.sums(source())
    assert found.total.tolist() == (COUNTED.active * 2.0).tolist()
    assert found.num_tokens is COUNTED.num_tokens and found.layer_indices == (5,)
    assert score.name == title_of(name) == name and needs_of(name) == COUNTS


def test_a_class_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine:
        needs = "model"

        def sums(self, given: Source) -> ResponseSums:
            return ResponseSums(np.zeros((2, 2, 1, 3)), np.ones((2, 2), int), (5,))

    score = score_named(use(monkeypatch, Mine))
    assert score.needs == "model"
    assert score.sums(source()).num_tokens.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda given: np.zeros((2, 2, 1, 2)), r"shape \(2, 2, 1, 2\).*\(2, 2, 1, 3\)"),
        (lambda given: np.full((2, 2, 1, 3), np.nan), "not finite"),
        (lambda given: 1 / 0, "failed with ZeroDivisionError"),
    ],
)
def test_what_an_own_score_returns_is_checked(
    score: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RoutingError, match=message):
        score_named(use(monkeypatch, score)).sums(source())


@pytest.mark.parametrize("name", ["nothing", "no_such_module:at_all"])
def test_a_score_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"rank_by|score"):
        score_named(name)
