"""Print the tables of docs/scaling.md: what published models cost, by the functions that `steermoe plan` uses.

`python -m benchmarks.scaling` prints them; `--write` puts them into the page.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from transformers import AutoConfig

from steermoe.costs import passes
from steermoe.costs.placement import (
    Need,
    Placement,
    fits,
    least_devices,
    memory_of_a_device,
)
from steermoe.embedded.description import embedded_config
from steermoe.moe.shape import ModelShape, shape_of_config

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"

CONFIGS: dict[str, tuple[str, dict[str, int]]] = {
    # The config.json of each model's repository on the hub, as far as sizes follow from it.
    "OLMoE-1B-7B": (  # allenai/OLMoE-1B-7B-0924-Instruct
        "olmoe",
        {
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "vocab_size": 50304,
        }
        | {"num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64}
        | {"num_experts_per_tok": 8},
    ),
    "Qwen3-30B-A3B": (  # Qwen/Qwen3-30B-A3B
        "qwen3_moe",
        {"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768}
        | {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4}
        | {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936},
    ),
    "Qwen3-235B-A22B": (  # Qwen/Qwen3-235B-A22B
        "qwen3_moe",
        {"hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536}
        | {"num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4}
        | {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936},
    ),
    "gpt-oss-120b": (  # openai/gpt-oss-120b, unpacked from MXFP4
        "gpt_oss",
        {"hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36, "head_dim": 64}
        | {"num_attention_heads": 64, "num_key_value_heads": 8, "num_local_experts": 128}
        | {"num_experts_per_tok": 4, "vocab_size": 201088},
    ),
    "DeepSeek-V3": (  # deepseek-ai/DeepSeek-V3, unpacked from FP8, without the layer that predicts a second token
        "deepseek_v3",
        {"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048}
        | {"num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128}
        | {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8}
        | {"topk_group": 4, "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512}
        | {
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "vocab_size": 129280,
        },
    ),
}

PROMPTS, PROMPT_TOKENS, REPLY_TOKENS = 1000, 64, 64
HELD_OUT, SCORED = 300, 192
STEPS, ROWS, TRAINED = 45, 24, 50
TOGETHER = 64
"""Rows that are decoded together by one copy of the model."""

DEVICE_GIB = 79.6
"""What a card of 80 GB gives."""

PEAK_FLOPS, PEAK_BYTES = 989e12, 3.35e12
"""One H100 (SXM): dense bf16 operations and bytes of memory in a second, by its data sheet."""

SHARE_OF_FLOPS, SHARE_OF_BYTES = 0.35, 0.5
"""What is assumed to be reached of the two. The first is this project's target, not a measurement."""

DISK_BYTES = 2e9
"""Assumed speed of the disk that weights are read from."""

DEVICES = (1, 2, 4, 8, 16, 32, 64)
LENGTH = PROMPT_TOKENS + REPLY_TOKENS


