"""`steermoe evaluate`: base against hardened."""

from __future__ import annotations

from steermoe.cli.options import ForceOption, Options, VerifyOption
from steermoe.cli.steps import run_step


def evaluate(options: Options, force: ForceOption = False, verify: VerifyOption = False) -> None:
    """Compare the base and the hardened model on held-out prompts."""
    run_step("evaluate", options, force, verify)
