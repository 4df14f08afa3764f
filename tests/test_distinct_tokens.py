"""Tokens that many rows share are computed once, and padding never; over every architecture, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from architectures import ARCHITECTURES, BY_NAME, Architecture, enable_checkpointing, token_ids
from steermoe.moe.distinct_tokens import DistinctTokens, has_dropout
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import router_noise_off
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


def test_rows_padded_on_the_left_share_nothing() -> None:
    ids = torch.tensor([[0, 5, 6], [5, 6, 7]])
    found = DistinctTokens.of(ids, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert found.computed.tolist() == [1, 2, 3, 4, 5]


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
