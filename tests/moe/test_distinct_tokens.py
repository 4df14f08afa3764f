"""Tokens that many rows share are computed once, and padding never; over every architecture, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from architectures import ARCHITECTURES, BY_NAME, Architecture, enable_checkpointing, token_ids
from conftest import counted_tokens
from steermoe.moe.distinct_tokens import DistinctTokens, computing_distinct, has_dropout
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import masked_experts, router_noise_off
from steermoe.moe.routing import RoutingRecorder
from steermoe.moe.slices import ExpertSlices, attach_expert_slices


def padded_rows() -> dict[str, Tensor]:
    """Three rows that share their first three tokens and none after; the first ends early."""
    ids = token_ids(3, 9)
    ids[:, :3] = ids[0, :3]
    ids[:, 3] = torch.tensor([10, 11, 12])
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_by_hand() -> None:
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 8, 9, 0], [5, 6, 7, 9, 4]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    found = DistinctTokens.of(ids, mask)
    # Rows of five: 5 6 7 of the first, 8 9 of the second, 7 9 4 of the third, whose past is another one.
    assert found.computed.tolist() == [0, 1, 2, 7, 8, 12, 13, 14]
    assert found.source.tolist() == [0, 1, 2, 0, 0, 0, 1, 3, 4, 0, 0, 1, 5, 6, 7]


def test_padding_alone() -> None:
    ids = torch.tensor([[5, 6, 0], [5, 7, 8]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = DistinctTokens.of(ids, mask, begin_alike=False)
    assert found.computed.tolist() == [0, 1, 3, 4, 5]
    assert found.source.tolist() == [0, 1, 0, 2, 3, 4]


def test_one_row_and_rows_that_are_the_same() -> None:
    one = DistinctTokens.of(torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 1]]))
    assert one.computed.tolist() == one.source.tolist() == [0, 1, 2]
    twice = DistinctTokens.of(torch.tensor([[5, 6], [5, 6]]), torch.ones(2, 2, dtype=torch.long))
    assert twice.computed.tolist() == [0, 1]
    assert twice.source.tolist() == [0, 1, 0, 1]


def test_a_row_that_ends_within_the_beginning_of_the_others() -> None:
    ids = torch.tensor([[5, 6, 0], [5, 6, 7]])
    found = DistinctTokens.of(ids, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert found.computed.tolist() == [0, 1, 5]
    # The same ids as padding, and yet no shared token.
    padding = DistinctTokens.of(torch.tensor([[5, 7], [5, 7]]), torch.tensor([[1, 0], [1, 1]]))
    assert padding.computed.tolist() == [0, 3]


def test_rows_padded_on_the_left() -> None:
    ids = torch.tensor([[0, 5, 6, 7], [5, 6, 8, 7], [0, 0, 5, 6]])
    found = DistinctTokens.of(ids, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]))
    # 5 6 of the first row stand for those of all; then its 7, and 8 7 of the second row.
    assert found.computed.tolist() == [1, 2, 3, 6, 7]
    assert found.source.tolist() == [0, 0, 1, 2, 0, 1, 3, 4, 0, 0, 0, 1]


def test_an_empty_row_leaves_nothing_to_share() -> None:
    found = DistinctTokens.of(torch.tensor([[5, 6], [5, 6]]), torch.tensor([[1, 1], [0, 0]]))
    assert found.computed.tolist() == [0, 1]
    assert found.source.tolist() == [0, 1, 0, 0]


def loss_of(model: Any, fed: dict[str, Tensor]) -> Tensor:
    """Mean square of the logits where there is no padding."""
    logits = model(**fed, use_cache=False).logits
    loss: Tensor = logits[fed["attention_mask"].bool()].float().square().mean()
    return loss


def loss_and_gradients(
    model: Any, slices: ExpertSlices, fed: dict[str, Tensor], distinct: DistinctTokens | None
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    # As the trainer does: noise would send what is shared elsewhere in each row.
    with router_noise_off(model, find_moe_layers(model)), slices.computing(distinct):
        loss = loss_of(model, fed)
        loss.backward()
    return loss.detach(), {
        n: p.grad.clone() for n, p in slices.named_parameters() if p.grad is not None
    }


def every_second_expert(model: nn.Module) -> list[tuple[int, int]]:
    description = find_moe_layers(model)
    return [(i, e) for i in description.layer_indices for e in range(0, description.num_experts, 2)]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda entry: entry.name)
def test_loss_and_gradients_are_those_of_all_tokens(
    architecture: Architecture, checkpointed: bool, computed_tokens: list[int]
) -> None:
    model = architecture.build()
    if checkpointed:
        enable_checkpointing(model)
        model.train()
    fed = padded_rows()
    slices = attach_expert_slices(model, every_second_expert(model))
    expected_loss, expected = loss_and_gradients(model, slices, fed, None)
    computed_tokens.clear()
    distinct = DistinctTokens.of(**fed)
    assert len(distinct.computed) == 6 + 6 + 6
    loss, found = loss_and_gradients(model, slices, fed, distinct)
    assert set(computed_tokens) == {18}, (
        "the experts compute these tokens and no others, run again or not"
    )
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-7)
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
    loss_and_gradients(model, slices, fed, None)
    assert 27 in computed_tokens, "afterwards all tokens are computed again"


def test_switched_off_all_tokens_are_computed() -> None:
    model = BY_NAME["mixtral"].build()
    fed = padded_rows()
    with torch.no_grad():
        expected = loss_of(model, fed)
        slices = attach_expert_slices(model, [(1, 0)])
        with slices.computing(DistinctTokens.of(**fed)), slices.switched_off():
            assert torch.equal(loss_of(model, fed), expected)


# ---- passes without gradients ---------------------------------------------------------------------------


def padded_on_the_left() -> dict[str, Tensor]:
    """The padded rows with the first one's padding before it, and the positions that generation gives them."""
    fed = padded_rows()
    for name in fed:
        fed[name][0] = fed[name][0].roll(3)
    return fed | {"position_ids": (fed["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}


@pytest.mark.parametrize("rows", [padded_rows, padded_on_the_left])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda entry: entry.name)
def test_logits_and_routes_are_those_of_all_tokens(
    architecture: Architecture, rows: Callable[[], dict[str, Tensor]]
) -> None:
    if architecture.name == "deepseek_v4" and rows is padded_on_the_left:
        pytest.skip(
            "its compressed attention pools padding in, so that other padding gives other logits"
        )
    model = architecture.build()
    fed = rows()
    is_real = fed["attention_mask"].bool()

    @torch.no_grad()
    def logits_and_routes() -> tuple[Tensor, Tensor]:
        with RoutingRecorder(model) as recorder:
            logits = model(**fed, use_cache=False).logits
        (routes,) = recorder.take()
        return logits[is_real], routes[is_real.flatten()]

    expected_logits, expected_routes = logits_and_routes()
    with counted_tokens(model) as counted:
        with computing_distinct(model):
            logits, routes = logits_and_routes()
        assert set(counted) == {18}
        counted.clear()
        logits_and_routes()
        assert set(counted) == {27}, "afterwards all tokens are computed again"
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(routes, expected_routes)


@torch.no_grad()
def test_generation_computes_the_distinct_tokens_of_prompts_and_all_that_follow() -> None:
    model = BY_NAME["mixtral"].build().eval()
    fed = padded_on_the_left()
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**fed, **settings)
    with counted_tokens(model) as counted, computing_distinct(model):
        assert torch.equal(model.generate(**fed, **settings), expected)
    num_layers = find_moe_layers(model).num_layers
    assert counted == [18] * num_layers + [3] * num_layers * 4


@torch.no_grad()
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"position_ids": torch.arange(27).view(3, 9)}, id="positions of its own"),
        pytest.param({"attention_mask": torch.zeros(3, 9, dtype=torch.long)}, id="padding alone"),
        pytest.param({"attention_mask": None}, id="no mask"),
    ],
)
def test_other_passes_compute_all_tokens(given: dict[str, Any]) -> None:
    model = BY_NAME["mixtral"].build().eval()
    fed = padded_rows() | given
    expected = model(**fed, use_cache=False).logits
    with counted_tokens(model) as counted, computing_distinct(model):
        assert torch.equal(model(**fed, use_cache=False).logits, expected)
        # Of whole rows, and then of the layers alone, which nobody says anything about.
        whole = padded_rows()
        model(**whole, use_cache=False)
        ids = whole["input_ids"][:, 1:]
        hidden = model.model(ids, use_cache=False).last_hidden_state
    assert counted == [27] * 2 + [18] * 2 + [24] * 2
    assert torch.equal(hidden, model.model(ids, use_cache=False).last_hidden_state)


