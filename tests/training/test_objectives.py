"""Objectives: how they are named and made, which rows are theirs, and what is refused."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from steermoe.config import validate
from steermoe.errors import ConfigError, TrainingError
from steermoe.records import Label, Output, Prompt, Verdict
from steermoe.training.dataset import Example, TrainingRow
from steermoe.training.forward_plan import CompletionTokens
from steermoe.training.objectives import objectives_of
from steermoe.training.objectives.own import OwnObjective
from steermoe.training.objectives.refusal import Refusal
from steermoe.training.objectives.retention import Retention
from steermoe.training.objectives.token_weights import FirstTokens

SETTINGS = validate({}).train


class Said:
    """A pass whose logits are given."""

    def __init__(self, logits: list[list[float]], targets: list[int], base: Any = None) -> None:
        self.given = CompletionTokens(
            torch.tensor(logits), torch.tensor(targets), torch.arange(len(targets))
        )
        self.base = base

    def tokens(self, name: str) -> CompletionTokens:
        return self.given

    def base_logits(self, name: str) -> torch.Tensor:
        return torch.tensor(self.base)


def test_the_cross_entropy_by_hand() -> None:
    # Two tokens of probability 1/2 and 1/4; the first weighs 3.
    logits = [[0.0, 0.0], [0.0, math.log(3)]]
    said: Any = Said(logits, [0, 0])
    assert Refusal(first=FirstTokens(1, 3.0)).loss({}, said).item() == pytest.approx(
        (3 * math.log(2) + math.log(4)) / 4
    )
    assert Refusal().loss({}, said).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_the_divergence_by_hand() -> None:
    # The base says (1/2, 1/2) twice, the model (9/10, 1/10) and the same as the base: 1/2 ln(5/9) + 1/2 ln 5, and 0.
    kl = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    said: Any = Said([[math.log(9), 0.0], [7.0, 7.0]], [0, 0], [[0.0, 0.0], [1.0, 1.0]])
    assert Retention().loss({}, said).item() == pytest.approx(kl / 2)
    weighed = Retention(first=FirstTokens(1, 3.0)).loss({}, said).item()
    assert weighed == pytest.approx(3 * kl / 4)


def test_the_settings_make_them() -> None:
    settings = validate(
        {
            "train": {
                "refusal_weight": 2,
                "retention_weight": 3,
                "first_tokens": 5,
                "first_tokens_weight": 6,
                "retention_tokens": 8,
                "target_response": "No.",
            }
        }
    ).train
    refusal, retention = objectives_of(settings, settings.objectives)
    assert isinstance(refusal, Refusal) and isinstance(retention, Retention)
    assert (refusal.weight, refusal.first) == (2, FirstTokens(5, 6))
    assert refusal.target(Prompt("p", Label.UNSAFE, (), goal="x"), 0) == "No."
    assert (retention.weight, retention.first) == (3, FirstTokens(5, 6))
    assert retention.max_tokens == 8


def example(label: Label, category: str = "", verdict: Verdict = Verdict.ANSWERED) -> Example:
    messages = ({"role": "user", "content": "x"},)
    output = Output("x", messages, "yes", (1, 2), (3, 4), np.zeros((3, 1, 1), np.int32))
    return Example(
        Prompt("p", label, messages, goal="x", category=category),
        verdict,
        output,
        0,
        _Tokenizer(),
        {},
    )


class _Tokenizer:
    eos_token_id = 9
    chat_template = None
    bos_token = None


@pytest.mark.parametrize(
    ("label", "category", "verdict", "is_refusal"),
    [
        (Label.UNSAFE, "", Verdict.REFUSED, True),
        (Label.SAFE, "", Verdict.REFUSED, False),
        (Label.BENIGN, "", Verdict.ANSWERED, False),
        (Label.SAFE, "plain_goal", Verdict.REFUSED, False),
        (Label.SAFE, "plain_goal", Verdict.ANSWERED, True),
    ],
)
def test_a_prompt_belongs_to_one_of_the_two(
    monkeypatch: pytest.MonkeyPatch,
    label: Label,
    category: str,
    verdict: Verdict,
    is_refusal: bool,
) -> None:
    from steermoe.training.objectives import refusal

    monkeypatch.setattr(refusal, "refusal_row", lambda *given: given)
    given = example(label, category, verdict)
    assert (Refusal().row(given, 0) is not None) == is_refusal
    kept = Retention(max_tokens=1).row(given, 0)
    assert (kept is None) == is_refusal
    if kept is not None:
        assert (kept.objective, kept.completion_token_ids) == ("retention", (3,))


# ---- own ones -----------------------------------------------------------------------------------------


class Own:
    name = "refusal"
    weight = 2
    needs_base = True

    def __init__(self, settings: Any) -> None:
        self.returned: Any = torch.tensor(3.0)

    def loss(self, batch: Any, forward: Any) -> Any:
        return self.returned


def named(monkeypatch: pytest.MonkeyPatch, made: Any) -> OwnObjective:
    module = types.ModuleType("own_objectives")
    module.made = made
    monkeypatch.setitem(sys.modules, "own_objectives", module)
    (found,) = objectives_of(SETTINGS, ["own_objectives:made"])
    assert isinstance(found, OwnObjective)
    return found


def test_an_own_one_by_a_shipped_name_trains_on_the_rows_of_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = named(monkeypatch, Own)
    assert (own.name, own.weight, own.needs_base, own.log_name) == (
        "refusal",
        2.0,
        True,
        "refusal_loss",
    )
    assert own.row(example(Label.SAFE), 0) is None
    forward: Any = None
    assert own.loss({}, forward).item() == 3.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "has no name"),
        ({"name": "other"}, r"no method row\(example, position\)"),
        ({"weight": -1}, "weight -1"),
        ({"weight": "much"}, "weight 'much'"),
        ({"weight": float("nan")}, "weight nan"),
        ({"loss": None}, r"no method loss\(batch, forward\)"),
    ],
    ids=str,
)
def test_what_is_no_objective_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        named(monkeypatch, type("Changed", (Own,), changes))
    assert "own_objectives:made" in str(caught.value) and "\n" not in str(caught.value)


def test_one_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="failed with TypeError"):
        named(monkeypatch, lambda: None)
    with pytest.raises(ConfigError, match="use one of refusal, retention, or package"):
        objectives_of(SETTINGS, ["refuse"])
    with pytest.raises(ConfigError, match="'refusal' twice"):
        objectives_of(SETTINGS, ["refusal", "retention", "refusal"])


@pytest.mark.parametrize("returned", [1.0, torch.zeros(2), None])
def test_a_loss_that_is_no_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, returned: Any
) -> None:
    own = named(monkeypatch, Own)
    own._made.returned = returned
    forward: Any = None
    with pytest.raises(TrainingError, match="return one number"):
        own.loss({}, forward)


def test_a_row_of_another_objective_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithRows(Own):
        def row(self, given: Example, position: int) -> Any:
            return TrainingRow("p", Label.SAFE, 0, "retention", (), "", (1,), (2,))

    own = named(monkeypatch, WithRows)
    with pytest.raises(TrainingError, match="a TrainingRow whose objective is 'refusal'"):
        own.row(example(Label.SAFE), 0)
