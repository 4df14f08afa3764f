"""What a step of the real trainer costs: refusals and replies to keep, as a run trains on them."""

from __future__ import annotations

import random
import tempfile

import torch
from transformers import TrainingArguments

from benchmarks.measuring import REPEATS, Row, absolute_seconds, ratio, take_turns
from benchmarks.sides import olmoe, some_experts
from steermoe.moe.slices import attach_expert_slices
from steermoe.records import Label
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import MicroBatches, Objective, TrainingRow, collate
from steermoe.training.trainer import ExpertMaskingTrainer

NUM_LAYERS, NUM_EXPERTS = 2, 12
ROWS_OF_EACH = 4
PROMPT_TOKENS, REPLY_TOKENS = 24, 40


def trainer_step(repeats: int = REPEATS) -> list[Row]:
    """`ExpertMaskingTrainer.training_step` against a bare forward pass of the base model over the same rows.

    The step is loss and gradients: the optimizer's part is in the other measures.
    """
    model = olmoe(NUM_LAYERS)
    slices = attach_expert_slices(model, some_experts(NUM_LAYERS, NUM_EXPERTS))
    rows = [
        _row(objective, number, model.config.vocab_size)
        for number in range(ROWS_OF_EACH)
        for objective in ("refusal", "retention")
    ]
    data = MicroBatches(rows)
    batch = collate([rows], pad_token_id=0)
    with slices.switched_off():
        base_replies = BaseReplies(model, [row for row in rows if row.objective == "retention"], 0)

    @torch.no_grad()
    def bare_forward() -> None:
        with slices.switched_off():
            model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none")
        trainer = ExpertMaskingTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            slices=slices,
            base_replies=base_replies if base_replies.is_exact else None,
        )
        trainer.current_gradient_accumulation_steps = 1  # what `train` sets before its first step

        def step() -> None:
            trainer.training_step(model, dict(batch))
            for parameter in slices.parameters():
                parameter.grad = None

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


def _row(objective: Objective, number: int, vocabulary: int) -> TrainingRow:
    """A row of random tokens, of a length of its own, so that there is padding."""
    name = f"{objective} {number}"
    generator = random.Random(name)
    prompt = generator.choices(range(3, vocabulary), k=PROMPT_TOKENS - number)
    reply = generator.choices(range(3, vocabulary), k=REPLY_TOKENS - 2 * number)
    label = Label.UNSAFE if objective == "refusal" else Label.BENIGN
    messages = ({"role": "user", "content": name},)
    return TrainingRow(name, label, 0, objective, messages, name, tuple(prompt), tuple(reply))
