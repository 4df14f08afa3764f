import gc
import sys
from pathlib import Path

import pytest
import torch

from steermoe.moe import freed_memory
from steermoe.moe.freed_memory import give_back_freed_memory, note_freed

CPU = torch.device("cpu")


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


def test_it_is_given_back_whenever_much_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(freed_memory, "LIMIT", 100)

    def give_back() -> None:
        trims.append(freed_memory._freed_since)
        freed_memory._freed_since = 0

    monkeypatch.setattr(freed_memory, "give_back_freed_memory", give_back)
    monkeypatch.setattr(freed_memory, "_freed_since", 0)
    for _ in range(6):
        note_freed(40, CPU)
    assert trims == [120, 120]


def test_memory_of_an_accelerator_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_freed_since", 0)
    note_freed(50, torch.device("cuda"))
    assert freed_memory._freed_since == 0


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.sys, "platform", "darwin")
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", None)
    give_back_freed_memory()
