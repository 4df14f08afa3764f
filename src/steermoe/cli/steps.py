"""How the commands of single steps run them: with the settings of the run, and one step alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steermoe.cli.options import Options
from steermoe.errors import ConfigError

if TYPE_CHECKING:
    from steermoe.config import Config
    from steermoe.reporter import Reporter
    from steermoe.store.run import Run


def run_step(
    step: str, options: Options, force: bool, verify: bool, creates_run: bool = False
) -> Run:
    """Run one step.

    Args:
        step: Its name.
        options: Of the command.
        force: Whether a finished step is done again.
        verify: Whether the model and the results are hashed whole.
        creates_run: Whether there may be no run yet; else its settings are those stored in it.

    Returns:
        The run.
    """
    if options.prompts and not creates_run:
        raise ConfigError(
            f"--prompts {options.prompts[0]}: a run keeps the prompts that it was collected with; give them to "
            "steermoe run or collect"
        )
    config = options.new_config() if creates_run else options.stored_config()
    reporter = options.reporter
    note_settings_without_effect(config, reporter, step)
    from steermoe.pipeline import run_pipeline

    return run_pipeline(config, only=step, force=force, verify=verify, reporter=reporter)


def note_settings_without_effect(config: Config, reporter: Reporter, step: str = "") -> None:
    """Say which settings are set but change nothing; with `step`, only those of its own section."""
    from steermoe.unused_settings import settings_without_effect

    for sentence in settings_without_effect(config):
        if sentence.startswith(f"{step}." if step else ""):
            reporter.note(sentence)
