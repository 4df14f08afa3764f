"""Words between processes, here threads with a store in common: waiting, dealing out, failing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from steermoe import processes as module
from steermoe.config import load_config
from steermoe.errors import ConfigError, OtherProcessFailed, TrainingError
from steermoe.processes import ALONE, Processes, current, launched, together
from steermoe.stages.opening import check_alone
from steermoe.training.spread import check_sharding


def in_each(work: Callable[[Processes], Any], count: int = 2) -> list[Any]:
    """What each of several processes returns, by rank."""
    store: Any = HashStore()
    with ThreadPoolExecutor(count) as threads:
        done = [threads.submit(work, Processes(rank, count, store)) for rank in range(count)]
        return [one.result(timeout=60) for one in done]


def test_rank_0_makes_what_all_get() -> None:
    def work(processes: Processes) -> list[object]:
        return [processes.from_first(lambda: {"rank": processes.rank}) for _ in range(3)]

    assert in_each(work, 3) == 3 * [3 * [{"rank": 0}]]
    assert ALONE.from_first(lambda: "mine") == "mine"


def test_nobody_passes_a_barrier_before_the_last_one_is_there() -> None:
    came, left = [], []

    def work(processes: Processes) -> None:
        time.sleep(0.1 * processes.rank)
        came.append(time.monotonic())
        processes.barrier()
        left.append(time.monotonic())

    in_each(work, 3)
    assert max(came) <= min(left)
    ALONE.barrier()


def test_every_piece_of_work_is_done_once_and_all_of_it_is_counted() -> None:
    def work(processes: Processes) -> tuple[list[int], int]:
        counted = 0
        dealt = processes.deal(range(20))
        own = []
        for item in dealt:
            own.append(item)
            time.sleep(0.002)
            counted += dealt.finish(1)
        processes.barrier()
        return own, counted + dealt.finish(0)

    (first, counted), (second, _) = in_each(work)
    assert sorted(first + second) == list(range(20)) and first and second
    assert counted == 20
    assert work(ALONE) == (list(range(20)), 20)


def test_a_process_that_fails_ends_the_waiting_of_the_others() -> None:
    def work(processes: Processes) -> str:
        if processes.rank == 1:
            processes.fail(TrainingError("the loss is nan"))
            return ""
        with pytest.raises(OtherProcessFailed) as caught:
            processes.barrier()
        assert caught.value.rank == 1
        return str(caught.value)

    assert in_each(work) == ["rank 1 failed: the loss is nan", ""]


def test_work_is_for_all_only_where_they_were_called_to_it() -> None:
    def work(processes: Processes) -> None:
        with together(processes):
            pass

    assert current() is ALONE
    in_each(work, 1)
    assert current() is ALONE


@pytest.mark.parametrize(
    ("rank", "count", "found"), [("1", "4", (1, 4)), ("0", "1", (0, 1)), (None, None, (0, 1))]
)
def test_torchruns_variables_say_which_process_this_is(
    rank: str | None, count: str | None, found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", count)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert launched() == found


@pytest.mark.parametrize(("rank", "count"), [("4", "4"), ("one", "2")])
def test_variables_that_make_no_sense_are_refused(
    rank: str, count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(ConfigError, match=f"RANK={rank}, WORLD_SIZE={count}"):
        launched()


@pytest.mark.parametrize(
    ("visible", "gpus", "local", "own"),
    [
        (None, 4, "2", {"CUDA_VISIBLE_DEVICES": "2"}),
        ("5,7", 2, "1", {"CUDA_VISIBLE_DEVICES": "7"}),
        ("3", 1, "1", {}),  # SLURM has given each process its own
        (None, 0, "1", {}),
        ("", 0, "1", {}),
    ],
)
def test_each_process_sees_one_gpu(
    visible: str | None,
    gpus: int,
    local: str,
    own: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(module.GPUS, raising=False)
    if visible is not None:
        monkeypatch.setenv(module.GPUS, visible)
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert module._own_gpu() == own


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.GPUS, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="4 processes on a machine with 2 GPUs"):
        module._own_gpu()


def test_what_cannot_be_spread_is_refused_in_one_line() -> None:
    sharded = load_config(settings=["train.sharding=fsdp2"]).train
    with pytest.raises(ConfigError, match="there is one: start with torchrun"):
        check_sharding(sharded, 1)
    check_sharding(sharded, 2)
    everything = load_config(settings=["train.sharding=fsdp2", "train.parameters=everything"]).train
    with pytest.raises(ConfigError, match=r"set train.sharding = 'ddp' for 'everything'"):
        check_sharding(everything, 2)
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        check_alone(2)
