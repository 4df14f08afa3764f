"""Where a model computes, and in which type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralForCausalLM

from conftest import TinyCheckpoint
from ready_run import ready_run
from steermoe import devices
from steermoe.config import ModelSection
from steermoe.devices import Widths, has_arithmetic, pick_device, type_in_memory
from steermoe.errors import ConfigError
from steermoe.loading import load_model, widths_named
from steermoe.pipeline import run_pipeline
from steermoe.records import Expert
from steermoe.reporter import silent
from steermoe.stages.train import train_experts
from steermoe.store.run import load_run
from tiny import Listener, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def without_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has no arithmetic for bfloat16, whatever this one is."""
    monkeypatch.setattr(devices, "has_arithmetic", lambda dtype, device: dtype is torch.float32)


@pytest.fixture
def half_checkpoint(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    """A tiny checkpoint that is stored in bfloat16."""
    folder = tmp_path / "half"
    shutil.copytree(tiny_checkpoint("mixtral"), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def test_the_device_can_be_named() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(ConfigError, match=r"judge\.device = 'toaster'"):
        pick_device("toaster", "judge.device")


def test_auto_means_float32_where_the_processor_lacks_the_arithmetic(
    without_half_precision: None,
) -> None:
    assert type_in_memory("auto", torch.bfloat16, CPU) is torch.float32
    assert type_in_memory("auto", torch.float16, CPU) is torch.float32
    assert type_in_memory("auto", torch.float32, CPU) == "auto"
    assert type_in_memory("auto", None, CPU) == "auto"
    assert type_in_memory("bfloat16", torch.bfloat16, CPU) is torch.bfloat16


def test_accelerators_have_arithmetic_for_every_type() -> None:
    assert has_arithmetic(torch.bfloat16, torch.device("cuda"))
    assert has_arithmetic(torch.float32, CPU)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_type_that_is_asked_for_is_loaded_and_saved(
    without_half_precision: None, half_checkpoint: Path, dtype: str
) -> None:
    loaded = load_model(ModelSection(id=str(half_checkpoint), dtype=dtype))
    assert loaded.model.dtype is loaded.saved_dtype is getattr(torch, dtype)


def test_weights_that_are_kept_in_float32_beside_others_are_saved_so(
    half_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MixtralForCausalLM, "_keep_in_fp32_modules_strict", ["embed_tokens"])
    model = AutoModelForCausalLM.from_pretrained(half_checkpoint)
    model.model.embed_tokens.float().weight.data += 2**-12
    model.save_pretrained(half_checkpoint)
    file = half_checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "bfloat16"}))
    loaded = load_model(ModelSection(id=str(half_checkpoint)))
    assert loaded.model.lm_head.weight.dtype is torch.bfloat16
    kept = loaded.model.model.embed_tokens.weight
    before = kept.clone()
    loaded.as_saved()
    assert kept.dtype is torch.float32 and torch.equal(kept, before)


@pytest.mark.parametrize(
    ("stored", "dtype", "is_here", "widths"),
    [
        ("bfloat16", "auto", True, Widths(2, 4)),
        ("bfloat16", "auto", False, Widths(2, 2)),
        ("bfloat16", "float32", True, Widths(4, 4)),
        ("bfloat16", "bfloat16", True, Widths(2, 2)),
        ("float32", "auto", True, Widths(4, 4)),
        ("float32", "bfloat16", False, Widths(2, 2)),
        (None, "auto", True, Widths(2, 4)),
    ],
)
def test_weights_are_counted_as_they_are_stored_and_held(
    without_half_precision: None,
    half_checkpoint: Path,
    stored: str | None,
    dtype: str,
    is_here: bool,
    widths: Widths,
) -> None:
    file = half_checkpoint / "config.json"
    config = json.loads(file.read_text())
    config["dtype"] = stored
    file.write_text(json.dumps(config))
    settings = ModelSection(id=str(half_checkpoint), dtype=dtype, device="cpu")
    assert widths_named(settings, is_here) == widths


def test_a_run_in_float32_hardens_a_checkpoint_of_bfloat16(
    without_half_precision: None, half_checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    listener = Listener()
    config = tiny_config(half_checkpoint, tmp_path / "run", small_prompts)
    run_pipeline(config, reporter=listener)
    assert any(
        "float32 weights: this processor has no arithmetic" in said for said in listener.said
    )
    hardened = tmp_path / "run" / "model"
    assert json.loads((hardened / "config.json").read_text())["dtype"] == "bfloat16"
    before = load_file(half_checkpoint / "model.safetensors")
    after = load_file(hardened / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    selected = {tuple(expert) for expert in load_run(tmp_path / "run").trained_experts}
    stems = {f"model.layers.{layer}.block_sparse_moe.experts.{e}." for layer, e in selected}
    assert changed
    assert all(any(name.startswith(stem) for stem in stems) for name in changed)


def test_what_was_trained_is_rounded_once(
    without_half_precision: None, half_checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    ready = ready_run(half_checkpoint, small_prompts, tmp_path / "run")
    ready.select((0, 3))
    config = ready.config(learning_rate=1e-2)
    made = train_experts(ready.run, config, silent(), [Expert(0, 3)], tmp_path / "checkpoints")
    assert made is not None
    ((name, master),) = (
        (name, tensor[0].detach().double())
        for name, tensor in made.trainable.named_parameters()
        if name.endswith("down_proj")
    )
    assert name.startswith("model.layers.0.")
    fused = made.loaded.model.model.layers[0].mlp.experts.down_proj
    base = fused[3].detach().double()
    assert torch.equal(base, base.bfloat16().double())
    assert not torch.equal(master, master.bfloat16().double())
    made.fold(0.75)
    assert fused.dtype is torch.bfloat16
    exact = base + 0.75 * (master - base)
    # A number of bfloat16 is off by half of its eighth bit at most, which rounding twice exceeds.
    last_bit = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((fused[3].double() - exact).abs() <= last_bit / 2 * (1 + 1e-4)).all()
