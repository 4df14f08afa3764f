"""What is said before a training: which turn is trained, and what each phase trains on what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from steermoe.analysis.risk import expert_label
from steermoe.config import Config
from steermoe.records import Expert
from steermoe.reporter import Reporter
from steermoe.training.dataset import TrainingRow
from steermoe.training.fit import Fit
from steermoe.training.phases import Phase

SHOWN_OF_PROMPT = 60
"""Characters of a prompt, the last ones, that are shown before the turn which is trained after it."""


def say_turn(reporter: Reporter, tokenizer: Any, rows: Sequence[TrainingRow]) -> None:
    """Show one refusal as the tokens that are trained: a wrong template shows in them at a glance."""
    refusals = [row for row in rows if row.objective == "refusal"]
    if not refusals:
        return
    if others := sum(not row.is_own_turn for row in refusals):
        reporter.note(
            f"the chat template does not write {others} of {len(refusals)} target responses as turns after its "
            "generation prompt; they are trained as plain text with the end of turn"
        )
    row = refusals[0]
    prompt = tokenizer.decode(row.prompt_token_ids, skip_special_tokens=False)
    turn = tokenizer.decode(row.completion_token_ids, skip_special_tokens=False)
    shown = f"...{prompt[-SHOWN_OF_PROMPT:]}" if len(prompt) > SHOWN_OF_PROMPT else prompt
    reporter.line(f"one trained turn: after {shown!r} comes {turn!r}")


def say_phase(
    reporter: Reporter, fit: Fit, phase: Phase, config: Config, experts: Sequence[Expert]
) -> None:
    """Say what a phase trains, and on how many rows of which kind."""
    counts = Counter(row.objective for row in phase.rows)
    words = {"refusal": "refusals", "retention": "harmless replies"}
    names = [objective.name for objective in phase.objectives]
    parts = [f"{counts[name]} {words.get(name, f'rows of {name}')}" for name in names]
    what = {
        "experts": _what(config, experts),
        "experts+routers": f"routers and {_what(config, experts)}",
    }
    reporter.line(
        f"training {what.get(phase.trainable.name, f'{phase.trainable.name} (a baseline)')} on {', '.join(parts)} and "
        f"{len(phase.benign)} benign ones, in {len(fit.micro_batches(phase))} micro-batches"
    )


def _what(config: Config, experts: Sequence[Expert]) -> str:
    names = ", ".join(expert_label(*expert) for expert in experts[:4])
    which = "the union of the batches' selections: " if config.train.experts == "union" else ""
    return f"{which}{len(experts)} experts ({names}{', ...' if len(experts) > 4 else ''})"
