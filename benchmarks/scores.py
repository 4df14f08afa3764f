"""What scores cost: recording them while collecting, and the gradients of a full-size model's experts.

`python -m benchmarks.scores recorded`: collecting on the embedded model with the sums of recorded scores, against
collecting without them.
`python -m benchmarks.scores forecast`: the pass behind the forecast, on the embedded model with its default settings:
seconds, and those of the processor.
`python -m benchmarks.scores selectivity`: on OLMoE-1B-7B's shape with random weights in bf16, the gradient products of
all 1,024 experts over 64 harmful and 64 harmless prompts: seconds, peak memory, and the ratio to the forward and
backward passes alone. It takes 16 GB.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.embedded_model import starter
from benchmarks.measuring import REPEATS, Row, absolute_seconds, mean_ratio, take_turns
from benchmarks.recording import NEW_TOKENS, NUM_PROMPTS, prompts_for_the_engine
from steermoe.analysis.counts import find_shared_tokens
from steermoe.chat import encode
from steermoe.config import load_config
from steermoe.engines.scoring import PaddedRows
from steermoe.engines.transformers import TransformersEngine
from steermoe.loading import load_model
from steermoe.moe.description import MoEDescription
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.weight_gradients import LayerTokens, captured_tokens, gradient_products, joined
from steermoe.pipeline.memory import PeakMemory
from steermoe.records import Continuation, Sampling
from steermoe.training.targets import resolve_target
from steermoe.units import gibibytes

OLMOE = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
}
"""The config of OLMoE-1B-7B-0924."""

PROMPT_TOKENS = 32
TOGETHER = 8


def recorded(repeats: int = REPEATS) -> Row:
    """Collecting with the sums of the recorded scores, against collecting without them."""
    engine, conversations, _ = prompts_for_the_engine(NUM_PROMPTS)
    shared = find_shared_tokens(
        encode(engine.tokenizer, engine.render(messages)) for messages in conversations
    )

    def collect(sums: bool) -> Callable[[], None]:
        def run() -> None:
            engine.shared_tokens = shared if sums else None
            engine.generate(conversations, Sampling(NEW_TOKENS))

        return run

    seconds = take_turns({"without": collect(False), "with": collect(True)}, repeats)
    reached = mean_ratio(seconds, "with", "without")
    return Row(
        f"collecting with the recorded scores, against without them, {NUM_PROMPTS} prompts",
        "at most 1.05 x at the interval's upper end",
        f"{reached.median:.3f} x ({reached.low:.3f}-{reached.high:.3f})",
        absolute_seconds(seconds),
    )


def forecast() -> Row:
    """Gradient products of all experts of the embedded model over so many starter prompts of each kind."""
    config = load_config()
    number = config.identify.score_prompts
    loaded = load_model(config.model)
    loaded.model.requires_grad_(False)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, loaded.description)
    refusal = encode(loaded.tokenizer, resolve_target(config.train.target_response)(None, 0))[:1]  # type: ignore[arg-type]
    system = [{"role": "system", "content": config.prompts.system_prompt or ""}]
    texts = []
    for label in ("unsafe", "safe", "benign"):
        rows = [r for r in starter() if r["label"] == label and r["split"] == "train"][:number]
        for row in rows:
            turns = [*system, {"role": "user", "content": row["prompt"]}]
            prompt = encode(loaded.tokenizer, engine.render(turns))
            texts.append(Continuation(label, tuple(prompt), tuple(refusal)))
    peak = PeakMemory()
    started, used = time.perf_counter(), time.process_time()
    captured = _captured(loaded.model, loaded.description, texts)
    of_passes = time.process_time() - used
    towards = torch.tensor([text.prompt_id == "unsafe" for text in texts])
    lengths = torch.tensor([len(text.prompt_token_ids) for text in texts])
    _products(loaded.model, loaded.description, captured, towards, lengths)
    seconds, whole = time.perf_counter() - started, time.process_time() - used
    return Row(
        f"the pass of a forecast, embedded model, {len(texts)} prompts of {lengths.float().mean():.0f} tokens on "
        f"average, {torch.get_num_threads()} threads",
        "at most 90 s on two cores",
        f"{seconds:.0f} s",
        f"{whole:.0f} s of the processor, of which forward and backward passes {of_passes:.0f} s; peak "
        f"{gibibytes(peak.read())}",
    )


def selectivity(num_prompts: int) -> Row:
    """The gradient products of all experts of a full-size model, and the passes that they cannot do without."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("olmoe", **OLMOE), dtype=torch.bfloat16
        )
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.02, generator=generator)
    model.model.rotary_emb = type(model.model.rotary_emb)(
        model.config
    )  # its buffers were empty as well
    description = find_moe_layers(model)
    ids = torch.randint(
        3, OLMOE["vocab_size"], (2 * num_prompts, PROMPT_TOKENS + 1), generator=generator
    )
    texts = [
        Continuation(str(i), tuple(row[:-1].tolist()), (int(row[-1]),)) for i, row in enumerate(ids)
    ]
    weights = PeakMemory().read()
    peak = PeakMemory()
    started = time.perf_counter()
    captured = _captured(model, description, texts)
    of_passes = time.perf_counter() - started
    towards = torch.arange(2 * num_prompts) < num_prompts
    lengths = torch.full((2 * num_prompts,), PROMPT_TOKENS)
    products = _products(model, description, captured, towards, lengths)
    whole = time.perf_counter() - started
    assert torch.isfinite(products).all()
    return Row(
        f"gradient products of {description.num_layers * description.num_experts} experts, {num_prompts} + "
        f"{num_prompts} prompts of {PROMPT_TOKENS} tokens, OLMoE-1B-7B in bf16, {torch.get_num_threads()} threads",
        "no weight-sized gradient of all experts",
        f"{whole / of_passes:.2f} x the passes alone",
        f"{whole:.0f} s, passes {of_passes:.0f} s; peak {gibibytes(peak.read())}, weights {gibibytes(weights)}",
    )


def _captured(
    model: torch.nn.Module, description: MoEDescription, texts: list[Continuation]
) -> list[list[LayerTokens]]:
    """What every layer saw of each group of texts: forward and backward passes, and nothing else."""
    found = []
    for start in range(0, len(texts), TOGETHER):
        padded = PaddedRows.of(texts[start : start + TOGETHER], 0)
        with captured_tokens(model, description) as layers:
            logits = padded.through(model).logits[0].float()
            targets = torch.tensor(
                [t.completion_token_ids[0] for t in texts[start : start + TOGETHER]]
            )
            torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
        is_real = padded.attention_mask.flatten().bool()
        found.append([layer.select(is_real) for layer in layers])
    return found


def _products(
    model: torch.nn.Module,
    description: MoEDescription,
    captured: list[list[LayerTokens]],
    towards: Tensor,
    lengths: Tensor,
) -> Tensor:
    text_of_token = torch.arange(len(towards)).repeat_interleave(lengths)
    return torch.stack(
        [
            gradient_products(
                model.get_submodule(layer.experts_name),
                joined([group[position] for group in captured]),
                text_of_token,
                towards,
            )
            for position, layer in enumerate(description.layers)
        ],
        dim=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measure", choices=("recorded", "forecast", "selectivity"))
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns that count")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of each side")
    chosen = parser.parse_args()
    measures = {
        "recorded": lambda: recorded(chosen.repeats),
        "forecast": forecast,
        "selectivity": lambda: selectivity(chosen.prompts),
    }
    row = measures[chosen.measure]()
    print(f"{row.measure}\n  target: {row.target}\n  result: {row.result}\n  figures: {row.detail}")


if __name__ == "__main__":
    main()
