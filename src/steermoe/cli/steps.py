"""How the commands of single steps run them: with the settings of the run, and one step alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from steermoe.cli.options import Options, leave_unless_first
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
    reporter = options.reporter
    config = options.new_config() if creates_run else options.stored_config()
    if not creates_run:
        _check_read(step, options, reporter)
    note_settings_without_effect(config, reporter, step)
    from steermoe.pipeline import run_pipeline

    run = run_pipeline(config, only=step, force=force, verify=verify, reporter=reporter)
    leave_unless_first()
    return run


def _check_read(step: str, options: Options, reporter: Reporter) -> None:
    """Refuse settings that were given to a step that does not read them; name those of a file, which are left out.

    Raises:
        ConfigError: There are such settings.
    """
    from steermoe.pipeline.commands import settings_of
    from steermoe.pipeline.settings import not_read

    stored, keys = options.run_as_stored(), settings_of(step)
    asked = replace(options, config=None).stored_config()
    given = {
        name: value
        for name, value in not_read(stored, asked, keys).items()
        if name != "model.id" or not _are_one_place(asked.model.id, stored.model.id)
    }
    if given:
        name, value = next(iter(given.items()))
        raise ConfigError(
            f"{name} = {value!r} is not read by steermoe {step}, and the run has it as it was made: give it to "
            f"{_reader_of(name)}"
        )
    in_file = not_read(stored, options.stored_config(), keys)
    if in_file:
        reporter.note(
            f"{options.config}: {', '.join(in_file)} not read by steermoe {step}, and left as the run has it"
        )


def _are_one_place(asked: str, stored: str) -> bool:
    """Whether two names are of one model, spelt otherwise."""
    return Path(asked).resolve() == Path(stored).resolve()


def _reader_of(name: str) -> str:
    """The command that a setting is for, in words."""
    section = name.partition(".")[0]
    if section in ("identify", "train", "evaluate", "ablate", "report", "judge"):
        return f"steermoe {section} or run"
    return "steermoe collect or run"


def note_settings_without_effect(config: Config, reporter: Reporter, step: str = "") -> None:
    """Say which settings are set but change nothing; with `step`, only those of its own section."""
    from steermoe.unused_settings import settings_without_effect

    for sentence in settings_without_effect(config):
        if sentence.startswith(f"{step}." if step else ""):
            reporter.note(sentence)
