"""A real vLLM against `transformers`: same texts, same routes, tokens per second.

    .venv-vllm/bin/python -m benchmarks.engines [--dtype bfloat16] [--prompts 192] [--repeats 3] [--model DIR]

Both generate the same group in turns, in one run, with as many threads each (OMP_NUM_THREADS). Routes are compared on
replies of both: token by token where the texts are the same, and with the local model's own top-k on all of vLLM's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.embedded_model import benign_prompts
from benchmarks.measuring import Spread, ratio, take_turns
from steermoe.config import load_config
from steermoe.engines.route_check import compare_routes
from steermoe.engines.transformers import TransformersEngine
from steermoe.loading import load_model, model_source
from steermoe.records import Output, Sampling
from steermoe.stages.opening import vllm_engine


def compared(ours: Sequence[Output], theirs: Sequence[Output]) -> str:
    """How many texts are equal, and how many choices differ on the tokens up to where they part."""
    num_equal = num_begun = num_rows = num_differing = 0
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip(one.generated_token_ids, other.generated_token_ids, strict=False)
        alike = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        num_equal += one.generated_token_ids == other.generated_token_ids
        num_begun += one.generated_text[:20] == other.generated_text[:20]
        fed = len(one.prompt_token_ids) + (
            alike if alike is not None else len(one.generated_token_ids) - 1
        )
        rows = min(fed, len(one.routed_experts), len(other.routed_experts))
        differs = np.sort(one.routed_experts[:rows], -1) != np.sort(other.routed_experts[:rows], -1)
        num_differing += int(differs.any(-1).sum())
        num_rows += differs.shape[0] * differs.shape[1]
    return (
        f"texts equal to the end {num_equal} of {len(ours)}, in the first 20 characters {num_begun}; of the choices on "
        f"equal tokens {num_differing} of {num_rows} differ"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-moe")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    arguments = {"kv_cache_memory_bytes": 2**30, "max_model_len": 1024}
    config = load_config(
        overrides={
            "model": {"id": given.model, "dtype": given.dtype},
            "collect": {"engine": "vllm", "engine_args": arguments},
        }
    )
    source = model_source(config.model)
    loaded = load_model(config.model, source)
    local = TransformersEngine(loaded.model, loaded.tokenizer, loaded.description)
    conversations = [[{"role": "user", "content": text}] for text in benign_prompts(given.prompts)]
    sampling = Sampling(given.tokens)
    made: dict[str, list[Output]] = {}

    def run(name: str, engine: Any) -> None:
        made[name] = engine.generate(conversations, sampling)

    with vllm_engine(config, source, loaded.tokenizer) as other:
        sides = {
            "transformers": lambda: run("transformers", local),
            "vllm": lambda: run("vllm", other),
        }
        seconds = take_turns(sides, given.repeats)
    for name, outputs in made.items():
        tokens = sum(len(output.generated_token_ids) for output in outputs)
        speed = Spread.of([tokens / value for value in seconds[name]])
        print(f"{name}: {len(outputs)} prompts, {tokens} generated tokens, {speed} tokens/s")
    print(f"seconds of transformers over those of vllm: {ratio(seconds, 'transformers', 'vllm')}")
    print(compared(made["transformers"], made["vllm"]))
    fed = [
        ((o.prompt_token_ids + o.generated_token_ids)[:-1], o.routed_experts) for o in made["vllm"]
    ]
    print(
        f"vllm against the local model's own top-k: {compare_routes(loaded.model, loaded.description, fed)}"
    )


if __name__ == "__main__":
    main()
