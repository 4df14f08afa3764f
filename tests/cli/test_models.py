"""`steermoe models`: what it says of a model from its config alone, and of files that are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV3Config, GptOssConfig, GraniteMoeSharedConfig

from tiny import CommandLine

MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "eos_token_id": 2,
}


@pytest.fixture
def steermoe(steermoe: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line of a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return steermoe


def test_models_lists_architectures_and_describes_one(
    steermoe: CommandLine, checkpoint: Path
) -> None:
    assert steermoe("models") == 0
    for name in ("olmoe", "mixtral", "qwen3_moe", "gpt_oss", "llama4"):
        assert re.search(rf"\b{name}\b", steermoe.out), name
    assert int(re.search(r"(\d+) supported architectures", steermoe.out)[1]) >= 40
    assert steermoe("models", str(checkpoint)) == 0
    assert re.search(r"experts of a layer\s+8, of which 2", steermoe.out)
    assert "MixtralForCausalLM" in steermoe.out
    assert "1,536" in steermoe.out, "3 matrices of 32 x 16"
    assert "/no/model" in steermoe.refusal("models", "/no/model")


def folder_with(path: Path, config: bytes | object) -> Path:
    """A folder whose `config.json` holds the bytes, or the object as JSON."""
    path.mkdir()
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    (path / "config.json").write_bytes(content)
    return path


def rows(text: str) -> dict[str, str]:
    """The printed table: its first column to its second."""
    pairs = (line.strip().partition("  ") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs if value}


def test_a_model_is_described_from_its_config_alone(steermoe: CommandLine, tmp_path: Path) -> None:
    assert steermoe("models", folder_with(tmp_path / "[model]", MIXTRAL)) == 0
    assert "[model] (MixtralForCausalLM)" in steermoe.out
    described = rows(steermoe.out)
    assert described["MoE layers"] == "2 (decoder layers 0-1)"
    assert described["experts of a layer"] == "8, of which 2 run for a token"
    assert described["shared experts"] == "no"
    assert described["parameters of an expert"] == "1,536"  # 3 matrices of 32 x 16
    assert not any("pack" in name for name in described)


@pytest.mark.parametrize(("width", "said"), [(0, "no"), (16, "yes")])
def test_an_mlp_beside_the_experts_is_said_to_be_shared(
    steermoe: CommandLine, tmp_path: Path, width: int, said: str
) -> None:
    granite = GraniteMoeSharedConfig(num_hidden_layers=1, shared_intermediate_size=width)
    assert steermoe("models", folder_with(tmp_path / "granite", granite.to_dict())) == 0
    assert rows(steermoe.out)["shared experts"] == said


FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
MXFP4 = {
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    "quant_method": "mxfp4",
}


@pytest.mark.parametrize(
    ("config", "packing", "billions"),
    [
        (GptOssConfig(tie_word_embeddings=False), MXFP4, 116.8),  # gpt-oss-120b, as published
        (DeepseekV3Config(), FP8, 671.0),  # DeepSeek-V3 without its prediction of a second token
    ],
    ids=["gpt-oss", "deepseek-v3"],
)
def test_packed_weights_are_described_with_what_unpacking_them_takes(
    steermoe: CommandLine, tmp_path: Path, config: Any, packing: dict[str, Any], billions: float
) -> None:
    packed = config.to_dict() | {"quantization_config": packing}
    assert steermoe("models", folder_with(tmp_path / "packed", packed)) == 0
    described = rows(steermoe.out)
    method = packing["quant_method"]
    assert described["weights are packed as"] == f"{method}; packed experts cannot be trained"
    setting, _, memory = described["to unpack them"].partition(", with ")
    assert setting == "model.dequantize=true"
    gibibytes = float(memory.removesuffix(" GiB of memory for all").replace(",", ""))
    assert gibibytes == pytest.approx(billions * 1e9 * 2 / 2**30, rel=1e-3)


def changed(**values: Any) -> dict[str, Any]:
    return MIXTRAL | values


def qwen3(**values: Any) -> dict[str, Any]:
    return MIXTRAL | {"model_type": "qwen3_moe", "moe_intermediate_size": 16} | values


ODD_CONFIGS: dict[str, tuple[bytes | object, str]] = {
    "experts below zero": (changed(num_local_experts=-1), r"num_local_experts = -1, .* negative"),
    "no experts": (changed(num_local_experts=0), "has 0 routed experts in a layer and chooses 2"),
    "no experts, so dense": (
        qwen3(num_local_experts=0),
        r"this qwen3_moe model is dense: its config \(.*num_local_experts = 0\)",
    ),
    "every layer dense": (qwen3(mlp_only_layers=[0, 1]), "gives no layer routed experts"),
    "experts as text": (changed(num_local_experts="8"), "'num_local_experts' expected int"),
    "more chosen than there are": (changed(num_experts_per_tok=16), "has 8 .* chooses 16 of them"),
    "none chosen": (changed(num_experts_per_tok=0), "has 8 .* chooses 0 of them"),
    "chosen below zero": (changed(num_experts_per_tok=-2), "num_experts_per_tok = -2"),
    "no layers": (changed(num_hidden_layers=0), "num_hidden_layers = 0, and must be at least 1"),
    "layers below zero": (changed(num_hidden_layers=-3), "num_hidden_layers = -3"),
    "no width": (changed(hidden_size=0), "hidden_size = 0"),
    "experts without width": (changed(intermediate_size=0), "experts of width 0"),
    "no heads": (changed(num_attention_heads=0), "num_attention_heads = 0"),
    "unknown activation": (changed(hidden_act="nope"), "'nope' is not known"),
    "packing as text": (changed(quantization_config="fp8"), "quantization_config of .* is 'fp8'"),
    "packing as a list": (changed(quantization_config=[8]), r"quantization_config of .* is \[8\]"),
    "packing without method": (changed(quantization_config={"bits": 4}), "has no quant_method"),
    "packing of nothing": (changed(quantization_config={}), "has no quant_method"),
    "packing of the language model": (
        {"model_type": "qwen3_vl_moe", "text_config": {"quantization_config": "fp8"}},
        "quantization_config of .* is 'fp8'",
    ),
    "packing for good": (
        changed(quantization_config={"quant_method": "gptq", "bits": 4}),
        "packed as gptq, which cannot be trained or unpacked",
    ),
    "empty": (b"", "is not JSON"),
    "cut off": (json.dumps(MIXTRAL).encode()[:50], "is not JSON"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0", "is not JSON"),
    "zeros": (b"\0" * 64, "is not JSON"),
    "deep": (b"[" * 200_000, "is not JSON"),
    "a list": ([MIXTRAL], "must hold an object of settings, not "),
    "null": (None, "must hold an object of settings, not null"),
    "nothing set": ({}, "has no model_type"),
    "no model_type": (changed(model_type=None), "has no model_type"),
    "model_type as a number": (changed(model_type=5), "has no model_type"),
    "unknown model_type": (changed(model_type="zzz"), "architecture 'zzz' .* not in transformers"),
    "a dense model": ({"model_type": "llama"}, "llama is not supported: it is dense"),
    "a part as text": ({"model_type": "qwen3_vl_moe", "text_config": "x"}, "'text_config'"),
}


@pytest.mark.parametrize(("config", "reason"), ODD_CONFIGS.values(), ids=list(ODD_CONFIGS))
def test_a_config_that_fits_no_model_is_refused_in_one_line_that_names_it(
    steermoe: CommandLine, tmp_path: Path, config: bytes | object, reason: str
) -> None:
    folder = folder_with(tmp_path / "odd", config)
    refusal = steermoe.refusal("models", folder)
    assert str(folder) in refusal
    assert re.search(reason, refusal), refusal


def test_what_is_no_directory_of_a_model_is_refused(steermoe: CommandLine, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", MIXTRAL)
    assert "model.id" in steermoe.refusal("models", "")
    assert "' ' does not exist" in steermoe.refusal("models", " ")
    assert "is a file" in steermoe.refusal("models", folder / "config.json")
    (folder / "config.json").unlink()
    assert f"{folder} has no config.json" in steermoe.refusal("models", folder)
    (folder / "config.json").mkdir()
    assert f"config of {folder} cannot be read" in steermoe.refusal("models", folder)
