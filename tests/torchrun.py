"""The command line in several processes, each on one thread: sums of another number of threads round otherwise."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from steermoe.config import Config, load_config
from steermoe.pipeline import run_pipeline
from steermoe.store.run import load_run
from tiny import arguments_of, as_arguments, merged

SMALL: dict[str, Any] = {"collect": {"generation_batch_size": 8}}
"""Groups of one mixed batch: 3 of them and 7 of the rest."""


def options(
    checkpoint: Path, run: Path, prompts: Path, settings: dict[str, Any] | None = None
) -> list[str]:
    """Of a tiny run; torchrun of Python 3.11 takes `--run` for an abbreviation of its own options."""
    given = arguments_of(checkpoint, run, prompts)
    place = given.index("--run")
    given[place : place + 2] = ["--set", f"run={run}"]
    return given + as_arguments(merged(SMALL, settings or {}))


def environment() -> dict[str, str]:
    """Of a command in a process of its own."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def started(command: list[str], variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A command that runs."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment() | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(*arguments: str, number: int = 2) -> subprocess.Popen[str]:
    """`steermoe` in several processes, which run."""
    launcher = ["torch.distributed.run", "--nproc-per-node", str(number)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return started([*launcher, "-m", "steermoe", *arguments])


def by_hand(*commands: list[str]) -> list[tuple[int, str]]:
    """Start each rank with arguments of its own, as SLURM can; returns their exit codes and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(commands)),
    }
    processes = [
        started(["steermoe", *command], shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, command in enumerate(commands)
    ]
    return [(code, err) for code, _, err in map(finished, processes)]


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def here(command: str, config: Config) -> None:
    """Run a command in this process, on one thread as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_pipeline(config, only=command)
    finally:
        torch.set_num_threads(threads)


def stored(run: Path) -> Config:
    """The settings of a run, which may be a copy of another."""
    return load_config(
        base=load_run(run).config.model_dump(mode="json"), overrides={"run": str(run)}
    )


def alone(*arguments: str) -> None:
    """Run `steermoe` in one process, to its end."""
    code, _, err = finished(started(["steermoe", *arguments]))
    assert code == 0, err


def together(*arguments: str) -> str:
    """Run `steermoe` in two processes, to their end; returns what they said."""
    code, _, err = finished(torchrun(*arguments))
    assert code == 0, err
    return err


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there; the command must not have ended."""
    while not is_there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def worker_of(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process that a launcher started for a rank."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == launcher.pid and f"RANK={rank}".encode() in variables:
                return int(folder.name)
    raise AssertionError(f"rank {rank} does not run")
