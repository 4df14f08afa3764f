"""The loss of training in plain loops: one row at a time, no padding, stock experts; and trainers to compare with it.

Shape legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from steermoe.moe.slices import ExpertSlices, attach_expert_slices
from steermoe.records import Label
from steermoe.training.dataset import MicroBatches, TrainingRow, collate
from steermoe.training.forward_plan import ExpertMasks, ForwardPlan
from steermoe.training.objectives.refusal import Refusal
from steermoe.training.objectives.retention import Retention
from steermoe.training.objectives.token_weights import FirstTokens
from steermoe.training.trainables import Trainable, trainable_of
from steermoe.training.trainer import ExpertMaskingTrainer

EXPERTS = [(0, 1), (0, 6), (1, 0), (1, 5)]
CHECKPOINTING = (
    "activation_checkpointing"  # its name since transformers 5.20
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


@dataclass(frozen=True)
class LossWeights:
    """How the two objectives and their first tokens weigh, as the reference reads it."""

    refusal: float = 1.0
    retention: float = 1.0
    first_tokens: int = 0
    first_tokens_weight: float = 1.0

    def objectives(self) -> tuple[Refusal, Retention]:
        first = FirstTokens(self.first_tokens, self.first_tokens_weight)
        return Refusal(self.refusal, first), Retention(self.retention, first)


WEIGHTS = LossWeights(refusal=1.5, retention=2.5, first_tokens=2, first_tokens_weight=7.0)


def row(
    name: str,
    objective: str,
    label: Label = Label.UNSAFE,
    batch_idx: int = 0,
    seed: int = 0,
    lengths: tuple[int, int] | None = None,
) -> TrainingRow:
    """A row of random tokens, of a length that its seed draws."""
    generator = np.random.default_rng([seed, len(name), *name.encode()])
    num_prompt, num_completion = lengths or tuple(generator.integers(2, 9, 2))
    ids = generator.integers(3, 250, num_prompt + num_completion).tolist()
    messages = ({"role": "user", "content": name},)
    return TrainingRow(
        name,
        label,
        batch_idx,
        objective,
        messages,
        name,
        tuple(ids[:num_prompt]),
        tuple(ids[num_prompt:]),
    )


def mixed_rows(batch_idx: int = 0) -> list[TrainingRow]:
    """An unsafe prompt, a plain goal that must be refused too, and three replies to keep."""
    return [
        row("unsafe", "refusal", Label.UNSAFE, batch_idx, lengths=(4, 7)),
        row("plain goal", "refusal", Label.SAFE, batch_idx, lengths=(6, 3)),
        row("look-alike", "retention", Label.SAFE, batch_idx, lengths=(3, 5)),
        row("benign", "retention", Label.BENIGN, batch_idx, lengths=(8, 1)),
        row("safe", "retention", Label.SAFE, batch_idx, lengths=(2, 9)),
    ]


def with_moved_experts(
    base: Any, experts: Sequence[tuple[int, int]] = EXPERTS
) -> tuple[Any, ExpertSlices, Any]:
    """A model whose slices have moved, and a stock model with the same weights that trains its fused tensors."""
    model = copy.deepcopy(base)
    slices = attach_expert_slices(model, experts)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    stock = copy.deepcopy(base)
    stock.requires_grad_(False)
    for layer, expert in experts:
        for name in ("gate_up_proj", "down_proj"):
            fused = stock.model.layers[layer].mlp.experts.get_parameter(name)
            stack = dict(slices.named_parameters())[
                f"model.layers.{layer}.mlp.experts.trained_experts.{name}"
            ]
            place = [e for i, e in experts if i == layer].index(expert)
            fused.data[expert] = stack.data[place]
            fused.requires_grad_(True)
    stock.set_experts_implementation("eager")
    return model, slices, stock


def make_trainer(
    model: Any,
    folder: Path,
    rows: Sequence[TrainingRow] | MicroBatches = (),
    arguments: dict[str, Any] | None = None,
    *,
    slices: ExpertSlices | None = None,
    trained: Trainable | None = None,
    weights: LossWeights = WEIGHTS,
    mask_scope: str = "off",
    expert_mask: Any = None,
    **plan: Any,
) -> ExpertMaskingTrainer:
    """A trainer with a plan of its own, whose accelerators are given one by one."""
    data = rows if isinstance(rows, MicroBatches) else MicroBatches(list(rows) or mixed_rows())
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_grad_norm": 1e9,
        "data_seed": 0,
    }
    return ExpertMaskingTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **(chosen | (arguments or {}))),
        train_dataset=data,
        data_collator=partial(collate, pad_token_id=0),
        objectives=weights.objectives(),
        plan=ForwardPlan(
            model,
            trained if trained is not None else trainable_of(model, slices),
            masks=ExpertMasks(expert_mask, mask_scope) if mask_scope != "off" else None,
            **plan,
        ),
    )


# ---- the reference ------------------------------------------------------------------------------------


def log_probabilities(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """`(T, V)`, of the token that follows each."""
    return torch.log_softmax(
        model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float(), -1
    )


def reference_loss(
    stock: Any,
    base: Any,
    rows: Sequence[TrainingRow],
    weights: LossWeights,
    masked: Callable[[TrainingRow], Any] | None = None,
) -> torch.Tensor:
    """The formula of the loss, token by token: each objective is a weighted mean over its own tokens."""
    terms: dict[str, list[torch.Tensor]] = {"refusal": [], "retention": []}
    shares: dict[str, list[float]] = {"refusal": [], "retention": []}
    for one in rows:
        tokens = one.prompt_token_ids + one.completion_token_ids
        first = len(one.prompt_token_ids)
        if masked is None:
            mine = log_probabilities(stock, tokens)
        else:
            with masked(one):
                mine = log_probabilities(stock, tokens)
        for place, token in enumerate(one.completion_token_ids):
            predicted = mine[first + place - 1]
            share = 1.0
            if place < weights.first_tokens:
                share = weights.first_tokens_weight
            shares[one.objective].append(share)
            if one.objective == "refusal":
                terms["refusal"].append(-share * predicted[token])
                continue
            with torch.no_grad():
                theirs = log_probabilities(base, tokens)[first + place - 1]
            kl = sum((p.exp() * (p - q) for p, q in zip(theirs, predicted, strict=True)))
            terms["retention"].append(share * kl)
    loss = torch.zeros(())
    for objective, weight in (("refusal", weights.refusal), ("retention", weights.retention)):
        if terms[objective]:
            loss = loss + weight * sum(terms[objective]) / math.fsum(shares[objective])
    return loss


def compare_gradients(slices: ExpertSlices, stock: Any) -> None:
    """The gradients of the stacks equal those of the stock model's slices."""
    for name, parameter in slices.named_parameters():
        module, _, tensor = name.rpartition(".trained_experts.")
        layer = int(module.split(".")[2])
        ids = [expert for i, expert in slices.experts if i == layer]
        expected = stock.get_submodule(module).get_parameter(tensor).grad[ids]
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6)


def compare_with_reference(
    loss: torch.Tensor, expected: torch.Tensor, slices: ExpertSlices, stock: Any
) -> None:
    """The loss equals the reference's, and so do the gradients of both."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    compare_gradients(slices, stock)


def rows_that_begin_alike() -> list[TrainingRow]:
    """The mixed rows, each behind the same five tokens."""
    beginning = (7, 8, 9, 10, 11)
    return [
        dataclasses.replace(one, prompt_token_ids=beginning + one.prompt_token_ids)
        for one in mixed_rows()
    ]


def take_step(trainer: ExpertMaskingTrainer, model: Any, rows: list[TrainingRow]) -> torch.Tensor:
    """Forward and backward, as in the middle of a training."""
    trainer.current_gradient_accumulation_steps = 1
    return trainer.training_step(model, collate([rows], 0))
