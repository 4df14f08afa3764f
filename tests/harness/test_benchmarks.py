"""Benchmarks by name: finished folders are read with them, and names that say nothing are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from steermoe.errors import ConfigError
from steermoe.harness.benchmarks import benchmark_named
from steermoe.harness.processes import Target

LOGS = Path(__file__).parent / "logs"
NOWHERE = Target("m", python="/no/python")


def test_a_benchmark_reads_what_its_tool_has_left(tmp_path: Path) -> None:
    for name, log in (
        ("lm_eval:quiz,words", "lm_eval_base"),
        ("inspect:a.py@b", "inspect_ours_base"),
    ):
        benchmark = benchmark_named(name)
        assert benchmark.name == name
        folder = Path(shutil.copytree(LOGS / log, tmp_path / log))
        assert benchmark.run(NOWHERE, folder)
        with pytest.raises(ConfigError, match="cannot be run"):
            benchmark.version(NOWHERE)


def test_a_folder_of_tasks_must_be_there(tmp_path: Path) -> None:
    assert benchmark_named(f"lm_eval:steermoe@{tmp_path}").name.startswith("lm_eval:steermoe@")
    with pytest.raises(ConfigError, match=r"nowhere is not a folder of tasks"):
        benchmark_named("lm_eval:steermoe@nowhere")


@pytest.mark.parametrize("name", ["", "lm_eval", "lm_eval:", "helm:mmlu", "inspect:"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not known: use lm_eval:TASKS"):
        benchmark_named(name)
