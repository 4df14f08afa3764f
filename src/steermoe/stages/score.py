"""Score: the passes of the model that some scores, and the forecast, are made from.

Made only where they are asked for, over so many prompts of each kind. A pass leaves sums of every response that it
measured, so what is computed of them (contrasts, intervals, a selection) needs no model. Groups of prompts are shards:
an interrupted pass goes on after the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from steermoe.config import Config
from steermoe.loading import load_model, model_source
from steermoe.records import IntArray, ResponseSums
from steermoe.reporter import Reporter
from steermoe.scores import score_named
from steermoe.scores.selectivity import GRADIENT
from steermoe.stages.score_passes import gradient, projection, taylor
from steermoe.stages.score_work import Chosen, Work, choose_prompts, read_texts
from steermoe.stages.scoring import passes_of, ranks_by_gradients, source_of
from steermoe.store.directory import RunDirectory
from steermoe.store.names import SCORE_SUMS, score_sums_of
from steermoe.store.state import Figures

PASSES: Mapping[str, Callable[[Work], ResponseSums]] = {
    "taylor": taylor,
    "projection": projection,
    GRADIENT: gradient,
}
"""By name; a user's own score that needs the model is a pass of its own."""


def score(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
    """Make every pass that is asked for and not done yet.

    Writes `score_sums/<pass>.safetensors`, and removes those of passes that nobody asks for any more.

    Returns:
        Figures for `run.json`: which passes, and over how many prompts.
    """
    wanted = passes_of(config)
    for path in run.matching((f"{SCORE_SUMS}/*.safetensors",)):
        if path not in {score_sums_of(name) for name in wanted}:
            run.remove(path)
    missing = [name for name in wanted if not run.has(score_sums_of(name))]
    if not missing:
        return {"passes": list(wanted)}
    loaded = load_model(config.model, model_source(config.model), report=reporter.line)
    loaded.model.requires_grad_(False)
    chosen = choose_prompts(run, config)
    texts = read_texts(run, config, loaded, chosen)
    for name in missing:
        if name not in PASSES:
            run.write_sums(name, score_named(name).sums(source_of(run, config, loaded)))
            continue
        places = _places(name, chosen, config)
        with reporter.bar(len(places), f"score: {name}") as bar:
            work = Work(run, name, loaded, chosen, places, texts, bar)
            run.write_sums(name, PASSES[name](work))
    return {"passes": list(wanted), "num_prompts": len(chosen.all)}


def _places(name: str, chosen: Chosen, config: Config) -> IntArray:
    """The responses that a pass measures: a forecast alone needs benign prompts, and no held-out ones."""
    if name != GRADIENT:
        return chosen.compared
    parts = [chosen.unsafe, chosen.safe, chosen.benign]
    if ranks_by_gradients(config):
        parts.append(chosen.held_out)
    return np.sort(np.concatenate(parts))
