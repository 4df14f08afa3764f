"""`steermoe prompts`: what would be read from prompt files, without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from steermoe.cli.options import Options, print_result


def prompts(
    options: Options,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help="Prompt files; without any, those of the settings."
        ),
    ] = None,
    show: Annotated[
        int, typer.Option("--show", min=0, help="Show the first so many prompts of each label.")
    ] = 0,
) -> None:
    """Show what would be read from prompt files: columns, labels, splits, and what is doubtful. No model is needed."""
    from steermoe.prompts.describe import describe_prompts

    named = [*(files or ()), *(options.prompts or ())]
    description, problem = describe_prompts(
        replace(options, prompts=named or None).new_config(), show
    )
    print_result(description)
    if problem is not None:
        raise problem
