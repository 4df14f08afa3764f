"""Which sets of experts are switched off, on which prompts, and what is measured of them. It needs no model."""

from __future__ import annotations

from dataclasses import dataclass

from steermoe.analysis.ablation import (
    BENIGN,
    DIVERGENCE,
    LOOK_ALIKES,
    REFUSAL,
    REPLY,
    UNSAFE,
    Ablation,
    plan_ablations,
)
from steermoe.config import Config
from steermoe.prompts.goals import seeded_rank
from steermoe.records import Label, Prompt, Split
from steermoe.store.directory import RunDirectory
from steermoe.store.names import RISK

QUANTITIES = {REPLY: "reply_log_prob", REFUSAL: "refusal_log_prob", DIVERGENCE: "kl"}
"""What is measured token by token, as `scored/<variant>.parquet` names it."""


def planned_ablations(run: RunDirectory, config: Config) -> list[Ablation]:
    """The sets of experts to switch off: none first, then the selected ones, the lowest, and random ones."""
    selected = run.read_selection().chosen(config.train.experts)
    top_k = int(run.routing_metadata()["top_k"])
    return plan_ablations(
        run.read_table(RISK), selected, config.ablate.num_draws, top_k, config.seed
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """A held-out prompt and which kind it is."""

    prompt: Prompt
    kind: str


def choose_subjects(run: RunDirectory, config: Config) -> dict[str, Subject]:
    """So many prompts of each kind, picked by the seed, in the order of the run."""
    split = Split(config.evaluate.split)
    found: dict[str, list[str]] = {}
    subjects: dict[str, Subject] = {}
    for prompt in run.read_prompts():
        kind = _kind_of(prompt)
        if prompt.split is split and kind is not None:
            subjects[prompt.prompt_id] = Subject(prompt, kind)
            found.setdefault(kind, []).append(prompt.prompt_id)
    chosen = {
        prompt_id
        for ids in found.values()
        for prompt_id in sorted(ids, key=lambda i: seeded_rank(config.seed, i))[
            : config.ablate.num_prompts
        ]
    }
    return {i: subject for i, subject in subjects.items() if i in chosen}


def _kind_of(prompt: Prompt) -> str | None:
    if prompt.label is Label.UNSAFE:
        return UNSAFE
    if prompt.label is Label.BENIGN:
        return BENIGN
    return LOOK_ALIKES if prompt.is_look_alike else None
