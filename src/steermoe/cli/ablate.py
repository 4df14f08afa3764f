"""`steermoe ablate`: what changes while experts are switched off."""

from __future__ import annotations

from steermoe.cli.options import ForceOption, Options, VerifyOption, print_result
from steermoe.cli.steps import run_step


def ablate(options: Options, force: ForceOption = False, verify: VerifyOption = False) -> None:
    """Switch the selected experts off and measure what changes, against random and the lowest experts.

    On held-out prompts, of the base model and of the hardened one. It tells a model's owner how much hangs on a few
    experts; no weights are written.
    """
    run = run_step("ablate", options, force, verify)
    from steermoe.cli.display_evidence import ablation

    print_result(ablation(run))
