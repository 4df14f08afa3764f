"""Passes in which a part of the model does not run: over every architecture, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from architectures import ARCHITECTURES, BY_NAME, Architecture, token_ids
from steermoe.errors import ModelError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.partial_passes import LowerLayers, only_positions

SHARE_MORE = {"glm_moe_dsa", "hy_v4"}
"""Their layers hand on which tokens to attend to, beside the hidden states."""

CAN_BE_SKIPPED = [entry for entry in ARCHITECTURES if entry.name not in SHARE_MORE]


def padded(batch: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Token ids of which the first row ends early."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, 6:] = 0
    return {"input_ids": token_ids(batch, length), "attention_mask": mask}


def num_decoder_layers(model: nn.Module) -> int:
    return len(list(model.get_submodule(find_moe_layers(model).decoder_layers_name).children()))


@torch.no_grad()
def logits(model: Any, fed: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**fed, use_cache=False).logits
    return found


@pytest.mark.parametrize("architecture", CAN_BE_SKIPPED, ids=lambda entry: entry.name)
def test_what_leaves_the_lower_layers_stands_in_for_them(architecture: Architecture) -> None:
    model = architecture.build()
    fed = padded()
    whole = logits(model, fed)
    for first in range(1, num_decoder_layers(model)):
        lower = LowerLayers(model, find_moe_layers(model), first)
        with lower.alone() as seen:
            logits(model, fed)
        (states,) = seen
        assert states.shape[:2] == fed["input_ids"].shape
        with lower.replaced_by(states):
            assert torch.equal(logits(model, fed), whole)
        with lower.replaced_by(states + 1):
            assert not torch.equal(logits(model, fed), whole), "the states are not read"
        assert torch.equal(logits(model, fed), whole), "the layers are back"


@pytest.mark.parametrize("name", sorted(SHARE_MORE & BY_NAME.keys()))
def test_layers_that_hand_on_more_than_their_output_are_refused(name: str) -> None:
    model = BY_NAME[name].build()
    with (
        LowerLayers(model, find_moe_layers(model), 1).alone(),
        pytest.raises(ModelError, match="a tuple, not a tensor"),
    ):
        logits(model, padded())


def test_only_the_layers_that_were_asked_for_run() -> None:
    model = BY_NAME["mixtral"].build()
    lower = LowerLayers(model, find_moe_layers(model), 1)
    routers = [model.get_submodule(x.router_name) for x in find_moe_layers(model).layers]
    calls: list[int] = []
    for i, router in enumerate(routers):
        router.register_forward_hook(lambda *_, i=i: calls.append(i))
    with lower.alone() as seen:
        logits(model, padded())
    with lower.replaced_by(seen[0]):
        logits(model, padded())
    assert calls == [0, 1]


def test_gradients_reach_the_layers_above_as_they_do_in_a_whole_pass() -> None:
    model = BY_NAME["mixtral"].build()
    model.requires_grad_(False)
    trained = model.model.layers[1].mlp.experts.requires_grad_(True)
    fed = padded()
    gradients = []
    lower = LowerLayers(model, find_moe_layers(model), 1)
    with lower.alone() as seen:
        logits(model, fed)
    for skip in (False, True):
        model.zero_grad(set_to_none=True)
        if skip:
            with lower.replaced_by(seen[0]):
                model(**fed, use_cache=False).logits.square().mean().backward()
        else:
            model(**fed, use_cache=False).logits.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in trained.parameters()])
    assert all(x.abs().max() > 0 for x in gradients[0])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_a_forward_that_another_library_put_in_place_survives() -> None:
    model = BY_NAME["mixtral"].build()
    layer = model.model.layers[0]
    before = layer.forward
    layer.forward = lambda *args, **kwargs: before(*args, **kwargs)
    placed = layer.forward
    lower = LowerLayers(model, find_moe_layers(model), 1)
    with pytest.raises(RuntimeError), lower.replaced_by(torch.zeros(3, 9, 32)):
        raise RuntimeError
    assert layer.forward is placed


def test_the_lowest_layer_has_none_below() -> None:
    model = BY_NAME["mixtral"].build()
    with pytest.raises(ModelError, match="no decoder layer lies below layer 0"):
        LowerLayers(model, find_moe_layers(model), 0)


def test_the_head_can_be_left_without_any_position() -> None:
    model = BY_NAME["mixtral"].build()
    fed = padded()
    chosen = torch.zeros(3, 9, dtype=torch.bool)
    with only_positions(model, chosen) as seen:
        assert logits(model, fed).shape[:2] == (1, 0)
    assert seen[0].shape == (0, 32)
