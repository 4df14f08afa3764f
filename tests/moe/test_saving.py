"""Saving beside the weights: configs that transformers reads and some versions refuse to write, and the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from conftest import ARCHITECTURES, byte_tokenizer, tiny_model
from steermoe.moe.checkpoint import save_hardened
from steermoe.moe.stored import stored_tensors

GREEDY_WITH_TEMPERATURE = {
    "do_sample": False,
    "temperature": 0.6,
    "top_p": 0.9,
    "eos_token_id": 256,
}


@pytest.fixture
def model() -> Any:
    """Its generation config is one that many published models have, and that no version writes gladly."""
    model = tiny_model("mixtral", byte_tokenizer(), **ARCHITECTURES["mixtral"])
    model.generation_config = GenerationConfig(**GREEDY_WITH_TEMPERATURE)
    return model


def refuse(self: Any, *_: Any, **__: Any) -> None:
    raise ValueError("GenerationConfig is invalid:\n- `temperature`: ...")


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_generation_config_is_saved_as_it_was_read(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """Refused, as by transformers 5.19 to 5.22: those of its own that `save_pretrained` makes are not."""
    own, save = model.generation_config, GenerationConfig.save_pretrained
    if is_refused:
        monkeypatch.setattr(
            GenerationConfig,
            "save_pretrained",
            lambda self, *given, **named: (refuse if self is own else save)(self, *given, **named),
        )
    save_hardened(model, byte_tokenizer(), tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: saved[name] for name in GREEDY_WITH_TEMPERATURE} == GREEDY_WITH_TEMPERATURE
    assert model.generation_config is own
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "config.json").exists()


def test_what_is_kept_wider_in_memory_is_saved_in_the_type_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    """As transformers keeps routers in float32 since 5.24, here by hand; the router is stored under another name."""
    model = tiny_model("mixtral", byte_tokenizer(), **ARCHITECTURES["mixtral"]).to(torch.bfloat16)
    save_hardened(model, byte_tokenizer(), tmp_path / "base")
    for layer in model.model.layers:
        layer.mlp.gate.weight.data = layer.mlp.gate.weight.data.float()
    save_hardened(model, byte_tokenizer(), tmp_path / "wide")
    save_hardened(model, byte_tokenizer(), tmp_path / "as-read", tmp_path / "base")
    weights = [(tmp_path / name / "model.safetensors") for name in ("base", "wide", "as-read")]
    assert weights[0].read_bytes() == weights[2].read_bytes() != weights[1].read_bytes()
    gates = {
        n: t for n, t in stored_tensors(tmp_path / "wide").items() if n.endswith("gate.weight")
    }
    assert {tensor.dtype for tensor in gates.values()} == {"F32"}
