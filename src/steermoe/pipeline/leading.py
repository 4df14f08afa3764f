"""How the processes of a run go through its steps: rank 0 leads, and tells the others which steps they all do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

from steermoe.config import Config, validate
from steermoe.errors import ConfigError, RunDirectoryError
from steermoe.pipeline.commands import COMMANDS
from steermoe.pipeline.memory import release_memory
from steermoe.pipeline.own_steps import with_own_steps
from steermoe.pipeline.settings import restricted
from steermoe.pipeline.step import Step
from steermoe.processes import Processes, together
from steermoe.reporter import Reporter, silent
from steermoe.store.directory import RunDirectory
from steermoe.store.run import Run
from steermoe.store.state import Figures

SECONDS_FOR_A_DISK = 30.0
"""How long a file that another process wrote may take to be seen on a disk that machines share."""


def begin(processes: Processes, directory: RunDirectory, config: Config, command: str) -> None:
    """Let every process check that it was given what rank 0 was, and that it sees the same run directory.

    Raises:
        SteerMoEError: One was not, or does not.
    """
    if processes.count == 1:
        return
    sign = secrets.token_hex(8)
    with directory.signed(sign):
        told = {"command": command, "config": config.model_dump(mode="json"), "sign": sign}
        processes.from_first(lambda: told)
        processes.barrier()


def end(processes: Processes) -> None:
    """Let the other processes end as well."""
    processes.from_first(lambda: None)


def do_step(
    processes: Processes,
    directory: RunDirectory,
    step: Step,
    config: Config,
    reporter: Reporter,
) -> Figures:
    """Do one step, with the other processes where it is for all."""
    if not step.by_all:
        return _call(directory, step, config, reporter)
    processes.from_first(lambda: {"step": step.name, "config": config.model_dump(mode="json")})
    with together(processes):
        return _call(directory, step, config, reporter)


def _call(directory: RunDirectory, step: Step, config: Config, reporter: Reporter) -> Figures:
    """Call a step with what it has declared, and no more."""
    reads = {name for found in step.reads for name in found.files}
    with directory.limited(reads, set(step.writes)):
        return step.function(directory, restricted(config, step.settings), reporter)


def follow(processes: Processes, config: Config, command: str) -> Run:
    """Do what rank 0 says, until it says no more.

    Raises:
        SteerMoEError: Of a step; or this process was given something else than rank 0.
    """
    directory = RunDirectory(config.run_dir)
    told: Any = processes.from_first(dict)
    _check_same(processes, directory, config, command, told)
    processes.barrier()
    while (told := processes.from_first(dict)) is not None:
        steps = {step.name: step for step in _steps(validate(told["config"]), command)}
        with together(processes):
            _call(directory, steps[told["step"]], validate(told["config"]), silent())
        release_memory()
    return Run(directory)


def _steps(config: Config, command: str) -> Iterator[Step]:
    for part in COMMANDS[command]:
        yield from with_own_steps(part, config)


def _check_same(
    processes: Processes, directory: RunDirectory, config: Config, command: str, told: Any
) -> None:
    own: dict[str, Any] = config.model_dump(mode="json")
    asked = told["config"]
    if command != told["command"]:
        raise ConfigError(
            f"rank {processes.rank} does steermoe {command}, rank 0 does steermoe {told['command']}: start every "
            "process with the same arguments"
        )
    for section, value in asked.items():
        if own[section] == value:
            continue
        name, mine, first = section, own[section], value
        if isinstance(value, dict):
            key = next(k for k in value if own[section].get(k) != value[k])
            name, mine, first = f"{section}.{key}", own[section].get(key), value[key]
        raise ConfigError(
            f"{name} is {mine!r} for rank {processes.rank} and {first!r} for rank 0: start every process with the "
            "same arguments"
        )
    latest = time.monotonic() + SECONDS_FOR_A_DISK
    while not directory.has_sign(told["sign"]):
        if time.monotonic() > latest:
            raise RunDirectoryError(
                f"rank {processes.rank} does not see the run directory {directory.path} of rank 0: put --run on a disk "
                "that all machines share"
            )
        time.sleep(0.2)
