"""What trains: which parameters, what it is when switched off, a share of its change, and what differs on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import ARCHITECTURES, BY_NAME, Architecture, token_ids
from conftest import TinyCheckpoint
from steermoe.config import PhaseSettings
from steermoe.errors import TrainingError
from steermoe.moe.checkpoint import verify_only_selected_changed
from steermoe.moe.layers import find_moe_layers
from steermoe.training.trainables import (
    Everything,
    Routers,
    Together,
    Trainable,
    train_only,
    trainables_of,
)

EXPERTS = [(1, 0), (1, 5)]
IDS = torch.arange(3, 27).reshape(2, 12)


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint("mixtral")).eval()


def made(model: Any, *parameters: Any) -> tuple[Trainable, list[Trainable]]:
    phases = [PhaseSettings(one, ("refusal",), 1, 1e-3) for one in parameters]
    return trainables_of(model, find_moe_layers(model), phases, EXPERTS)


@torch.no_grad()
def move(trainable: Trainable) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trainable.named_parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("parameters", ["experts", "routers", "experts+routers"])
def test_switched_off_the_model_is_the_base_model_bit_for_bit(
    mixtral: Any, parameters: str
) -> None:
    before = logits(mixtral)
    whole, (trainable,) = made(mixtral, parameters)
    assert trainable.name == whole.name == parameters and whole.can_be_off
    move(trainable)
    trained = logits(mixtral)
    assert not torch.equal(trained, before)
    with trainable.off():
        assert torch.equal(logits(mixtral), before)
    assert torch.equal(logits(mixtral), trained)
    with pytest.raises(KeyError), trainable.off():
        raise KeyError
    assert torch.equal(logits(mixtral), trained)


def test_a_pass_with_the_base_routers_in_between_changes_no_gradient(mixtral: Any) -> None:
    grads = []
    for looks_at_base in (False, True):
        model = copy.deepcopy(mixtral)
        _, (trainable,) = made(model, "routers")
        move(trainable)
        train_only(model, trainable)
        loss = model(input_ids=IDS, use_cache=False).logits.square().mean()
        if looks_at_base:
            with trainable.off():
                logits(model)
        loss.backward()
        grads.append([parameter.grad for _, parameter in trainable.named_parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
    assert all(grad.abs().max() > 0 for grad in grads[0])


def test_only_what_a_phase_names_trains_and_parts_are_shared_between_phases(mixtral: Any) -> None:
    whole, phases = made(mixtral, "experts", "routers", "experts+routers")
    # D 32, F 16: three matrices of two experts; 8 experts in each of two routers.
    sizes = [2 * 3 * 32 * 16, 2 * 8 * 32]
    assert [train_only(mixtral, phase) for phase in phases] == [*sizes, sum(sizes)]
    names = [{name for name, _ in phase.named_parameters()} for phase in phases]
    for phase, expected in zip(phases, names, strict=True):
        train_only(mixtral, phase)
        assert {n for n, p in mixtral.named_parameters() if p.requires_grad} == expected
    assert names[2] == names[0] | names[1] == {name for name, _ in whole.named_parameters()}
    assert isinstance(phases[2], Together) and phases[2].parts == (phases[0], phases[1])
    assert [phase.first_layer for phase in phases] == [1, 0, 0]
    assert [phase.experts for phase in phases] == [tuple(EXPERTS), (), tuple(EXPERTS)]


def test_everything_cannot_be_switched_off_and_may_change_any_tensor(mixtral: Any) -> None:
    whole, _ = made(mixtral, "everything")
    assert isinstance(whole, Everything) and not whole.can_be_off
    assert train_only(mixtral, whole) == sum(p.numel() for p in mixtral.parameters())
    assert whole.changed_tensors() is None
    with pytest.raises(TrainingError, match="pass base_model"):
        whole.off()


def test_a_share_of_the_routers_change_by_hand(mixtral: Any) -> None:
    gate = mixtral.model.layers[0].mlp.gate.weight
    with torch.no_grad():
        gate[0, 0] = 1.0
    routers = Routers(mixtral, find_moe_layers(mixtral))
    with torch.no_grad():
        gate[0, 0] = 3.0
    routers.fold(0.25)
    assert gate[0, 0].item() == 1.5  # 1 + (3 - 1) / 4


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_only_the_routers_train(architecture: Architecture) -> None:
    model = architecture.build()
    description = find_moe_layers(model)
    num_parameters = train_only(model, Routers(model, description))
    prefixes = tuple(f"{layer.router_name}." for layer in description.layers)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith(prefixes) for name in trained)
    parameters = dict(model.named_parameters())
    assert num_parameters == sum(parameters[name].numel() for name in trained)
    model(input_ids=token_ids(2, 9), use_cache=False).logits.sum().backward()
    assert {name for name in trained if parameters[name].grad is None} == set()
    left_out = {n for n in parameters if n.startswith(prefixes)} - trained
    assert all(name.endswith("e_score_correction_bias") for name in left_out)


def test_everything_trains() -> None:
    model = BY_NAME["olmoe"].build().requires_grad_(False)
    assert train_only(model, Everything(model)) == model.num_parameters()
    assert all(p.requires_grad for p in model.parameters())


def test_a_bias_that_only_chooses_experts_does_not_train() -> None:
    model = BY_NAME["glm4_moe"].build()
    names = [name for name, _ in Routers(model, find_moe_layers(model)).named_parameters()]
    assert names and all(name.endswith("gate.weight") for name in names)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_routers_tensors_are_known_by_their_names_on_disk(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name].build()
    description = find_moe_layers(model)
    model.save_pretrained(tmp_path / "base")
    routers = Routers(model, description)
    move(routers)
    model.save_pretrained(tmp_path / "trained")
    tensors = routers.changed_tensors()
    assert tensors
    report = verify_only_selected_changed(
        tmp_path / "base", tmp_path / "trained", (), tensors=tensors
    )
    assert set(report.changed_tensors) == tensors and not report.changed_experts
    with pytest.raises(TrainingError, match="belongs to no selected expert"):
        verify_only_selected_changed(tmp_path / "base", tmp_path / "trained", ())
