"""What a step of the real trainer costs: refusals and replies to keep, as a run trains on them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainingArguments

from benchmarks.measuring import REPEATS, Row, absolute_seconds, ratio, take_turns
from benchmarks.sides import olmoe, some_experts
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.partial_passes import LowerLayers
from steermoe.moe.slices import ExpertSlices, attach_expert_slices
from steermoe.records import Label
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import MicroBatches, TrainingRow, collate
from steermoe.training.forward_plan import ForwardPlan
from steermoe.training.lower_states import LowerStates
from steermoe.training.trainables import Experts
from steermoe.training.trainer import ExpertMaskingTrainer

NUM_LAYERS, NUM_EXPERTS = 2, 12
SHARED_TOKENS = 14
"""What every prompt begins with, as the embedded model's chat template has it."""
DEEP = 6
ROWS_OF_EACH = 4
PROMPT_TOKENS, REPLY_TOKENS = 24, 40


def trainer_step(repeats: int = REPEATS) -> list[Row]:
    """`ExpertMaskingTrainer.training_step` against a bare forward pass of the base model over the same rows.

    The step is loss and gradients: the optimizer's part is in the other measures.
    """
    model = olmoe(NUM_LAYERS)
    slices = attach_expert_slices(model, some_experts(NUM_LAYERS, NUM_EXPERTS))
    rows = _rows(model)
    data = MicroBatches(rows)
    batch = collate([rows], pad_token_id=0)
    base_replies = _base_replies(model, slices, rows)

    @torch.no_grad()
    def bare_forward() -> None:
        with slices.switched_off():
            model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    with tempfile.TemporaryDirectory() as folder:
        step = _stepper(model, folder, data, slices=slices, base_replies=base_replies)
        seconds = take_turns({"trainer step": step, "bare forward": bare_forward}, repeats)
    return [
        Row(
            f"the trainer's step, {ROWS_OF_EACH} refusals and {ROWS_OF_EACH} replies, OLMoE's shape with "
            f"{NUM_LAYERS} layers, {NUM_EXPERTS} experts, against a bare forward pass of the rows",
            "none",
            f"{ratio(seconds, 'trainer step', 'bare forward')} x",
            absolute_seconds(seconds),
        )
    ]


def lower_states(repeats: int = REPEATS) -> list[Row]:
    """A training step of upper layers with the states of the lower ones kept, against one that runs them."""
    model = olmoe(DEEP)
    upper = [(DEEP - NUM_LAYERS + i, e) for i, e in some_experts(NUM_LAYERS, NUM_EXPERTS)]
    slices = attach_expert_slices(model, upper)
    rows = _rows(model)
    data = MicroBatches(rows)
    layers = LowerLayers(model, find_moe_layers(model), upper[0][0])
    states = LowerStates(model, layers, rows, 0)
    base_replies = _base_replies(model, slices, rows)
    with tempfile.TemporaryDirectory() as folder:
        shared = {"slices": slices, "base_replies": base_replies}
        sides = {
            "kept": _stepper(model, folder, data, lower_states=states, **shared),
            "run": _stepper(model, folder, data, **shared),
        }
        seconds = take_turns(sides, repeats)
    return [
        Row(
            f"the trainer's step with {NUM_EXPERTS} experts of the upper {NUM_LAYERS} of {DEEP} layers, OLMoE's "
            "shape, the states of the lower layers kept, against a step that runs them",
            "none",
            f"{ratio(seconds, 'kept', 'run')} x",
            absolute_seconds(seconds),
        )
    ]


def distinct_tokens(repeats: int = REPEATS) -> list[Row]:
    """A training step whose experts compute what rows begin with once and no padding, against all positions."""
    model = olmoe(NUM_LAYERS)
    slices = attach_expert_slices(model, some_experts(NUM_LAYERS, NUM_EXPERTS))
    beginning = tuple(range(3, 3 + SHARED_TOKENS))
    rows = [
        replace(row, prompt_token_ids=beginning + row.prompt_token_ids[SHARED_TOKENS:])
        for row in _rows(model)
    ]
    data = MicroBatches(rows)
    base_replies = _base_replies(model, slices, rows)
    with tempfile.TemporaryDirectory() as folder:
        shared = {"slices": slices, "base_replies": base_replies}
        sides = {
            "distinct": _stepper(model, folder, data, **shared),
            "all": _stepper(model, folder, data, plan_class=_EveryPosition, **shared),
        }
        seconds = take_turns(sides, repeats)
    return [
        Row(
            f"the trainer's step on rows that share {SHARED_TOKENS} of {PROMPT_TOKENS} prompt tokens, OLMoE's shape "
            f"with {NUM_LAYERS} layers, {NUM_EXPERTS} experts, against one whose experts compute every position",
            "none",
            f"{ratio(seconds, 'distinct', 'all')} x",
            absolute_seconds(seconds),
        )
    ]


class _EveryPosition(ForwardPlan):
    """Computes what rows share in each of them, and padding too."""

    def step(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:
        return nullcontext()


def _base_replies(model: Any, slices: ExpertSlices, rows: Sequence[TrainingRow]) -> BaseReplies:
    with slices.switched_off():
        return BaseReplies(model, [row for row in rows if row.objective == "retention"], 0)


def _stepper(
    model: Any,
    folder: str,
    data: MicroBatches,
    slices: ExpertSlices,
    plan_class: type[ForwardPlan] = ForwardPlan,
    **plan: Any,
) -> Callable[[], None]:
    """A training step of the trainer on the one micro-batch there is, its gradients thrown away."""
    arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none")
    trainer = ExpertMaskingTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        plan=plan_class(model, Experts(slices), **plan),
    )
    trainer.current_gradient_accumulation_steps = 1  # what `train` sets before its first step
    batch = collate([data[0]], pad_token_id=0)

    def step() -> None:
        trainer.training_step(model, dict(batch))
        for parameter in slices.parameters():
            parameter.grad = None

    return step


def _rows(model: Any) -> list[TrainingRow]:
    return [
        _row(objective, number, model.config.vocab_size)
        for number in range(ROWS_OF_EACH)
        for objective in ("refusal", "retention")
    ]


def _row(objective: str, number: int, vocabulary: int) -> TrainingRow:
    """A row of random tokens, of a length of its own, so that there is padding."""
    name = f"{objective} {number}"
    generator = random.Random(name)
    prompt = generator.choices(range(3, vocabulary), k=PROMPT_TOKENS - number)
    reply = generator.choices(range(3, vocabulary), k=REPLY_TOKENS - 2 * number)
    label = Label.UNSAFE if objective == "refusal" else Label.BENIGN
    messages = ({"role": "user", "content": name},)
    return TrainingRow(name, label, 0, objective, messages, name, tuple(prompt), tuple(reply))
