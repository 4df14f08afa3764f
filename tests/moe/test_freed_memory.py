"""Freed memory goes back to the operating system, and only when it is worth it."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

from architectures import BY_NAME, token_ids
from steermoe.moe import freed_memory, trained_stack
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.slices import attach_expert_slices


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_that_was_freed_below_a_kept_block_is_given_back() -> None:
    # Blocks of 100 KB come from glibc's heap; the kept ones keep it from shrinking by itself.
    blocks = [bytearray(b"x" * 100_000) for _ in range(2000)]
    kept = blocks[::50]
    del blocks
    gc.collect()
    before = resident_bytes()
    give_back_freed_memory()
    assert before - resident_bytes() > 100_000_000
    assert all(block == b"x" * 100_000 for block in kept)


def test_a_training_pass_gives_memory_back_once_and_other_passes_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trims: list[None] = []
    monkeypatch.setattr(trained_stack, "give_back_freed_memory", lambda: trims.append(None))
    model = BY_NAME["mixtral"].build()
    attached = attach_expert_slices(model, [(0, 0), (1, 2)])
    ids = token_ids(2, 6)
    model(input_ids=ids).logits.sum().backward()
    model(input_ids=ids).logits.sum().backward()
    assert len(trims) == 2
    with torch.no_grad():
        model(input_ids=ids)
    with attached.switched_off():
        model(input_ids=ids)
    assert len(trims) == 2


def test_another_system_is_not_even_asked_for_its_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(freed_memory.sys, "platform", "darwin")
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", asked.append)
    give_back_freed_memory()
    assert asked == []


def test_an_allocator_that_cannot_trim_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def library(name: object) -> object:
        asked.append(name)
        return object()  # musl has no malloc_trim

    monkeypatch.setattr(freed_memory.sys, "platform", "linux")
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", library)
    give_back_freed_memory()
    assert asked == [None]
