"""Benchmarks of other tools, by the names that settings give them: `lm_eval:TASKS` and `inspect:TASK`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steermoe.errors import ConfigError
from steermoe.harness.figures import Figure
from steermoe.harness.inspect_runs import check_inspect, inspect_version, run_inspect
from steermoe.harness.lm_eval_runs import check_lm_eval, lm_eval_version, run_lm_eval
from steermoe.harness.processes import Target

NAMES = "lm_eval:TASKS, lm_eval:TASKS@FOLDER (with a folder of more tasks) or inspect:TASK"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark of another tool.

    Attributes:
        name: As settings name it.
        version: The tool and its version, the source of its rows; a `ConfigError` if it is not installed.
        check: Refuses what can be told to be wrong before anything runs: no tool, no such task.
        run: Runs it on a model, with its logs in a folder, or reads the folder where it has run.
        place: A file or folder of the user's own that holds its tasks; None for tasks that the tool brings.
    """

    name: str
    version: Callable[[Target], str]
    check: Callable[[Target], None]
    run: Callable[[Target, Path], list[Figure]]
    place: Path | None = None

    def stamp(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change of each file where the user's own tasks lie: other tasks are run again."""
        if self.place is None:
            return []
        folder = self.place if self.place.is_dir() else self.place.parent
        files = sorted(file for file in folder.iterdir() if file.is_file())
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of that name. Nothing is looked for, and nothing runs.

    Raises:
        ConfigError: There is no such tool, or no task is named.
    """
    tool, _, task = name.partition(":")
    if tool not in ("lm_eval", "inspect") or not task:
        raise ConfigError(f"benchmark {name!r} is not known: use {NAMES}")
    if tool == "inspect":
        file = Path(task.partition("@")[0])
        return Benchmark(
            name,
            inspect_version,
            lambda target: check_inspect(target, task),
            lambda target, folder: run_inspect(target, task, folder),
            file if file.is_file() else None,
        )
    tasks, _, place = task.partition("@")
    include = Path(place) if place else None
    if include is not None and not include.is_dir():
        raise ConfigError(f"benchmark {name!r}: {place} is not a folder of tasks")
    return Benchmark(
        name,
        lm_eval_version,
        lambda target: check_lm_eval(target, tasks, include),
        lambda target, folder: run_lm_eval(target, tasks, folder, include),
        include,
    )
