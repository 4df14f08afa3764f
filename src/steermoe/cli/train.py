"""`steermoe train`: the hardened checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from steermoe.cli.options import ForceOption, Options, VerifyOption
from steermoe.cli.steps import run_step


def train(
    options: Options,
    force: ForceOption = False,
    verify: VerifyOption = False,
    controls: Annotated[
        int | None,
        typer.Option(
            "--controls",
            min=0,
            metavar="N",
            help="Train N random selections as well, and the lowest one, to see whether the selection matters: "
            "train.controls.",
        ),
    ] = None,
) -> None:
    """Fine-tune the selected experts, and write the hardened checkpoint."""
    if controls is not None:
        given = [*(options.settings or ()), f"train.controls={controls}"]
        options = replace(options, settings=given)
    run_step("train", options, force, verify)
