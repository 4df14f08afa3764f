"""What a step of the pipeline is: what it does, what it reads and leaves, and when it is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from steermoe.config import Config
from steermoe.pipeline.inputs import Input
from steermoe.reporter import Reporter
from steermoe.store.directory import RunDirectory
from steermoe.store.state import Figures

StepFunction = Callable[[RunDirectory, Config, Reporter], Figures]


def stage(module: str, name: str) -> StepFunction:
    """A function of `stages`, imported when it is called."""

    def function(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
        found: StepFunction = getattr(import_module(f"steermoe.stages.{module}"), name)
        return found(run, config, reporter)

    return function


def _nothing_to_check(config: Config) -> None:
    """Of a step whose settings name nothing."""


def _nothing_to_check_in(config: Config, run: RunDirectory) -> None:
    """Of a step that needs nothing of the run that may be other than it should."""


def _nothing_to_doubt(config: Config) -> list[str]:
    """Of a step whose settings can always mean something."""
    return []


def _always(config: Config) -> bool:
    """Of a step that belongs to every run."""
    return True


def _nothing_is_shared(run: RunDirectory, config: Config) -> bool:
    """Of a step that writes files of its own."""
    return True


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: As `run.json` and the terminal name it.
        function: What it does: it reads and writes files of the run, and returns figures for `run.json`.
        settings: The settings that it is handed.
        aside: Those of them that change nothing in its result: where a model lies, how often something is saved.
        asks: The settings that can be given to it alone; by default those that it is handed. What a page merely shows
            was decided by the steps before it.
        reads: What it reads.
        writes: The files that it may leave; `*` stands for any variant.
        goes_on_from: Which files an interrupted attempt leaves to go on from. What is no result of the step is removed
            once it is done.
        check: Refuses what can be told to be wrong before any step is run: names, prompt files.
        check_run: The same of what the run holds, where it is not about to be made anew.
        doubts: What to say of settings with which it can be done to no purpose, before any step is run.
        needs_model: Whether it reads the base model, and so whether that has to be there.
        only_where: It is left out, without a word, where this file is missing.
        is_asked_for: Whether the settings ask for it; else it is left out as well.
        is_there: Whether its part of a file that other steps write to as well is there.
        by_all: Whether all processes of a run call its function; else rank 0 alone does. It asks `processes.current`
            who does what; rank 0 writes all results, and its figures are the step's.
    """

    name: str
    function: StepFunction
    settings: tuple[str, ...]
    reads: tuple[Input, ...]
    writes: tuple[str, ...]
    aside: tuple[str, ...] = ()
    asks: tuple[str, ...] | None = None
    goes_on_from: tuple[str, ...] = ()
    check: Callable[[Config], object] = field(default=_nothing_to_check)
    check_run: Callable[[Config, RunDirectory], object] = field(default=_nothing_to_check_in)
    doubts: Callable[[Config], list[str]] = field(default=_nothing_to_doubt)
    needs_model: bool = False
    only_where: str = ""
    is_asked_for: Callable[[Config], bool] = field(default=_always)
    is_there: Callable[[RunDirectory, Config], bool] = field(default=_nothing_is_shared)
    by_all: bool = False
