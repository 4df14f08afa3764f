"""`steermoe prompts`: what would be read from prompt files, without a model."""

from __future__ import annotations

from typing import Annotated

import typer

from steermoe.cli.options import Options, print_result


def prompts(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help="Prompt files; without any, those of the settings."
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="Settings in TOML; every key is checked."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="One setting of prompts. Repeatable."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seeds the splits.", show_default="0")
    ] = None,
    show: Annotated[
        int, typer.Option("--show", min=0, help="Show the first so many prompts of each label.")
    ] = 0,
) -> None:
    """Show what would be read from prompt files: columns, labels, splits, and what is doubtful. No model is needed."""
    from steermoe.prompts.describe import describe_prompts

    options = Options(config=config, settings=settings, prompts=files or None, seed=seed)
    description, problem = describe_prompts(options.new_config(), show)
    print_result(description)
    if problem is not None:
        raise problem
