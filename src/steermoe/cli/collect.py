"""`steermoe collect`: replies and routed experts."""

from __future__ import annotations

from steermoe.cli.options import ForceOption, Options, VerifyOption
from steermoe.cli.steps import run_step


def collect(options: Options, force: ForceOption = False, verify: VerifyOption = False) -> None:
    """Generate replies to all prompts and record which experts the routers choose."""
    run_step("collect", options, force, verify, creates_run=True)
