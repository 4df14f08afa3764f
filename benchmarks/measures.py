"""The measures, each of which runs alone in a process of its own and returns rows of the table."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.arithmetic import step_over_forward
from benchmarks.decoding import decoding as decoding
from benchmarks.measuring import (
    REPEATS,
    Row,
    absolute_seconds,
    measure_memory,
    ratio,
    take_turns,
)
from benchmarks.recording import reading as reading
from benchmarks.recording import recording as recording
from benchmarks.sides import (
    MakeOptimizer,
    Step,
    default_adamw,
    frozen_forward,
    full_gradient_step,
    fused_adamw,
    lora_step,
    masked_step,
    olmoe,
    slices_step,
    some_experts,
    tokens,
)
from benchmarks.training import distinct_tokens as distinct_tokens
from benchmarks.training import lower_states as lower_states
from benchmarks.training import trainer_step as trainer_step
from steermoe.analysis.counts import count_active
from steermoe.moe.slices import attach_expert_slices

FEW_LAYERS, FEW_EXPERTS = 4, 12
ALL_LAYERS, MANY_EXPERTS = 16, 50


def full_gradient(repeats: int = REPEATS) -> list[Row]:
    """A training step against full gradients and a mask, with the optimizer as torch makes it."""
    return _against_full_gradient(repeats, default_adamw, "AdamW as torch makes it")


def full_gradient_fused(repeats: int = REPEATS) -> list[Row]:
    """The same with the optimizer as transformers' trainer makes it."""
    return _against_full_gradient(repeats, fused_adamw, "AdamW(fused=True)")


def _against_full_gradient(repeats: int, adamw: MakeOptimizer, optimizer: str) -> list[Row]:
    """Both sides take turns on the same weights in one process."""
    model = olmoe(FEW_LAYERS)
    ids, experts = tokens(model), some_experts(FEW_LAYERS, FEW_EXPERTS)
    full, fused = full_gradient_step(model, ids, experts, adamw)
    slices = attach_expert_slices(model, experts)

    def full_on_the_stock_model() -> None:
        for parameter in fused:
            parameter.requires_grad_(True)
        with slices.switched_off():
            full()
        for parameter in fused:
            parameter.requires_grad_(False)

    seconds = take_turns(
        {
            "slices": slices_step(model, ids, slices, adamw),
            "full gradient": full_on_the_stock_model,
            "frozen forward": frozen_forward(model, ids, slices),
        },
        repeats,
    )
    limit = step_over_forward(model, ids, experts)
    reached = ratio(seconds, "slices", "frozen forward")
    return [
        Row(
            f"training step, 4 layers, 12 experts, against full gradient + mask, {optimizer}",
            "at least 5 x faster",
            f"{ratio(seconds, 'full gradient', 'slices')} x faster",
            absolute_seconds(seconds),
        ),
        Row(
            f"the same step against a frozen forward, {optimizer}",
            f"arithmetic {limit:.2f} x",
            f"{reached} x",
            f"{reached.median / limit:.2f} x the arithmetic",
        ),
    ]


def full_size(repeats: int = REPEATS) -> list[Row]:
    """OLMoE-1B-7B: a training step against a frozen forward, and the peak memory of it all."""
    with measure_memory() as memory:
        model = olmoe(ALL_LAYERS)
        ids, experts = tokens(model), some_experts(ALL_LAYERS, MANY_EXPERTS)
        slices = attach_expert_slices(model, experts)
        sides = {
            "slices": slices_step(model, ids, slices),
            "frozen forward": frozen_forward(model, ids, slices),
        }
        seconds = take_turns(sides, repeats)
    weights = sum(p.numel() * p.itemsize for p in model.parameters() if not p.requires_grad) / 2**30
    limit = step_over_forward(model, ids, experts)
    reached = ratio(seconds, "slices", "frozen forward")
    return [
        Row(
            "training step, full-size OLMoE-1B-7B, 50 experts, against a frozen forward",
            "at most 2.6 x",
            f"{reached} x",
            f"{absolute_seconds(seconds)}; arithmetic {limit:.2f} x",
        ),
        Row(
            "peak memory of that step and its optimizer",
            "at most 18.5 GiB",
            f"{memory.peak:.1f} GiB",
            f"weights {weights:.1f} GiB, process before {memory.before:.1f} GiB",
        ),
    ]


