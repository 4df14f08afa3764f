"""Does the number of prompts that is named find the experts, where their effects vary between prompts?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from benchmarks.validity.nested import (
    Effects,
    Goals,
    NestedModel,
    NestedRun,
    draw_base,
    plan_replies,
    simulate_nested,
)
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.power import EFFECT_VARIATION, prompts_needed, weight_concentration
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import resolve_rule
from steermoe.analysis.uncertainty import estimate_uncertainty

PILOT_PROMPTS = 80
NUM_PLANTED = 10
THRESHOLD = 0.05
"""That of the selection rule, by default."""


def table_of(run: NestedRun, seed: int, num_bootstrap: int) -> pd.DataFrame:
    """The risk table of a run with its uncertainty, by the default estimator."""
    table = risk_tables(run.counts, run.is_unsafe, run.batch_idx).aggregated
    uncertainty = estimate_uncertainty(
        run.counts, run.is_unsafe, run.goals, run.batch_idx, num_permutations=1000,
        num_bootstrap=num_bootstrap, seed=seed, threshold=THRESHOLD,
    )  # fmt: skip
    return table.merge(uncertainty, on=["layer", "expert"])


def study_power(
    num_runs: int,
    *,
    variations: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    risk_diff: float = 0.1,
    goals: Goals = "paired",
    model: NestedModel | None = None,
) -> Iterator[pd.DataFrame]:
    """One row a variation and an assumption: what was promised, and the share of planted experts that `fdr` finds.

    The pilots of eighty prompts a class have no effects. Every run has a pilot, experts and layers of its own.
    """
    of_model = model or NestedModel()
    pilots = []
    for seed in range(num_runs):
        run = simulate_nested(of_model, plan_replies(PILOT_PROMPTS, seed, goals=goals), seed)
        used = build_contrast(
            run.counts,
            run.is_unsafe,
            run.batch_idx,
            run.plan.goal_of,
            "mean_over_batches",
            "generation",
        )
        pilots.append((table_of(run, seed, 500), weight_concentration(used)))
    for variation in variations:
        for assumed in sorted({EFFECT_VARIATION, variation}):
            shares, named, promised = [], [], []
            for seed, (pilot, concentration) in enumerate(pilots):
                needed = prompts_needed(
                    pilot, PILOT_PROMPTS, risk_diff=risk_diff, num_unsafe=NUM_PLANTED,
                    paired=goals == "paired", effect_variation=assumed, concentration=concentration,
                )  # fmt: skip
                named.append(needed.num_prompts)
                promised.append(needed.power)
                planted = planted_experts(of_model, seed, risk_diff)
                plan = plan_replies(needed.num_prompts, seed + 10_000, goals=goals)
                run = simulate_nested(
                    of_model, plan, seed, effects=Effects(planted, variation=variation)
                )
                chosen = resolve_rule("fdr")(table_of(run, seed, 2))
                found = {(int(layer), int(expert)) for layer, expert in chosen} & set(planted)
                shares.append(len(found) / NUM_PLANTED)
            error = np.std(shares, ddof=1) / np.sqrt(num_runs)
            row = {
                "goals": goals,
                "true cv": variation,
                "assumed cv": assumed,
                "prompts a class named": f"{np.median(named):.0f}",
                "power promised": f"{np.mean(promised):.2f}",
                "power achieved": f"{np.mean(shares):.2f} ± {error:.2f}",
            }
            yield pd.DataFrame([row])


def planted_experts(
    model: NestedModel, seed: int, risk_diff: float
) -> dict[tuple[int, int], float]:
    """Ten experts of different slots that have room for such a difference in a run of this seed."""
    base = draw_base(model, np.random.default_rng([seed, 1])).reshape(model.num_layers, -1)
    generator = np.random.default_rng([seed, 2])
    slots = generator.permutation(model.num_layers * model.num_slots)
    planted: dict[tuple[int, int], float] = {}
    for slot in slots:
        layer, place = divmod(int(slot), model.num_slots)
        expert = place * model.slot_size + int(generator.integers(model.slot_size))
        if base[layer, expert] < 0.5 and len(planted) < NUM_PLANTED:
            planted[layer, expert] = risk_diff
    return planted
