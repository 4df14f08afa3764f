"""`steermoe report`: the page."""

from __future__ import annotations

from steermoe.cli.options import ForceOption, Options, VerifyOption
from steermoe.cli.steps import run_step


def report(options: Options, force: ForceOption = False, verify: VerifyOption = False) -> None:
    """Write report.html, the whole story on one page."""
    run_step("report", options, force, verify)
