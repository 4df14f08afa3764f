"""What a user names is tried, without being called, before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import Config
from steermoe.contracts import check_takes
from steermoe.errors import ConfigError, SteerMoEError
from steermoe.pipeline.checks import check_identify, check_judge
from steermoe.stages.opening import check_engine

OWN = """
class Judge:
    version = "1"
    def judge(self, replies, goals): ...

class Score:
    def sums(self): ...

class NoScore:
    sums = 3

class Broken:
    def __init__(self): raise RuntimeError("no\\nluck")
    def sums(self, source): ...

def judge(): ...
def rule(table, threshold): ...
def score(*, source): ...
def engine(model, tokenizer, depth=1): ...
def fine(*anything): return ["refused"]
"""

CHECKS = {"judge": check_judge, "identify": check_identify, "collect": check_engine}
"""What is asked before any step is run."""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own."""
    (tmp_path / "of_mine.py").write_text(OWN, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "of_mine"


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        ("judge", {"main": "of_mine:Judge"}, "judge 'of_mine:Judge' takes (replies, goals)"),
        ("judge", {"main": "of_mine:judge"}, "judge 'of_mine:judge' takes (), but is called with"),
        ("judge", {"others": ["of_mine:judge"]}, "called with a list of Exchange"),
        ("identify", {"rule": "of_mine:rule"}, "missing a required argument: 'threshold'"),
        ("identify", {"rank_by": "of_mine:Score"}, "but is called with a Source"),
        ("identify", {"scores": ["of_mine:score"]}, "score 'of_mine:score' takes (*, source)"),
        ("identify", {"scores": ["of_mine:NoScore"]}, "has no method sums"),
        ("identify", {"scores": ["of_mine:Broken"]}, "cannot be made (RuntimeError: no luck)"),
        (
            "collect",
            {"engine": "of_mine:engine", "engine_args": {"depth": 2, "name": "a"}},
            "called with a model, its tokenizer, depth, name (got an unexpected keyword argument 'name')",
        ),
    ],
    ids=str,
)
def test_an_own_callable_that_cannot_be_called_is_refused_before_anything_is_run(
    config: Callable[..., Config], own: str, section: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(SteerMoEError) as caught:
        CHECKS[section](config(**{section: settings}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [print, dict.fromkeys, lambda source, more=1: None])
def test_what_can_be_called_or_has_no_signature_is_let_through(function: Any) -> None:
    check_takes("score", "of:mine", function, "a Source")


def test_what_is_too_much_is_said() -> None:
    with pytest.raises(ConfigError, match="too many positional arguments"):
        check_takes("target response", "of:mine", lambda: "no", "a prompt")
