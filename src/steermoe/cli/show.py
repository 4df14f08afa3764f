"""`steermoe show`: a run, printed."""

from __future__ import annotations

from typing import Annotated

import typer

from steermoe.cli.options import RunOption, open_run, print_result
from steermoe.errors import ConfigError


def show(
    run_dir: RunOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many experts to print.")] = 20,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Print every expert of one decoder layer.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Print one mixed batch: prompts and counts.")
    ] = None,
    batches: Annotated[
        bool, typer.Option("--batches", help="Print one line a mixed batch.")
    ] = False,
) -> None:
    """Print a run: its experts, its batches, its figures."""
    if sum((batches, batch is not None, layer is not None)) > 1:
        raise ConfigError("--batches, --batch and --layer are three things to print; give one")
    run = open_run(run_dir)
    from steermoe.cli import display

    if batch is not None:
        print_result(display.one_batch(run, batch, top))
    elif batches:
        print_result(display.all_batches(run))
    elif layer is not None:
        print_result(display.one_layer(run, layer))
    else:
        print_result(display.overview(run, top))
