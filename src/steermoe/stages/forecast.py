"""Forecast: what the selection is expected to cost, before any training. It needs no model: the gradients are there."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from steermoe.analysis.forecast import UNSAFE, Measured, as_kinds, forecast
from steermoe.analysis.matched_sets import MatchedSets
from steermoe.analysis.selection import activation_frequencies, create_expert_mask
from steermoe.config import Config
from steermoe.prompts.splits import goal_groups
from steermoe.records import Label, Prompt, ResponseSums, Split
from steermoe.reporter import Reporter
from steermoe.scores.selectivity import GRADIENT
from steermoe.store.directory import RunDirectory
from steermoe.store.forecast_file import Forecast
from steermoe.store.names import FORECAST, RISK
from steermoe.store.state import Figures

NUM_DRAWS = 20
"""Random sets that the selected one is compared with."""


def forecast_selection(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Say how far training the selected experts is expected to move harmless prompts, and random ones beside them.

    Writes `forecast.json`; removes it where no expert is selected, or nothing was measured.
    """
    selected = run.read_selection().chosen(config.train.experts)
    sums = run.read_sums(GRADIENT)
    measured = None if sums is None else measured_gradients(run, sums)
    if not selected or measured is None or UNSAFE not in measured.kinds:
        run.remove(FORECAST)
        return {}
    assert sums is not None
    shape = (sums.num_layers, sums.num_experts)
    frequency = activation_frequencies(run.read_table(RISK))
    draws = MatchedSets(frequency, selected).draw(NUM_DRAWS, config.seed)
    found = forecast(
        measured,
        create_expert_mask(*shape, selected, sums.layer_indices),
        [create_expert_mask(*shape, draw, sums.layer_indices) for draw in draws],
        config.evaluate.num_bootstrap,
        config.evaluate.confidence,
        config.seed,
    )
    whole = Forecast(
        num_experts=len(selected),
        num_unsafe_prompts=int(measured.of_kind(UNSAFE).sum()),
        kinds={kind: found[kind] for kind in as_kinds(found)},
    )
    run.write_json(FORECAST, asdict(whole))
    for sentence in whole.sentences():
        reporter.line(sentence)
    if not draws:
        reporter.note(
            "no other set has as many experts of each layer and frequency, so the forecast has nothing to compare with"
        )
    return {"num_experts": len(selected), "num_draws": len(draws)}


def measured_gradients(run: RunDirectory, sums: ResponseSums) -> Measured:
    """The train prompts whose gradients were measured, by kind; plain goals, which should be refused, are left out."""
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    ids = run.read_replies()["prompt_id"].tolist()
    is_measured = sums.num_tokens[:, 0] > 0
    chosen = [
        place
        for place in np.flatnonzero(is_measured).tolist()
        if prompts[ids[place]].split is Split.TRAIN and not prompts[ids[place]].is_plain_goal
    ]
    of_chosen = [prompts[ids[place]] for place in chosen]
    clusters = np.zeros(len(chosen), dtype=np.int64)
    for number, members in enumerate(goal_groups(of_chosen)):
        clusters[members] = number
    return Measured(
        sums.total[chosen, 0].astype(np.float64), [_kind_of(p) for p in of_chosen], clusters
    )


def _kind_of(prompt: Prompt) -> str:
    if prompt.label is Label.UNSAFE:
        return UNSAFE
    if prompt.label is Label.BENIGN:
        return "benign"
    return "look_alike" if prompt.is_look_alike else "safe"