@torch.no_grad()
def test_under_an_expert_mask_all_tokens_are_computed() -> None:
    model = BY_NAME["mixtral"].build().eval()
    description = find_moe_layers(model)
    allowed = np.ones((3, description.num_layers, description.num_experts), dtype=bool)
    # The second row alone: what it begins with goes to other experts than in the other rows.
    allowed[1, 0, :2] = False
    fed = padded_rows()
    with masked_experts(model, allowed), counted_tokens(model) as counted:
        expected = model(**fed, use_cache=False).logits
        with computing_distinct(model):
            assert torch.equal(model(**fed, use_cache=False).logits, expected)
    assert set(counted) == {27}


@pytest.mark.parametrize("setting", [{}, {"attention_dropout": 0.0}, {"attention_dropout": 0.1}])
def test_dropout_in_the_config_is_found(setting: dict[str, float]) -> None:
    model = BY_NAME["mixtral"].build()
    for name, value in setting.items():
        setattr(model.config, name, value)
    assert has_dropout(model) == (0.1 in setting.values())


def test_dropout_in_a_module_is_found() -> None:
    model = BY_NAME["mixtral"].build()
    model.model.embed_tokens.after = nn.Dropout(0.0)
    assert not has_dropout(model)
    model.model.embed_tokens.after = nn.Dropout(0.2)
    assert has_dropout(model)
