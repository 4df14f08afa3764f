"""Packed checkpoints, FP8 and MXFP4, written by hand: unpacked on request, trained, and saved as ordinary ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from architectures import BY_NAME, token_ids
from conftest import byte_tokenizer
from steermoe.config import ModelSection
from steermoe.errors import ModelError
from steermoe.loading import LoadedModel, load_model
from steermoe.moe.checkpoint import save_hardened, verify_only_selected_changed
from steermoe.moe.delta import apply_delta, read_delta_header, save_delta
from steermoe.moe.slices import attach_expert_slices
from steermoe.moe.stored import hash_checkpoint, stored_tensors

LARGEST_FP8 = 448.0
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of the format E2M1, by their four bits."""

EXPERTS = [(1, 4), (1, 6)]
"""In the one MoE layer that both models have; experts that tokens of the tests go to."""

Packed = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Tensors as they are stored, and the ordinary ones that they stand for."""


def blocks_of(weight: Tensor, side: int) -> list[list[tuple[slice, slice]]]:
    """The places of square blocks in a matrix; those at its ends may be smaller."""
    return [
        [(slice(i, i + side), slice(j, j + side)) for j in range(0, weight.shape[1], side)]
        for i in range(0, weight.shape[0], side)
    ]


def as_fp8(weights: Mapping[str, Tensor], side: int) -> Packed:
    """Linear layers in FP8, with one scale a block beside them; the rest as it is."""
    stored, meant = dict(weights), dict(weights)
    for name, weight in weights.items():
        if not name.endswith("_proj.weight") and "_proj_with_mqa" not in name:
            continue
        places = blocks_of(weight, side)
        scales = torch.tensor(
            [[float(weight[p].abs().max()) / LARGEST_FP8 for p in row] for row in places]
        )
        packed, exact = torch.empty_like(weight, dtype=torch.float8_e4m3fn), weight.float()
        for i, row in enumerate(places):
            for j, place in enumerate(row):
                packed[place] = (exact[place] / scales[i, j]).to(packed.dtype)
                exact[place] = packed[place].float() * scales[i, j]
        stored |= {name: packed, f"{name}_scale_inv": scales}
        meant[name] = exact.to(weight.dtype)
    return stored, meant


def as_mxfp4(weights: Mapping[str, Tensor]) -> Packed:
    """Experts in MXFP4: along the input, 32 numbers of four bits share an exponent with a bias of 127."""
    stored, meant = dict(weights), dict(weights)
    for name, weight in weights.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        groups = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))  # (E, out, groups, 32)
        exponents = torch.ceil(torch.log2(groups.abs().amax(-1, keepdim=True) / 6))
        codes = (groups / 2**exponents).unsqueeze(-1).sub(torch.tensor(FP4)).abs().argmin(-1)
        values = torch.tensor(FP4)[codes] * 2**exponents
        del stored[name]
        stored[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        stored[f"{name}_scales"] = (exponents[..., 0] + 127).to(torch.uint8)
        meant[name] = values.flatten(-2).transpose(1, 2).contiguous().to(weight.dtype)
    return stored, meant


def write(folder: Path, architecture: str, pack: Callable[..., Packed], **settings: Any) -> Packed:
    """Save a tiny bfloat16 model as a packed checkpoint."""
    tiny = BY_NAME[architecture]
    # A group of MXFP4 is 32 numbers, so experts cannot be narrower.
    wide = replace(tiny, options=tiny.options | {"intermediate_size": 32})
    wide.build().to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    # A loaded model keeps the router's bias in fp32.
    stored, meant = pack(
        {name: w.float() if name.endswith("correction_bias") else w for name, w in weights.items()}
    )
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return stored, meant


def fp8_deepseek(folder: Path, side: int = 128) -> Packed:
    return write(
        folder,
        "deepseek_v3",
        lambda weights: as_fp8(weights, side),
        quant_method="fp8",
        fmt="e4m3",
        activation_scheme="dynamic",
        weight_block_size=[side, side],
    )


def mxfp4_gpt_oss(folder: Path) -> Packed:
    return write(folder, "gpt_oss", as_mxfp4, quant_method="mxfp4")


PACKED = pytest.mark.parametrize(
    ("pack", "method"), [(fp8_deepseek, "fp8"), (mxfp4_gpt_oss, "mxfp4")], ids=["fp8", "mxfp4"]
)


def load(folder: Path) -> LoadedModel:
    return load_model(ModelSection(id=str(folder), dequantize=True, device="cpu"))


def train_one_step(model: Any) -> None:
    slices = attach_expert_slices(model, EXPERTS)
    optimizer = torch.optim.SGD(slices.parameters(), lr=100.0)
    ids = token_ids(2, 24)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    slices.fold()
    slices.detach()


@PACKED
def test_packed_weights_are_refused_unless_unpacking_is_asked_for(
    tmp_path: Path, pack: Callable[[Path], Packed], method: str
) -> None:
    pack(tmp_path)
    with pytest.raises(ModelError, match=f"packed as {method}, .* set model.dequantize=true"):
        load_model(ModelSection(id=str(tmp_path)))


@PACKED
def test_an_unpacked_model_is_saved_as_an_ordinary_one(
    tmp_path: Path, pack: Callable[[Path], Packed], method: str
) -> None:
    """Nothing trained: what is saved is what the packed weights stand for, computed here on its own."""
    stored, meant = pack(tmp_path / "packed")
    assert stored.keys() != meant.keys()
    loaded = load(tmp_path / "packed")
    save_hardened(loaded.model, loaded.tokenizer, tmp_path / "plain", tmp_path / "packed")
    saved = load_file(tmp_path / "plain" / "model.safetensors")
    assert saved.keys() == meant.keys()
    for name, tensor in meant.items():
        assert saved[name].dtype is tensor.dtype, name
        assert torch.equal(saved[name], tensor), name
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    report = verify_only_selected_changed(tmp_path / "packed", tmp_path / "plain", EXPERTS)
    assert report.num_changed == 0
    assert report.num_compared == len(meant)


@PACKED
def test_an_unpacked_model_is_hardened_and_its_change_is_carried(
    tmp_path: Path, pack: Callable[[Path], Packed], method: str
) -> None:
    _, meant = pack(tmp_path / "packed")
    loaded = load(tmp_path / "packed")
    train_one_step(loaded.model)
    hardened, delta = tmp_path / "hardened", tmp_path / "x.safetensors"
    save_hardened(loaded.model, loaded.tokenizer, hardened, tmp_path / "packed")
    ids = token_ids(2, 9)
    with torch.no_grad():
        logits = loaded.model.eval()(ids).logits
        reloaded = AutoModelForCausalLM.from_pretrained(hardened, dtype="auto").eval()
        assert not hasattr(reloaded.config, "quantization_config")
        # Routers may be kept wider in memory, never on disk; their bias is stored in float32.
        stored = stored_tensors(hardened).values()
        assert {t.dtype for t in stored if "correction_bias" not in t.name} == {"BF16"}
        torch.testing.assert_close(reloaded(ids).logits, logits, rtol=0, atol=0)

    report = verify_only_selected_changed(tmp_path / "packed", hardened, EXPERTS)
    assert report.changed_experts == tuple(EXPERTS)
    assert report.num_compared == len(meant)
    assert save_delta(tmp_path / "packed", hardened, EXPERTS, delta) == report
    assert read_delta_header(delta).resaved_as == "bfloat16"
    made = apply_delta(tmp_path / "packed", delta, tmp_path / "made")
    assert hash_checkpoint(made) == hash_checkpoint(hardened)
    assert "quantization_config" not in (made / "config.json").read_text()
    assert (made / "tokenizer.json").is_file()


def test_whole_blocks_of_fp8_have_a_scale_each(tmp_path: Path) -> None:
    """Blocks of 8 divide every matrix of the model, and most have several."""
    stored, meant = fp8_deepseek(tmp_path / "packed", side=8)
    scales = stored["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"]
    assert scales.shape == (3, 4)
    loaded = load(tmp_path / "packed")
    save_hardened(loaded.model, loaded.tokenizer, tmp_path / "plain", tmp_path / "packed")
    saved = load_file(tmp_path / "plain" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in meant.items())


@pytest.mark.parametrize("side", [7, 16])
def test_fp8_that_ends_within_a_block_is_refused_before_weights_load(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 24 rows in blocks of 16, two scales: transformers would take 12 rows for a block."""
    fp8_deepseek(tmp_path, side=side)
    loading: list[str] = []
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: loading.append("!")
    )
    first = {7: "layers.0.mlp.down_proj", 16: "layers.0.self_attn.kv_a_proj_with_mqa"}[side]
    message = f"FP8 blocks of {side} x {side} do not divide model.{first}.weight "
    with pytest.raises(ModelError, match=message):
        load(tmp_path)
    assert not loading


def test_the_names_of_a_packed_checkpoint_are_those_of_the_ordinary_one(tmp_path: Path) -> None:
    """One tensor for each expert and matrix, as DeepSeek-V3 was published."""
    fp8_deepseek(tmp_path / "packed")
    loaded = load(tmp_path / "packed")
    save_hardened(loaded.model, loaded.tokenizer, tmp_path / "plain", tmp_path / "packed")
    names = stored_tensors(tmp_path / "plain").keys()
    assert "model.layers.1.mlp.experts.6.gate_proj.weight" in names
    assert not any("scale" in name or "gate_up" in name for name in names)
