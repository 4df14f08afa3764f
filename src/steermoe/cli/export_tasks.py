"""Prompts as tasks of lm-evaluation-harness and of Inspect, for people who have their benchmarks there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steermoe.records import Prompt
    from steermoe.store.run import Run

TASK_FORMATS = ("lm-eval", "inspect")

DEFAULT_MAX_NEW_TOKENS = 48
"""Of tasks whose prompts are of no run."""


def tasks_of_run(run: Run, name: str, folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Write the prompts of a run's evaluated split as tasks, with the length of its replies.

    Args:
        run: The run.
        name: `lm-eval` or `inspect`.
        folder: A folder of that name is made in it.

    Returns:
        The files, and notes on what was left out.
    """
    config = run.config
    prompts = [p for p in run.prompts if p.split == config.evaluate.split]
    return write_tasks(name, prompts, folder, config.collect.max_new_tokens)


def tasks_of_source(source: str, name: str, folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Write the prompts of a file, or of `builtin:starter`, as tasks; of those with splits, the test prompts.

    Args:
        source: As `--prompts` takes it.
        name: `lm-eval` or `inspect`.
        folder: A folder of that name is made in it.

    Returns:
        The files, and notes on what was left out.
    """
    from steermoe.prompts.formats import read_prompts
    from steermoe.records import Split

    prompts = read_prompts(source).prompts
    held_out = [prompt for prompt in prompts if prompt.split is Split.TEST]
    return write_tasks(name, held_out or list(prompts), folder, DEFAULT_MAX_NEW_TOKENS)


def write_tasks(
    name: str, prompts: Sequence[Prompt], folder: Path, max_new_tokens: int
) -> tuple[list[Path], tuple[str, ...]]:
    """Write prompts as tasks of one of the tools."""
    from steermoe.harness.inspect_export import write_inspect_tasks
    from steermoe.harness.lm_eval_tasks import write_lm_eval_tasks

    write = {"lm-eval": write_lm_eval_tasks, "inspect": write_inspect_tasks}[name]
    return write(prompts, folder / name, max_new_tokens)
