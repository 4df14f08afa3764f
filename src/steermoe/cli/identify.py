"""`steermoe identify`: risk differences and the selection."""

from __future__ import annotations

from typing import Annotated

import typer

from steermoe.cli.options import ForceOption, Options, VerifyOption
from steermoe.cli.power import power as print_power
from steermoe.cli.steps import run_step
from steermoe.errors import ConfigError


def identify(
    options: Options,
    force: ForceOption = False,
    verify: VerifyOption = False,
    power: Annotated[
        bool, typer.Option("--power", hidden=True, help="The same as steermoe power.")
    ] = False,
    risk_diff: Annotated[
        list[float] | None,
        typer.Option("--risk-diff", hidden=True, help="With --power, as of steermoe power."),
    ] = None,
    effect_cv: Annotated[
        float | None,
        typer.Option("--effect-cv", hidden=True, help="With --power, as of steermoe power."),
    ] = None,
) -> None:
    """Compute risk differences with their uncertainty, and select the unsafe experts."""
    if power:
        print_power(options, risk_diff, effect_cv)
        return
    if risk_diff:
        raise ConfigError(
            f"--risk-diff {risk_diff[0]} goes with --power, or with steermoe power, which only counts prompts"
        )
    if effect_cv is not None:
        raise ConfigError(
            f"--effect-cv {effect_cv} goes with --power, or with steermoe power, which only counts prompts"
        )
    run_step("identify", options, force, verify)
