"""What collecting costs on the embedded model: recording beside generating, and reading prompts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.embedded_model import benign_prompts
from benchmarks.measuring import REPEATS, Row, absolute_seconds, mean_ratio, ratio, take_turns
from steermoe.analysis.counts import count_response
from steermoe.config import ModelSection
from steermoe.engines.transformers import TransformersEngine, contiguous_head_input
from steermoe.loading import load_model
from steermoe.moe.distinct_tokens import computing_distinct
from steermoe.moe.routing import RoutingRecorder
from steermoe.records import Message, Sampling

NUM_PROMPTS = 32
NEW_TOKENS = 24
READ_TOGETHER = 192
"""Prompts that the embedded model's preset generates replies to in one call."""


def recording(repeats: int = REPEATS) -> list[Row]:
    """Bare `generate` against collection of the same batch, and a bare forward pass against a recorded one."""
    engine, conversations, fed = prompts_for_the_engine(NUM_PROMPTS)
    model, description = engine.model, engine.description
    greedy = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=engine.stop_token_ids,
        pad_token_id=engine.pad_token_id,
    )

    @torch.inference_mode()
    def bare_generate() -> None:
        # What collection does to the model's kernels, with nothing recorded.
        with contiguous_head_input(model), computing_distinct(model, description):
            model.generate(**fed, generation_config=greedy)

    def collect() -> None:
        for output in engine.generate(conversations, Sampling(NEW_TOKENS)):
            count_response(
                output.routed_experts, len(output.prompt_token_ids), description.num_experts
            )

    @torch.inference_mode()
    def bare_forward() -> None:
        model(**fed, use_cache=False, logits_to_keep=1)

    @torch.inference_mode()
    def recorded_forward() -> None:
        with RoutingRecorder(model, description) as recorder:
            model(**fed, use_cache=False, logits_to_keep=1)
        recorder.take()

    rows = []
    for what, bare, recorded in (
        ("collecting, against bare generate", bare_generate, collect),
        ("a recorded forward pass, against a bare one", bare_forward, recorded_forward),
    ):
        seconds = take_turns({"bare": bare, "recorded": recorded}, repeats)
        reached = mean_ratio(seconds, "recorded", "bare")
        rows.append(
            Row(
                f"{what}, {NUM_PROMPTS} prompts",
                "at most 1.03 x at the interval's upper end",
                f"{reached.median:.3f} x ({reached.low:.3f}-{reached.high:.3f})",
                absolute_seconds(seconds),
            )
        )
    return rows


def reading(repeats: int = REPEATS) -> list[Row]:
    """Prompts read with the experts of distinct tokens computed alone, against those of all positions."""
    engine, _, fed = prompts_for_the_engine(READ_TOGETHER)

    @torch.inference_mode()
    def read_all() -> None:
        with contiguous_head_input(engine.model):
            engine.model(**fed, logits_to_keep=1)

    def read_distinct() -> None:
        with computing_distinct(engine.model, engine.description):
            read_all()

    seconds = take_turns({"all": read_all, "distinct": read_distinct}, repeats)
    return [
        Row(
            f"reading {READ_TOGETHER} prompts of the embedded model, experts of distinct tokens alone, against those "
            "of all positions",
            "none",
            f"{ratio(seconds, 'distinct', 'all')} x",
            absolute_seconds(seconds),
        )
    ]


def prompts_for_the_engine(count: int) -> tuple[TransformersEngine, list[tuple[Message, ...]], Any]:
    """The embedded model's engine, prompts for it, and their ids and mask, padded on the left."""
    loaded = load_model(ModelSection())
    engine = TransformersEngine(loaded.model, loaded.tokenizer, loaded.description)
    conversations: list[tuple[Message, ...]] = [
        ({"role": "user", "content": text},) for text in benign_prompts(count)
    ]
    fed = engine.tokenizer(
        [engine.render(messages) for messages in conversations],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return engine, conversations, fed
