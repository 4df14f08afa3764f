"""`steermoe judge`: verdicts on the replies there are, how far judges agree, and how good they are by labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.cli.options import ForceOption, Options, VerifyOption, print_result
from steermoe.cli.steps import run_step
from steermoe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steermoe.records import Exchange, Verdict
    from steermoe.store.run import Run


def judge(
    options: Options,
    force: ForceOption = False,
    verify: VerifyOption = False,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            min=1,
            help="Write a sheet of N replies to label, base and hardened ones mixed blind, and judge nothing.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="A labelled sheet: print how good each judge is by it, and put rates corrected for its errors beside "
            "the others.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Of --sample.", show_default="<run>/labels.csv"
        ),
    ] = None,
) -> None:
    """Judge the replies that are there, by one judge or several; print how far they agree."""
    from pathlib import Path

    from steermoe.cli.judged import accuracy_of, agreement_of
    from steermoe.store.run import load_run

    if sample is not None and labels is not None:
        raise ConfigError("--sample writes a sheet and --labels reads one; give one of the two")
    if output is not None and sample is None:
        raise ConfigError(f"--output {output} goes with --sample; add it")
    if sample is not None:
        from steermoe.judges.label_sheet import write_label_sheet

        run = load_run(options.stored_config().run_dir)
        path = Path(output).expanduser() if output is not None else run.path / "labels.csv"
        number = write_label_sheet(path, _exchanges(run), sample, run.config.seed)
        typer.echo(f"{path}: {number} replies; fill in the column label, then --labels {path}")
        return
    if labels is not None:
        from steermoe.judges.label_sheet import read_label_sheet

        run = load_run(options.stored_config().run_dir)
        known = read_label_sheet(Path(labels).expanduser(), _exchanges(run))
        print_result(accuracy_of(_kept(run, known, options), known))
        return
    found = run_step("judge", options, force, verify)
    print_result(agreement_of(found))


def _kept(run: Run, labels: Mapping[tuple[str, str], Verdict], options: Options) -> Run:
    """The run with the labels in it, and in its figures where it was evaluated."""
    from steermoe.pipeline import run_pipeline
    from steermoe.store.label_table import write_labels
    from steermoe.store.names import EVALUATION

    with run.directory.locked():
        write_labels(run.directory, labels)
    if not run.directory.has(EVALUATION):
        return run
    return run_pipeline(options.stored_config(), only="labels", reporter=options.reporter)


def _exchanges(run: Run) -> list[Exchange]:
    """The replies of the base model and of the hardened one, where there is one."""
    from steermoe.store.exchanges import exchanges_of
    from steermoe.store.names import BASE, HARDENED, replies_of

    variants = [v for v in (BASE, HARDENED) if run.directory.has(replies_of(v))]
    return [found for variant in variants for found in exchanges_of(run.directory, variant)]
