"""The figures that need a GPU, in at most ten minutes: `python -m benchmarks.gpu FOLDER`.

Each part runs in a process of its own under a limit of its own, and `gpu.json` and `gpu.md` are written after each, so
that whatever is cut off loses nothing that was measured. `--tiny` runs every part on a processor, with tiny shapes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import ratio, take_turns

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12}
"""Dense bf16 operations in a second, by data sheet."""

LIMITS = {"collecting": 130, "training": 130, "lora": 90, "large": 130, "vllm": 100}
"""Seconds of each part: 580 in all."""

Figures = dict[str, float | str]


def new_model(tiny: bool, family: str = "olmoe") -> Any:
    """A model of OLMoE-1B-7B's or Qwen3-30B-A3B's shape with random weights, where it is to run."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from benchmarks.scaling import CONFIGS

    model_type, values = CONFIGS["OLMoE-1B-7B" if family == "olmoe" else "Qwen3-30B-A3B"]
    if tiny:
        values = values | {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
        values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
        values |= {"moe_intermediate_size": 32, "head_dim": 16} if family != "olmoe" else {}
    config = AutoConfig.for_model(model_type, **values, router_aux_loss_coef=0.0)
    torch.manual_seed(0)
    with torch.device(device()), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1) if parameter.dim() == 1 else parameter.normal_(0, 0.02)
    model.set_experts_implementation("grouped_mm")
    return model.eval().requires_grad_(False)


def device() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the card has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def waited(step: Callable[[], object]) -> Callable[[], None]:
    """The step with the wait for its end."""

    def run() -> None:
        step()
        wait()

    return run


def peak_gib() -> float:
    """Most memory that tensors took on the card; 0 on a processor."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def share_of_peak(flops: float, seconds: float) -> float | str:
    """Of the card's bf16 peak, where it is known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for card, peak in PEAK_FLOPS.items() if card in name), None)
    return "not known" if peak is None else flops / seconds / peak


def collecting(tiny: bool) -> Figures:
    """`generate` with the routers recorded against the same without, interleaved."""
    from transformers import GenerationConfig

    from steermoe.moe.routing import RoutingRecorder

    model = new_model(tiny)
    rows, length, new = (4, 8, 4) if tiny else (64, 64, 48)
    ids = torch.randint(3, model.config.vocab_size, (rows, length), device=device())
    greedy = GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=1
    )
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "generation_config": greedy}

    @torch.inference_mode()
    def bare() -> None:
        model.generate(**given)

    @torch.inference_mode()
    def recorded() -> None:
        with RoutingRecorder(model) as recorder:
            model.generate(**given)
        recorder.take()

    found = take_turns({"bare": waited(bare), "recorded": waited(recorded)}, 1 if tiny else 5)
    return {
        "generate, s": median(found["bare"]),
        "with recording, s": median(found["recorded"]),
        "with / without": str(ratio(found, "recorded", "bare")),
        "new tokens a second": rows * new / median(found["recorded"]),
        "peak, GiB": peak_gib(),
    }


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over all tokens."""
    loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def stepper(model: Any, wrapped: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW's step of whatever requires a gradient."""
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    model.train()
    # transformers 5.23 has given it another name.
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def step() -> None:
        loss_of(wrapped, ids).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return waited(step)


def some_experts(model: Any, count: int) -> list[tuple[int, int]]:
    """As many experts, spread evenly over all layers; the lowest layer is among them."""
    layers, experts = model.config.num_hidden_layers, model.config.num_experts
    every = layers * experts // count
    return [divmod(i * every, experts) for i in range(count)]


