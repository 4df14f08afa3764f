"""The command line: the commands, gathered. Each has a file of its own, which imports what is heavy when it runs."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from steermoe.cli.ablate import ablate
from steermoe.cli.apply import apply
from steermoe.cli.collect import collect
from steermoe.cli.evaluate import evaluate
from steermoe.cli.export import export
from steermoe.cli.identify import identify
from steermoe.cli.judge import judge
from steermoe.cli.models import models
from steermoe.cli.options import as_command
from steermoe.cli.plan import plan
from steermoe.cli.power import power
from steermoe.cli.report import report
from steermoe.cli.run import run
from steermoe.cli.show import show
from steermoe.cli.train import train
from steermoe.version import __version__

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

COMMANDS = (
    *(run, collect, judge, identify, train, evaluate, ablate, report),
    *(show, export, apply, plan, power, models),
)
"""In the order of the help."""

app = typer.Typer(
    name="steermoe",
    help="Find the unsafe experts of a Mixture-of-Experts model, train only those, measure the result.",
    epilog="Start with `steermoe run`: it needs no arguments. Every setting is described in docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _function in COMMANDS:
    app.command(_function.__name__)(as_command(_function))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steermoe {__version__}")
        raise typer.Exit


@app.callback()
def _steermoe(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; one line and exit code 1 for a user's error, 130 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app(standalone_mode=True)
    except SystemExit as stopped:
        if stopped.code == INTERRUPTED:  # typer has caught the interruption itself
            typer.echo("interrupted: the same command goes on where it stopped", err=True)
        raise
