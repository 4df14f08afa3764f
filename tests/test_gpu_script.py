"""The script for a GPU runs whole on a processor: a machine that can be had once is not spent on its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import gpu


def test_the_limits_of_all_parts_are_less_than_ten_minutes() -> None:
    assert gpu.LIMITS.keys() == gpu.PARTS.keys()
    assert sum(gpu.LIMITS.values()) <= 580


@pytest.mark.parametrize("part", ["collecting", "training", "large"])
def test_a_part_runs_on_a_processor(part: str) -> None:
    figures = gpu.PARTS[part](True)
    assert any(isinstance(value, float) and value > 0 for value in figures.values()), figures


def test_a_part_that_fails_or_takes_too_long_costs_nothing_else(tmp_path: Path) -> None:
    cut = gpu.in_a_process("training", True, limit=0.01)
    assert "cut off" in str(cut["failed"])
    gpu.write(tmp_path, {"training": cut, "collecting": {"generate, s": 1.5}})
    assert json.loads((tmp_path / "gpu.json").read_text())["collecting"] == {"generate, s": 1.5}
    assert "| collecting | generate, s | 1.5 |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")
@pytest.mark.parametrize("part", ["collecting", "training", "lora", "large"])
def test_a_part_runs_on_a_gpu(part: str) -> None:
    assert gpu.PARTS[part](True)