def lora(repeats: int = REPEATS) -> list[Row]:
    """A training step against LoRA on all experts of the same layers; two models in one process."""
    experts = some_experts(FEW_LAYERS, FEW_EXPERTS)
    model, other = olmoe(FEW_LAYERS), olmoe(FEW_LAYERS)
    ids = tokens(model)
    slices = attach_expert_slices(model, experts)
    seconds = take_turns(
        {"slices": slices_step(model, ids, slices), "LoRA": lora_step(other, ids, experts)}, repeats
    )
    return [
        Row(
            "training step against PEFT LoRA, rank 8, all experts of the same layers",
            "at most 0.8 x",
            f"{ratio(seconds, 'slices', 'LoRA')} x",
            absolute_seconds(seconds),
        )
    ]


def masked(repeats: int = REPEATS) -> list[Row]:
    """A masked training step against an unmasked one."""
    model = olmoe(FEW_LAYERS)
    ids, experts = tokens(model), some_experts(FEW_LAYERS, FEW_EXPERTS)
    slices = attach_expert_slices(model, experts)
    step = slices_step(model, ids, slices)
    seconds = take_turns({"masked": masked_step(step, model, slices), "unmasked": step}, repeats)
    return [
        Row(
            "masked training step against the unmasked",
            "at most 1.1 x",
            f"{ratio(seconds, 'masked', 'unmasked')} x",
            absolute_seconds(seconds),
        )
    ]


def counting(repeats: int = REPEATS) -> list[Row]:
    """Counting routed experts, as a run counts them, against one `numpy.bincount` of the same ids."""
    shape, num_experts = (1_000_000, 48, 8), 128
    generator = np.random.default_rng(0)
    # Eight experts in a row, anywhere in the ring of all of them: no token chooses one twice.
    first = generator.integers(num_experts, size=(*shape[:2], 1), dtype=np.uint8)
    ids = (first + np.arange(shape[2], dtype=np.uint8)) % num_experts
    flat = ids.reshape(-1)
    seconds = take_turns(
        {
            "count": lambda: count_active(ids, num_experts),
            "bincount": lambda: np.bincount(flat, minlength=num_experts),
        },
        repeats,
    )
    return [
        Row(
            "counting 1 million tokens x 48 layers x top-8 of 128 experts",
            "at most 3 x one numpy.bincount",
            f"{ratio(seconds, 'count', 'bincount')} x",
            absolute_seconds(seconds),
        )
    ]


def memory_of(side: str, steps: int = 3) -> float:
    """GiB beyond the loaded weights that some training steps of one side take at their peak."""
    model = olmoe(FEW_LAYERS)
    ids, experts = tokens(model), some_experts(FEW_LAYERS, FEW_EXPERTS)
    frozen_forward(model, ids)()
    model.requires_grad_(False)
    with measure_memory() as memory:
        step: Step
        if side == "slices":
            step = slices_step(model, ids, attach_expert_slices(model, experts))
        elif side == "full gradient":
            model.requires_grad_(True)
            step, fused = full_gradient_step(model, ids, experts)
            model.requires_grad_(False)
            for parameter in fused:
                parameter.requires_grad_(True)
        else:
            step = lora_step(model, ids, experts)
        for _ in range(steps):
            step()
    return memory.beyond


def profile(num_rows: int = 16) -> str:
    """Where the time of a training step goes, by operation."""
    model = olmoe(FEW_LAYERS)
    ids, experts = tokens(model), some_experts(FEW_LAYERS, FEW_EXPERTS)
    step = slices_step(model, ids, attach_expert_slices(model, experts))
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    averages = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    lines = ["| operation | calls | ms | share |", "| --- | --- | --- | --- |"]
    for event in sorted(averages, key=lambda e: -e.self_cpu_time_total)[:num_rows]:
        own = event.self_cpu_time_total
        lines.append(f"| {event.key[:60]} | {event.count} | {own / 1e3:.0f} | {own / total:.1%} |")
    return "\n".join(lines)
