"""How often a selection that has nothing to do with the experts' effects gets the smallest p-value among its draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.validity.nested import NestedModel, plan_replies, simulate_nested
from steermoe.analysis.ablation import plan_ablations, position_among
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import (
    SelectionSettings,
    activation_frequencies,
    resolve_rule,
)
from steermoe.records import FloatArray

NUM_DRAWS = 20

EFFECTS: dict[str, Callable[[FloatArray, np.random.Generator], FloatArray]] = {
    "alike": lambda frequency, generator: generator.normal(size=len(frequency)),
    "frequency x normal": lambda frequency, generator: (
        frequency * generator.normal(size=len(frequency))
    ),
    "frequency x positive": lambda frequency, generator: (
        frequency * generator.exponential(size=len(frequency))
    ),
}
"""What switching an expert off does; a set does what its experts do together. KL is of the third kind."""

SHAPES = {
    "30 x 8, 48 selected": (NestedModel(num_layers=30, num_slots=2, slot_size=4), 48),
    "8 x 8, 20 selected": (NestedModel(num_layers=8, num_slots=2, slot_size=4), 20),
    "16 x 64, 50 selected": (NestedModel(num_layers=16), 50),
}
"""Models, and how many experts of largest risk difference are selected from noise."""


def study_ranks(num_runs: int, effects_per_run: int = 20) -> pd.DataFrame:
    """One row a shape: share of ranks at the smallest p-value, by the kind of effect.

    The selection is that of a risk table without any true difference, so it is noise, and prefers experts that fire
    often, whose differences are larger. The run is the unit of the errors.
    """
    rows = []
    for name, (model, number) in SHAPES.items():
        shares: dict[str, list[float]] = {kind: [] for kind in EFFECTS}
        means: list[tuple[float, float]] = []
        for seed in range(num_runs):
            run = simulate_nested(model, plan_replies(40, seed), seed)
            table = risk_tables(run.counts, run.is_unsafe, run.batch_idx).aggregated
            settings = SelectionSettings(threshold=-1.0, top_k=number)
            selected = resolve_rule("threshold", settings)(table)
            frequency = activation_frequencies(table)
            place = {tuple(expert): i for i, expert in enumerate(frequency)}
            sets = [
                [place[tuple(expert)] for expert in ablation.experts]
                for ablation in plan_ablations(table, selected, NUM_DRAWS, model.num_slots, seed)
                if ablation.name in ("selected", "random")
            ]
            rate = np.array(list(frequency.values()))
            means.append((rate[sets[0]].mean(), np.mean([rate[s].mean() for s in sets[1:]])))
            for kind, effect_of in EFFECTS.items():
                generator = np.random.default_rng([seed, 3])
                hits = []
                for _ in range(effects_per_run):
                    effect = effect_of(rate, generator)
                    value, *drawn = (float(effect[s].sum()) for s in sets)
                    found = position_among(value, drawn)
                    hits.append(found is not None and found.p_value <= 1 / (1 + NUM_DRAWS) + 1e-9)
                shares[kind].append(float(np.mean(hits)))
        of_selected, of_drawn = np.mean(means, axis=0)
        rows.append(
            {
                "experts": name,
                **{kind: _percent(values) for kind, values in shares.items()},
                "frequency of selected / draws": f"{of_selected:.3f} / {of_drawn:.3f}",
            }
        )
    return pd.DataFrame(rows)


def _percent(values: list[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{100 * np.mean(values):.1f} ± {100 * error:.1f} %"
