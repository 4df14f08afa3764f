"""The model card of a hardened checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from steermoe.analysis.risk import expert_label
from steermoe.config import Config
from steermoe.prompts.sources import parse_source
from steermoe.records import Expert
from steermoe.scores import RISK_DIFF
from steermoe.store.directory import RunDirectory
from steermoe.version import __version__


def model_card(config: Config, run: RunDirectory, experts: Sequence[Expert]) -> str:
    """README.md of the checkpoint: where it comes from, what was changed, and how that was checked."""
    names = ", ".join(expert_label(*expert) for expert in experts)
    rule = run.read_selection().rule
    selection = f"{rule['name']}, threshold {rule['threshold']}, top_k {rule['top_k']}, over {rule['segment']} tokens"
    if rule.get("rank_by", RISK_DIFF) != RISK_DIFF:
        selection += f", ranked by {rule['rank_by']}"
    trained = config.train.all_parameters
    phases = "; then ".join(
        f"{phase.epochs:g}, {phase.learning_rate:g}" for phase in config.train.all_phases()
    )
    routers = "the routers and " if trained == "experts+routers" else ""
    changed = (
        f"Only {routers}the MLP weights of these {len(experts)} routed experts differ from the base model; every other "
        f"tensor is bitwise equal, which was checked when this checkpoint was written:\n\n{names}"
        if config.train.trains_experts
        else f"A baseline: `train.parameters = {trained}` was trained."
    )
    return f"""---
base_model: {config.model.name}
tags: [steermoe, mixture-of-experts, safety]
---

# {config.model.name}, hardened with SteerMoE

{changed}

| setting | value |
| --- | --- |
| base model | {config.model.name}{f" @ {config.model.revision}" if config.model.revision else ""} |
| selection | {selection} |
| prompts | {", ".join(parse_source(source).name for source in config.prompts.sources)} |
| epochs, learning rate | {phases} |
| share of the change that is kept | {config.train.kept_change:g} |
| seed | {config.seed} |
| steermoe | {__version__} |

It was trained to refuse harmful requests and held to the base model on harmless ones. What that did to refusal,
to over-refusal and to everything else is in the run's `evaluation.json` and `report.html`; judge it by those, on
your own prompts too. Refusal is measured by a judge that reads words, and says nothing of other risks.
"""