def training(tiny: bool, family: str = "olmoe") -> Figures:
    """A step of 50 experts at 16 x 512 tokens (of the larger model, at the rows that fit)."""
    from steermoe.costs.passes import step_flops
    from steermoe.moe.shape import shape_of_config
    from steermoe.moe.slices import attach_expert_slices

    model = new_model(tiny, family)
    rows, length, count = (2, 8, 4) if tiny else (16, 512, 50)
    shape = shape_of_config(model.config)
    attach_expert_slices(model, some_experts(model, count))
    while True:
        ids = torch.randint(3, model.config.vocab_size, (rows, length), device=device())
        step = stepper(model, model, ids)
        try:
            seconds = take_turns({"step": step}, 1 if tiny else 5)["step"]
            break
        except torch.OutOfMemoryError:
            if rows == 1:
                return {"fits": "no, not one row", "peak, GiB": peak_gib()}
            rows //= 2
            model.zero_grad(set_to_none=True)
            del step, ids
            gc.collect()
            torch.cuda.empty_cache()
    flops = step_flops(shape, rows * length, length / 2, count)
    return {
        "rows of 512 tokens": rows,
        "step, s": median(seconds),
        "peak, GiB": peak_gib(),
        "counted, TFLOP": flops / 1e12,
        "share of the bf16 peak": share_of_peak(flops, median(seconds)),
    }


def large(tiny: bool) -> Figures:
    """Qwen3-30B-A3B's shape: whether a step fits."""
    return training(tiny, "qwen3")


def lora(tiny: bool) -> Figures:
    """PEFT's LoRA of rank 8 on all experts of the layers in which experts train."""
    from peft import LoraConfig, get_peft_model

    model = new_model(tiny)
    rows, length = (2, 8) if tiny else (16, 512)
    layers = sorted({layer for layer, _ in some_experts(model, 4 if tiny else 50)})
    names = [
        f"layers.{layer}.mlp.experts.{name}"
        for layer in layers
        for name in ("gate_up_proj", "down_proj")
    ]
    config = LoraConfig(r=8, lora_alpha=8, target_modules=[], target_parameters=names)
    wrapped = get_peft_model(model, config)
    ids = torch.randint(3, model.config.vocab_size, (rows, length), device=device())
    seconds = take_turns({"step": stepper(model, wrapped, ids)}, 1 if tiny else 5)["step"]
    return {"step, s": median(seconds), "peak, GiB": peak_gib()}


def vllm(tiny: bool) -> Figures:
    """VLLM's tokens a second on the shape of `collecting`, where it can be imported."""
    import tempfile

    from vllm import LLM, SamplingParams

    rows, length, new = (4, 8, 4) if tiny else (64, 64, 48)
    with tempfile.TemporaryDirectory() as folder:
        model = new_model(tiny)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        vocabulary = model.config.vocab_size
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        llm = LLM(
            folder,
            load_format="dummy",
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=length + new,
        )
        prompts = torch.randint(3, vocabulary, (rows, length)).tolist()
        given = [{"prompt_token_ids": ids} for ids in prompts]
        greedy = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        found = take_turns({"vllm": lambda: llm.generate(given, greedy)}, 1 if tiny else 5)
    return {
        "generate, s": median(found["vllm"]),
        "new tokens a second": rows * new / median(found["vllm"]),
    }


PARTS: dict[str, Callable[[bool], Figures]] = {
    "collecting": collecting,
    "training": training,
    "lora": lora,
    "large": large,
    "vllm": vllm,
}


def in_a_process(part: str, tiny: bool, limit: float) -> Figures:
    """The figures of a part, or what kept it from having any."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--alone", part]
    try:
        done = subprocess.run(
            command + ["--tiny"] * tiny, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"cut off after {limit:.0f} s"}
    lines = done.stdout.splitlines() if done.returncode == 0 else done.stderr.splitlines()
    last = lines[-1] if lines else f"exit code {done.returncode}"
    figures: Figures = json.loads(last) if done.returncode == 0 else {"failed": last}
    return figures


def write(folder: Path, found: dict[str, Any]) -> None:
    """Everything so far, for programs and for readers."""
    (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    lines = ["| part | figure | value |", "| --- | --- | --- |"]
    for part, figures in found.items():
        for name, value in figures.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"| {part} | {name} | {shown} |")
    (folder / "gpu.md").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get("OUT", "."))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a processor too")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone:
        print(json.dumps(PARTS[chosen.alone](chosen.tiny)))
        return
    chosen.folder = Path(chosen.folder)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
    found: dict[str, Any] = {"machine": {"device": name, "torch": torch.__version__}}
    for part in chosen.parts:
        started = time.perf_counter()
        found[part] = in_a_process(part, chosen.tiny, LIMITS[part])
        found[part]["whole part, s"] = time.perf_counter() - started
        write(chosen.folder, found)
        print(part, found[part], flush=True)


if __name__ == "__main__":
    main()
