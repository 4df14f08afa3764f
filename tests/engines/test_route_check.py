"""Which routes of another engine are believed: what can be told from them alone, and against the local model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from steermoe.engines.route_check import (
    Agreement,
    agreement,
    check_agreement,
    checked_routes,
    compare_routes,
)
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import RoutingError
from steermoe.moe.description import MoEDescription
from steermoe.records import Sampling


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: TinyCheckpoint) -> TransformersEngine:
    path = tiny_checkpoint("qwen3_moe")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return TransformersEngine(model, AutoTokenizer.from_pretrained(path))


@pytest.fixture
def description(engine: TransformersEngine) -> MoEDescription:
    """Two MoE layers, 8 experts, top-2."""
    return engine.description


def routes(seed: int, tokens: int, layers: int = 2) -> Any:
    draws = np.random.default_rng(seed).random((tokens, layers, 8))
    return draws.argsort(axis=-1)[..., :2]


# ---- what can be told from the routes alone -----------------------------------------------------------


def test_rows_of_other_layers_are_dropped_and_ids_packed(description: MoEDescription) -> None:
    given = [routes(0, 5, layers=3), routes(1, 7, layers=3)]
    kept = checked_routes(description, given, [5, 7])
    for array, whole in zip(kept, given, strict=True):
        assert array.dtype == np.uint8
        assert (array == whole[:, :2]).all(), "the model's layers are the first two"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r[:-1], r"shape \(4, 2, 2\); 5 tokens were fed"),
        (lambda r: r[:, :1], r"shape \(5, 1, 2\)"),
        (lambda r: r[..., :1], r"shape \(5, 2, 1\)"),
        (lambda r: r.reshape(5, -1), r"shape \(5, 4\)"),
        (lambda r: np.zeros_like(r), "name an expert twice"),
        (lambda r: np.where(np.arange(5)[:, None, None] == 3, 0, r), "name an expert twice"),
        (lambda r: np.repeat(r[:1], 5, axis=0), "they are constant"),
        (lambda r: r + 8, "the model has 8 experts"),
        (lambda r: r.astype(np.int64) - 8, "the model has 8 experts"),
    ],
)
def test_routes_that_cannot_be_the_models_are_refused(
    description: MoEDescription, change: Any, said: str
) -> None:
    with pytest.raises(RoutingError, match=said):
        checked_routes(description, [change(routes(0, 5))], [5])


# ---- against the local model --------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    # One layer, four experts, top-2; the standard deviation of each row is 1.29, a quarter of it .32.
    logits = torch.tensor([[[3.0, 2.0, 1.0, 0.0]], [[3.0, 1.1, 1.0, 0.0]], [[3.0, 2.0, 1.0, 0.0]]])
    own = torch.tensor([[[0, 1]], [[0, 1]], [[0, 1]]])
    chosen = torch.tensor([[[1, 0]], [[0, 2]], [[0, 3]]])
    # The same in another order; a near-tie, .1 below; and 2 below the last that was chosen.
    assert agreement(chosen, own, logits) == Agreement(3, 2, 1)
    assert Agreement(3, 2, 1) + Agreement(1, 0, 0) == Agreement(4, 2, 1)


def test_two_in_a_hundred_wrong_choices_are_too_many() -> None:
    check_agreement(Agreement(100, 30, 2), "vllm")
    with pytest.raises(
        RoutingError, match=r"30 of 100 choices differ .* 3 of them beyond near-ties"
    ):
        check_agreement(Agreement(100, 30, 3), "vllm")


def test_the_models_own_routes_agree_and_others_do_not(engine: TransformersEngine) -> None:
    texts = ("Hi", "Kill a process, please.", "Why is the sky blue?")
    outputs = engine.generate([[{"role": "user", "content": t}] for t in texts], Sampling(8))
    fed = [(o.prompt_token_ids + o.generated_token_ids)[:-1] for o in outputs]

    def compared(change: Any) -> Agreement:
        replies = [(ids, change(o.routed_experts)) for ids, o in zip(fed, outputs, strict=True)]
        return compare_routes(engine.model, engine.description, replies)

    own = compared(lambda r: r)
    assert own.num_choices == 2 * sum(map(len, fed)) and own.num_differing == own.num_wrong == 0
    shifted = compared(lambda r: np.roll(r, 1, axis=0))
    swapped = compared(lambda r: r[:, ::-1])
    for wrong in (shifted, swapped):
        assert wrong.num_wrong > wrong.num_choices / 3
        with pytest.raises(RoutingError, match="not this model's"):
            check_agreement(wrong, "vllm")
