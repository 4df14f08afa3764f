"""Several processes, as torchrun starts them: the files of one process, and what becomes of a rank that dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tiny import files_of, tiny_config
from torchrun import (
    SMALL,
    by_hand,
    finished,
    here,
    options,
    together,
    torchrun,
    wait_for,
    worker_of,
)

COLLECTED = ("prompts.jsonl", "responses.parquet", "tokens.parquet", "routing.safetensors")


def collected(run: Path) -> dict[str, bytes]:
    """The bytes of what collecting leaves."""
    return {name: (run / name).read_bytes() for name in COLLECTED}


@pytest.fixture(scope="module")
def by_one(checkpoint: Path, small_prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one process collected."""
    run = tmp_path_factory.mktemp("one") / "run"
    here("collect", tiny_config(checkpoint, run, small_prompts, **SMALL))
    return run


def test_two_processes_collect_what_one_does(
    checkpoint: Path, small_prompts: Path, by_one: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = together("collect", *options(checkpoint, run, small_prompts))
    assert collected(run) == collected(by_one)
    assert files_of(run) == files_of(by_one)
    assert said.count("mixed batches") == 1  # rank 0 alone prints


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_stops_the_others_and_the_same_command_goes_on(
    rank: int, checkpoint: Path, small_prompts: Path, by_one: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["collect", *options(checkpoint, run, small_prompts)]
    process = torchrun(*command)
    wait_for(lambda: any((run / "shards").glob("*.parquet")), process)
    os.kill(worker_of(process, rank), signal.SIGKILL)
    killed = time.monotonic()
    code, _, _ = finished(process)
    assert code != 0 and time.monotonic() - killed < 60
    together(*command)
    assert collected(run) == collected(by_one) and files_of(run) == files_of(by_one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "error"), [("seed=1", "seed is 1 for rank 1 and 0 for rank 0"), ("run=", "run is")]
)
def test_ranks_with_other_arguments_are_refused(
    setting: str, error: str, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    both = ["collect", *options(checkpoint, tmp_path / "run", small_prompts)]
    (code, first), (other_code, second) = by_hand(both, [*both, "--set", setting])
    assert code == other_code == 1
    assert f"error: rank 1: {error}" in second
    assert f"error: rank 1 failed: {error}" in first
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_several_processes_cannot_do_is_said_by_rank_0(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    vllm = {"collect": {"engine": "vllm"}}
    (code, first), (other_code, second) = by_hand(
        *2 * [["collect", *options(checkpoint, tmp_path / "run", small_prompts, vllm)]]
    )
    assert code == other_code == 1
    assert "tensor_parallel_size" in first.splitlines()[-1]
    assert second == ""
