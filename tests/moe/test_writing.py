"""Weights are written as transformers writes them, byte for byte, and without a second copy in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from architectures import ARCHITECTURES, BY_NAME, Architecture
from steermoe.moe.stored import INDEX_NAME, stored_tensors
from steermoe.moe.writing import write_weights

WHOLE = "model.safetensors"


def written_by_both(model: Any, folder: Path, shard_size: str) -> tuple[Path, Path]:
    """The folder that we write, and that of transformers."""
    ours, theirs = folder / "ours", folder / "theirs"
    ours.mkdir()
    write_weights(model, ours, shard_size)
    model.save_pretrained(theirs, max_shard_size=shard_size)
    return ours, theirs


def same_file(ours: Path, theirs: Path) -> bool:
    return (ours / WHOLE).read_bytes() == (theirs / WHOLE).read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_a_file_is_that_of_transformers(architecture: Architecture, tmp_path: Path) -> None:
    ours, theirs = written_by_both(architecture.build(), tmp_path, "2GB")
    assert same_file(ours, theirs)
    assert [path.name for path in ours.iterdir()] == [WHOLE]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_several_files_hold_the_tensors_of_transformers(
    architecture: Architecture, tmp_path: Path
) -> None:
    ours, theirs = written_by_both(architecture.build(), tmp_path, "20KB")
    mine, other = stored_tensors(ours), stored_tensors(theirs)
    assert mine.keys() == other.keys()
    assert all(mine[name].same_bytes(tensor) for name, tensor in other.items())
    index, expected = (json.loads((folder / INDEX_NAME).read_text()) for folder in (ours, theirs))
    assert index["metadata"] == expected["metadata"]
    files = {tensor.file: 0 for tensor in mine.values()}
    for tensor in mine.values():
        files[tensor.file] += tensor.end - tensor.start
    held = {file: [t for t in mine.values() if t.file == file] for file in files}
    assert all(size <= 20_000 or len(held[file]) == 1 for file, size in files.items())


def test_tensors_of_several_types_lie_as_the_library_lays_them(tmp_path: Path) -> None:
    model = BY_NAME["olmoe"].build().to(torch.bfloat16)
    model.lm_head.to(torch.float32)
    model.register_buffer("counts", torch.arange(3))
    model.register_buffer("one", torch.tensor(7.0))
    model.register_buffer("flags", torch.tensor([True, False, True]))
    assert same_file(*written_by_both(model, tmp_path, "2GB"))


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    options = {**BY_NAME["olmoe"].options, "tie_word_embeddings": True}
    model = Architecture("olmoe", options).build()
    write_weights(model, tmp_path, "20KB")
    names = json.loads((tmp_path / INDEX_NAME).read_text())["weight_map"]
    assert isinstance(model.lm_head, nn.Linear)
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_checking_holds_no_tensor_whole(tmp_path: Path) -> None:
    """Two checkpoints of one 64 MiB tensor: pieces of 16 MiB of both are held at a time."""
    for name in ("base", "hardened"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(1 << 24)}, tmp_path / name / WHOLE)
    base, hardened = (stored_tensors(tmp_path / name)["w"] for name in ("base", "hardened"))
    tracemalloc.start()
    try:
        assert hardened.same_bytes(base)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * 2**20 < 2 * 64 * 2**20


MEASURE = """
import gc, sys
from pathlib import Path
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.initialization import no_init_weights
from steermoe.moe.writing import write_weights

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024

def model_of(layers, width):
    config = OlmoeConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=width, num_experts=32,
                         num_experts_per_tok=2, num_attention_heads=8, num_key_value_heads=8, vocab_size=256)
    with no_init_weights():
        model = OlmoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    return model

write_weights(model_of(1, 64), Path(sys.argv[1]), "2GB")  # what is loaded on the way is no copy
model = model_of(8, 512)
gc.collect()
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
write_weights(model, Path(sys.argv[1]), "2GB")
size = sum(p.numel() * p.itemsize for p in model.parameters()) / 2**20
print(size, resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peaks")
def test_no_second_copy_is_made(tmp_path: Path) -> None:
    """Eight layers of 50 MiB: taking all apart at once takes 256 MiB more, one after the other 32."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        # What another thread's arena keeps of the blocks it has freed is 64 MiB in some runs, and no copy.
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )
    size, growth = map(float, result.stdout.split()[-2:])
    assert size == pytest.approx(8 * 50, rel=0.1)
    assert growth < size / 8, f"{growth:.0f} MiB beside a model of {size:.0f} MiB"
