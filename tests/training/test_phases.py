"""Phases against references in plain loops: what a step of each changes, and what is known before it begins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import TinyCheckpoint
from steermoe.config import PhaseSettings, validate
from steermoe.moe.layers import find_moe_layers
from steermoe.training.dataset import TrainingRow, collate
from steermoe.training.fit import Fit
from steermoe.training.phases import Phase
from steermoe.training.planner import Planner
from steermoe.training.trainables import Trainable, train_only, trainables_of
from tiny import Listener
from training_references import (
    EXPERTS,
    WEIGHTS,
    log_probabilities,
    make_trainer,
    mixed_rows,
    reference_loss,
    rows_that_begin_alike,
    take_step,
)

GATE = "model.layers.{}.mlp.gate.weight"


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint("mixtral")).eval()


def parts(
    model: Any, *parameters: Any, experts: Any = EXPERTS
) -> tuple[Trainable, list[Trainable]]:
    settings = [PhaseSettings(one, ("refusal",), 1, 1e-3) for one in parameters]
    return trainables_of(model, find_moe_layers(model), settings, experts)


@torch.no_grad()
def move(trainable: Trainable) -> None:
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trainable.named_parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def stock_of(base: Any, model: Any, trained: Trainable) -> Any:
    """An ordinary model with what was trained in its fused tensors and routers."""
    stock = copy.deepcopy(base)
    masters = dict(trained.slices.named_parameters()) if trained.slices is not None else {}
    with torch.no_grad():
        for layer in (0, 1):
            name = GATE.format(layer)
            stock.get_parameter(name).copy_(model.get_parameter(name))
            ids = [expert for i, expert in trained.experts if i == layer]
            for tensor in ("gate_up_proj", "down_proj"):
                module = f"model.layers.{layer}.mlp.experts"
                if ids:
                    master = masters[f"{module}.trained_experts.{tensor}"]
                    stock.get_submodule(module).get_parameter(tensor)[ids] = master
    stock.set_experts_implementation("eager")
    return stock


def compare_router_gradients(model: Any, stock: Any) -> None:
    for layer in (0, 1):
        found = model.get_parameter(GATE.format(layer)).grad
        expected = stock.get_parameter(GATE.format(layer)).grad
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parameters", ["routers", "experts+routers"])
@pytest.mark.parametrize("make_rows", [mixed_rows, rows_that_begin_alike])
def test_gradients_of_routers_equal_the_reference(
    mixtral: Any, tmp_path: Path, parameters: str, make_rows: Callable[[], list[TrainingRow]]
) -> None:
    rows = make_rows()
    model = copy.deepcopy(mixtral)
    trained, (trainable,) = parts(model, parameters)
    move(trained)
    stock = stock_of(mixtral, model, trained)
    train_only(model, trainable)
    trainer = make_trainer(model, tmp_path, rows, trained=trained)
    loss = take_step(trainer, model, rows)
    expected = reference_loss(stock, mixtral, rows, WEIGHTS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    compare_router_gradients(model, stock)
    for name, parameter in trained.slices.named_parameters() if trained.slices else ():
        module, _, tensor = name.rpartition(".trained_experts.")
        ids = [expert for i, expert in trained.experts if i == int(module.split(".")[2])]
        grad = stock.get_submodule(module).get_parameter(tensor).grad[ids]
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-6)


def test_routers_of_the_lower_layers_train_below_experts_that_stand_still(
    mixtral: Any, tmp_path: Path
) -> None:
    rows = rows_that_begin_alike()
    model = copy.deepcopy(mixtral)
    trained, (_, routers) = parts(model, "experts", "routers", experts=[(1, 0), (1, 5)])
    move(trained)
    stock = stock_of(mixtral, model, trained)
    train_only(model, routers)
    trainer = make_trainer(model, tmp_path, rows, trained=trained)
    take_step(trainer, model, rows)
    reference_loss(stock, mixtral, rows, WEIGHTS).backward()
    compare_router_gradients(model, stock)
    assert trained.slices is not None
    assert all(parameter.grad is None for parameter in trained.slices.parameters())


SGD = {
    "optim": "sgd",
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 1e9,
}


def test_each_phase_steps_down_the_gradient_at_what_the_one_before_has_made(
    mixtral: Any, tmp_path: Path
) -> None:
    rows = mixed_rows()
    model = copy.deepcopy(mixtral)
    trained, (experts, routers) = parts(model, "experts", "routers")
    listener = Listener()
    fit = Fit(
        model,
        find_moe_layers(model),
        trained,
        None,
        0,
        lambda: pytest.fail("a second copy of the model is loaded"),
        validate({"train": {"arguments": SGD}}).train,
        0,
        tmp_path,
        listener,
    )
    objectives = WEIGHTS.objectives()
    phases = [
        Phase(experts, objectives, 1, 0.1, rows, []),
        Phase(routers, objectives, 1, 0.2, rows, []),
    ]
    history = fit.run(phases)
    assert [(entry["phase"], entry["step"]) for entry in history] == [(0, 1), (1, 2)]
    # The first phase: one step of the experts from the base model, whose routers stay.
    first = copy.deepcopy(mixtral)
    first.set_experts_implementation("eager")
    reference_loss(first, mixtral, rows, WEIGHTS).backward()
    expected = copy.deepcopy(mixtral)
    with torch.no_grad():
        for layer in (0, 1):
            ids = [expert for i, expert in EXPERTS if i == layer]
            for tensor in ("gate_up_proj", "down_proj"):
                fused = expected.get_parameter(f"model.layers.{layer}.mlp.experts.{tensor}")
                grad = first.get_parameter(f"model.layers.{layer}.mlp.experts.{tensor}").grad
                fused[ids] -= 0.1 * grad[ids]
    # The second: one step of the routers from there, held to the base model as it was at first.
    expected.set_experts_implementation("eager")
    reference_loss(expected, mixtral, rows, WEIGHTS).backward()
    stock = stock_of(mixtral, model, trained)
    for name, parameter in expected.named_parameters():
        wanted = parameter.detach()
        if name.endswith("gate.weight"):
            wanted = wanted - 0.2 * parameter.grad
            assert not torch.equal(stock.get_parameter(name), mixtral.get_parameter(name))
        torch.testing.assert_close(stock.get_parameter(name), wanted, rtol=1e-4, atol=1e-5)
    assert "2 training steps are few" in listener.text


def test_what_is_kept_is_of_the_model_as_it_is_and_the_base_of_the_model_as_it_was(
    mixtral: Any,
) -> None:
    rows = mixed_rows()
    model = copy.deepcopy(mixtral)
    trained, (routers, experts) = parts(model, "routers", "experts", experts=[(1, 0), (1, 5)])
    move(trained)
    said: list[str] = []
    planner = Planner(model, find_moe_layers(model), trained, None, 0, lambda: mixtral, said.append)
    planner.skip(routers)
    plan = planner.plan(experts, WEIGHTS.objectives(), 2, rows)
    assert plan.lower_states is not None and plan.base_replies is not None
    assert "the 1 decoder layers below the trained ones have run once" in said[0]
    batch = collate([rows], 0)
    forward = plan.run(model, batch)
    stock = stock_of(mixtral, model, trained)
    for name, whole in (("refusal", stock), ("retention", stock)):
        found = forward.tokens(name).logits.log_softmax(-1)
        torch.testing.assert_close(found, said_by(whole, rows, name), rtol=1e-4, atol=1e-4)
    base = forward.base_logits("retention").log_softmax(-1)
    torch.testing.assert_close(base, said_by(mixtral, rows, "retention"), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def said_by(model: Any, rows: list[TrainingRow], objective: str) -> torch.Tensor:
    """Log-probabilities at the completion tokens of an objective's rows, each row by itself."""
    found = []
    for row in rows:
        if row.objective == objective:
            tokens = row.prompt_token_ids + row.completion_token_ids
            found.append(log_probabilities(model, tokens)[len(row.prompt_token_ids) - 1 : -1])
    return torch.cat(found)