@cache
def shape_of(name: str) -> ModelShape:
    """The shape of one of the published models."""
    model_type, values = CONFIGS[name]
    return shape_of_config(AutoConfig.for_model(model_type, **values))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of markdown."""
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def gib(num_bytes: float) -> str:
    """Three digits of GiB."""
    return f"{num_bytes / 2**30:,.3g}" if num_bytes < 1000 * 2**30 else f"{num_bytes / 2**30:,.0f}"


def seconds(value: float) -> str:
    """Two digits, in the unit that fits."""
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= 1.5 * size:
            return f"{value / size:.2g} {unit}"
    return f"{value:.2g} s"


def shapes() -> str:
    """What the models are."""
    rows = []
    for name in CONFIGS:
        shape = shape_of(name)
        rows.append(
            [
                name,
                f"{shape.num_parameters / 1e9:.1f} B",
                f"{shape.active / 1e9:.1f} B",
                f"{shape.num_moe_layers} x {shape.num_experts}, top-{shape.top_k}",
                f"{shape.expert / 1e6:.1f} M",
                gib(2 * shape.num_parameters),
                gib(passes.bytes_to_train(shape, TRAINED)),
                f"{passes.cache_bytes(shape) / 1024:,.0f}",
                f"{passes.routing_bytes(shape, 0, 1):,}",
            ]
        )
    head = ["model", "parameters", "of one token", "experts", "one expert", "weights, GiB"]
    head += [f"{TRAINED} trained, GiB", "cache, KiB a token", "routes, bytes a token"]
    return table(head, rows)


def phases(shape: ModelShape) -> dict[str, tuple[int, float]]:
    """Tokens and operations of each phase of the job."""
    half = LENGTH / 2
    collected, held_out = PROMPTS * LENGTH, HELD_OUT * LENGTH
    scored, trained = SCORED * LENGTH, STEPS * ROWS * LENGTH
    replies = ROWS * REPLY_TOKENS
    step = passes.step_flops(shape, ROWS * LENGTH, half, TRAINED, 0, replies)
    return {
        "collect": (
            collected,
            passes.forward_flops(shape, collected, half, PROMPTS * REPLY_TOKENS),
        ),
        # A forward pass, gradients of all inputs, and of the weights' inner products: some three forward passes.
        "score": (scored, 3 * passes.forward_flops(shape, scored, half)),
        "train": (trained, STEPS * step),
        # Replies of the hardened model, and both models fed the replies of the base model.
        "evaluate": (3 * held_out, passes.forward_flops(shape, 3 * held_out, half)),
    }


def job() -> str:
    """What the job asks for, in tokens, operations and bytes."""
    rows = []
    for name in CONFIGS:
        shape = shape_of(name)
        found = phases(shape)
        rows.append(
            [
                name,
                *(f"{flops / 1e15:,.2g}" for _, flops in found.values()),
                gib(passes.routing_bytes(shape, PROMPTS, PROMPTS * LENGTH)),
                gib(2 * 2 * shape.num_parameters),
                gib(2 * passes.bytes_to_train(shape, TRAINED) * 3 // 4),
            ]
        )
    tokens = phases(shape_of("OLMoE-1B-7B"))
    head = ["model", *(f"{name}, PFLOP ({count:,} tokens)" for name, (count, _) in tokens.items())]
    head += ["routing on disk, GiB", "base and hardened, GiB", "checkpoints, GiB"]
    return table(head, rows)


def training_need(shape: ModelShape, processes: int) -> Need:
    """Beside the weights: each process takes its part of the rows, with checkpointing."""
    rows = math.ceil(ROWS / processes)
    working = passes.activation_bytes(shape, rows * LENGTH, rows * REPLY_TOKENS, True)
    return Need(passes.bytes_to_train(shape, TRAINED), working)


def memory(placed: Callable[[int], Placement]) -> str:
    """GiB on the fullest of so many devices while training; in bold where it fits."""
    rows = []
    for name in CONFIGS:
        shape, cells = shape_of(name), []
        for count in DEVICES:
            placement = placed(count)
            need = training_need(shape, placement.processes)
            taken = memory_of_a_device(shape, placement, need, is_training=True)
            fitting = fits(taken, DEVICE_GIB * 2**30)
            cells.append(f"**{gib(taken)}**" if fitting else gib(taken))
        rows.append([name, *cells])
    return table(["GiB on", *map(str, DEVICES)], rows)


def sharded() -> str:
    """One process a device, each with its share of the model."""
    return memory(lambda count: Placement(count, count, "fsdp2"))


def spread() -> str:
    """One process, the layers spread over its devices."""
    return memory(lambda count: Placement(count))


def time() -> str:
    """Wall time on so many cards, if the assumed rates are reached."""
    rows = []
    for name in CONFIGS:
        shape = shape_of(name)
        found = phases(shape)
        need = Need(working=passes.generation_bytes(shape, TOGETHER, PROMPT_TOKENS, REPLY_TOKENS))
        least = least_devices(shape, need, DEVICE_GIB * 2**30, "ddp") or shape.num_decoder_layers
        of_a_step = passes.decode_bytes(shape, TOGETHER, LENGTH)
        calls = math.ceil(PROMPTS / TOGETHER) * REPLY_TOKENS
        for count in (1, 8, 64):
            if count < least:
                rows.append([name, str(count), *["does not fit"] * 4])
                continue
            rate = count * PEAK_FLOPS * SHARE_OF_FLOPS
            reading = calls * of_a_step / (count * PEAK_BYTES * SHARE_OF_BYTES)
            ahead = found["collect"][1] / 2 / rate  # the prompts' half
            evaluated = reading * HELD_OUT / PROMPTS + found["evaluate"][1] / rate
            rows.append(
                [
                    name,
                    str(count),
                    seconds(ahead + reading),
                    seconds(found["train"][1] / rate),
                    seconds(evaluated),
                    seconds(2 * shape.num_parameters / DISK_BYTES),
                ]
            )
    return table(["model", "cards", "collect", "train", "evaluate", "read the weights once"], rows)


def measured() -> str:
    """The same functions beside what two processor cores took (docs/performance.md)."""
    olmoe, embedded = shape_of("OLMoE-1B-7B"), shape_of_config(embedded_config())
    tokens, row = 4 * 128, 64
    forward = passes.forward_flops(olmoe, tokens, row)
    step = passes.step_flops(olmoe, tokens, row, TRAINED)
    collected = passes.forward_flops(embedded, 36_416 + 47_036, 42, 1008 + 47_036)
    stepped = passes.step_flops(embedded, 720, 25, 64, 10)
    beside = passes.bytes_to_train(olmoe, TRAINED) * 3 // 4  # no gradients are held there
    memory = 2 * olmoe.num_parameters + beside
    memory += passes.activation_bytes(olmoe, tokens, tokens, False)
    rows = [
        ["OLMoE-1B-7B, forward pass of 4 x 128 tokens", forward, 4.75],
        ["OLMoE-1B-7B, training step of the same, 50 experts", step, 11.9],
        ["embedded model, collecting 36,416 prompt and 47,036 generated tokens", collected, 229],
        ["embedded model, 45 training steps of some 720 tokens", 45 * stepped, 278],
    ]
    cells = [
        [what, f"{flops / 1e12:.3g}", f"{taken:g}", f"{flops / taken / 1e9:.0f}"]
        for what, flops, taken in rows
    ]
    cells.append(["OLMoE-1B-7B, memory of that step", f"{gib(memory)} GiB", "19.2 GiB", ""])
    return table(["what", "counted, TFLOP", "measured, s", "GFLOP/s"], cells)


TABLES = {
    "shapes": shapes,
    "job": job,
    "sharded": sharded,
    "spread": spread,
    "time": time,
    "measured": measured,
}


def filled(text: str) -> str:
    """A page with its tables made anew: each stands between `<!-- table: NAME -->` and `<!-- end -->`."""

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->).*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into docs/scaling.md")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
        return
    for name, made in TABLES.items():
        print(f"## {name}\n\n{made()}\n")


if __name__ == "__main__":
    main()
