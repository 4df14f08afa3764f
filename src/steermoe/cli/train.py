"""`steermoe train`: the hardened checkpoint."""

from __future__ import annotations

from steermoe.cli.options import ForceOption, Options, VerifyOption
from steermoe.cli.steps import run_step


def train(options: Options, force: ForceOption = False, verify: VerifyOption = False) -> None:
    """Fine-tune the selected experts, and write the hardened checkpoint."""
    run_step("train", options, force, verify)
