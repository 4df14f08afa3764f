"""`steermoe run`: every step that is not done yet."""

from __future__ import annotations

from typing import Annotated

import typer

from steermoe.cli.options import (
    ForceOption,
    Options,
    VerifyOption,
    leave_unless_first,
    print_result,
)
from steermoe.cli.plan import plan as print_plan
from steermoe.cli.steps import note_settings_without_effect


def run(
    options: Options,
    force: ForceOption = False,
    verify: VerifyOption = False,
    plan: Annotated[
        bool, typer.Option("--plan", hidden=True, help="The same as steermoe plan.")
    ] = False,
) -> None:
    """Do every step: collect, identify, train, evaluate, report.

    With no argument: the embedded model and the built-in prompts. Interrupted, the same command goes on where it
    stopped.
    """
    if plan:
        print_plan(options)
        return
    config = options.new_config()
    reporter = options.reporter
    note_settings_without_effect(config, reporter)
    from steermoe.cli.display import summary
    from steermoe.pipeline import run_pipeline

    done = run_pipeline(config, force=force, verify=verify, reporter=reporter)
    leave_unless_first()
    print_result(summary(done))
