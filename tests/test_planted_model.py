"""A model whose unsafe experts are known, through the real pipeline: the experts that are found must be those.

Its text is random. Shouted letters (capitals) carry a signal in the first of the residual stream's
dimensions; attention in the first layer spreads it over everything that follows, replies included; and a
few experts' router rows listen to it. Nothing else reads or writes that dimension, and capitals are
otherwise embedded as their small letters are. So the prompts that shout reach the planted experts more
often, in prompt and reply, and no other expert for its own sake.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import byte_tokenizer, save_with_tokenizer, silence_all_but, tiny_model
from steermoe.config import Config
from steermoe.pipeline import run_pipeline
from steermoe.store.run import load_run
from tiny import tiny_config, write_prompts

NUM_LAYERS, NUM_EXPERTS, WIDTH, HEAD = 4, 16, 32, 8
PLANTED = {(0, 3), (1, 0), (1, 9), (2, 7), (3, 4), (3, 15)}
"""In every layer, the last one's last expert among them."""

SIGNAL = 0
"""The dimension of the residual stream that says "shouted"."""


def save_planted_model(folder: Path, seed: int) -> None:
    """A random Mixtral with the planted experts, and its tokenizer."""
    tokenizer = byte_tokenizer()
    model = tiny_model(
        "mixtral",
        tokenizer,
        hidden_size=WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=WIDTH // HEAD,
        head_dim=HEAD,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=2,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.3, generator=generator)
        model.lm_head.weight[:, SIGNAL] = 0.0
        silence_all_but({*string.ascii_lowercase, " "}, model, tokenizer)
        embedding = model.model.embed_tokens.weight
        embedding.normal_(0.0, 1.0, generator=generator)
        embedding[:, SIGNAL] = 0.0
        for capital in string.ascii_uppercase:
            shouted, said = tokenizer.convert_tokens_to_ids([capital, capital.lower()])
            embedding[shouted] = embedding[said]
            embedding[shouted, SIGNAL] = 3.0
        for number, layer in enumerate(model.model.layers):
            attention, block = layer.self_attn, layer.mlp
            attention.o_proj.weight[SIGNAL] = 0.0
            attention.v_proj.weight[:, SIGNAL] = 0.0
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[:, SIGNAL] = 0.0
            block.experts.gate_up_proj[:, :, SIGNAL] = 0.0
            block.experts.down_proj *= 0.1  # Whom a token met hardly matters to later layers.
            block.experts.down_proj[:, SIGNAL] = 0.0
            block.gate.weight[:, SIGNAL] = 0.0
            for layer_index, expert in PLANTED:
                if layer_index == number:
                    block.gate.weight[expert, SIGNAL] = 3.0
        # The first head of the first layer looks at everything alike, and passes the signal on.
        first = model.model.layers[0].self_attn
        first.q_proj.weight[:HEAD] = 0.0
        first.v_proj.weight[0] = 0.0
        first.v_proj.weight[0, SIGNAL] = 1.0
        first.o_proj.weight[:, 0] = 0.0
        first.o_proj.weight[SIGNAL, 0] = 6.0
    save_with_tokenizer(model, tokenizer, folder)


def random_words(generator: np.random.Generator) -> str:
    """Eight random words of small letters."""
    letters = list(string.ascii_lowercase)
    return " ".join("".join(generator.choice(letters, generator.integers(3, 8))) for _ in range(8))


def shouting_prompts(path: Path, num_per_class: int) -> Path:
    """Prompts of random words: the unsafe ones shout three of the eight, the safe ones none."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num_per_class + 8):
        split = "train" if number < num_per_class else "test"
        for label in ("safe", "unsafe", "benign"):
            words = random_words(generator).split()
            if label == "unsafe":
                words[2:5] = [word.upper() for word in words[2:5]]
            if label != "benign" or split == "test":
                rows.append({"prompt": " ".join(words), "label": label, "split": split})
    return write_prompts(path, rows)


@pytest.fixture(scope="module", params=[0, 1, 2])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a planted model, its prompts, and what was collected from it."""
    folder = tmp_path_factory.mktemp("planted")
    save_planted_model(folder / "model", request.param)
    shouting_prompts(folder / "prompts.csv", 320)
    run_pipeline(config_of(folder), only="collect")
    return folder


def config_of(folder: Path, **identify: Any) -> Config:
    return tiny_config(
        folder / "model",
        folder / "run",
        folder / "prompts.csv",
        collect={
            "batch_size": 16,
            "max_new_tokens": 12,
            "generation_batch_size": 64,
            "temperature": 1.0,  # Greedy replies of a random model go round in circles.
        },
        identify={"threshold": 0.05, "top_k": 50, "num_permutations": 2000, "num_bootstrap": 500}
        | identify,
    )


@pytest.mark.parametrize("segment", ["generation", "prompt"])
@pytest.mark.parametrize("rule", ["threshold", "fdr", "stability", "combined"])
def test_the_planted_experts_are_found_and_no_others(
    planted: Path, rule: str, segment: str
) -> None:
    run_pipeline(config_of(planted, rule=rule, segment=segment), only="identify")
    found = set(load_run(planted / "run").unsafe_experts)
    assert len(found & PLANTED) >= 0.95 * len(PLANTED)  # recall
    assert len(found & PLANTED) >= 0.95 * len(found)  # precision
