"""What is said of experts that do not differ: false alarms, discoveries and intervals on nested routing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd

from benchmarks.validity.calibration import BAND_EDGES, Share, share_of
from benchmarks.validity.nested import Goals, NestedModel, plan_replies, simulate_nested
from steermoe.analysis.estimators import ESTIMATORS, Estimator, build_contrast
from steermoe.analysis.spread import class_spread
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.records import FloatArray

FREQUENT = 0.01
"""Activation frequency from which the coverage of intervals is shown apart: rarer experts often fire in no reply at
all, and hold 0 for certain."""


@dataclass(frozen=True, slots=True)
class Design:
    """Data without a true difference.

    Attributes:
        name: What to call it.
        num_per_class: Safe replies, and as many unsafe ones unless `num_unsafe` says otherwise.
        goals: `paired` or `unpaired`.
        num_unsafe: Unsafe replies.
        large_goal: One goal has a fifth of the replies.
        refusals: Share of short refusals among safe and among unsafe replies.
        model: How replies route.
    """

    name: str
    num_per_class: int
    goals: Goals = "paired"
    num_unsafe: int | None = None
    large_goal: bool = False
    refusals: tuple[float, float] = (0.75, 0.0)
    model: NestedModel = field(default_factory=NestedModel)


OF_INTERVALS = ["intervals hold 0", "of experts from 1 % on"]
"""Columns that say nothing where the bootstrap had too few draws."""


def null_designs(num_per_class: int) -> list[Design]:
    """Short refusals on the safe side and heavy tails on both; goals alike, or one with a fifth of the replies."""
    kinds: tuple[Goals, ...] = ("paired", "unpaired")
    return [
        Design(
            f"{num_per_class} + {num_per_class} {goals}{', one goal of a fifth' if large else ''}",
            num_per_class,
            goals,
            large_goal=large,
        )
        for goals in kinds
        for large in (False, True)
    ]


def spread_designs() -> list[Design]:
    """Classes of one mean and unlike spread. The variable class is the smaller one, or they are as many.

    A skewed class errs downwards more often than up: skewed safe replies make experts look unsafe, skewed unsafe ones
    hide them.
    """
    skewed_safe = NestedModel(goal_concentration=1e9, reply_concentration=(8.0, 250.0))
    skewed_unsafe = NestedModel(goal_concentration=1e9, reply_concentration=(250.0, 8.0))
    symmetric = NestedModel(goal_concentration=1e9, reply_concentration=(0.3, 1.0), symmetric=True)
    found = []
    for what, model, fewer in (
        ("safe skewed", skewed_safe, "safe"),
        ("unsafe skewed", skewed_unsafe, "unsafe"),
        ("symmetric", symmetric, "unsafe"),
    ):
        few = (30, 120) if fewer == "safe" else (120, 30)
        sizes: tuple[tuple[tuple[int, int], Goals], ...] = (
            (few, "unpaired"),
            ((60, 60), "unpaired"),
            ((60, 60), "paired"),
        )
        for (safe, unsafe), goals in sizes:
            name = f"{what}, {safe} + {unsafe} {goals}"
            found.append(Design(name, safe, goals, unsafe, False, (0, 0), model))
    return found


def study_null(
    design: Design,
    num_runs: int,
    *,
    estimators: Iterable[Estimator] = ESTIMATORS,
    num_permutations: int = 500,
    num_bootstrap: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """One row an estimator: shares of innocent experts that are flagged, and of intervals that hold 0.

    Args:
        design: The data.
        num_runs: Simulated runs, of the seeds `seed, seed + 1, ...`.
        estimators: Whose uncertainty.
        num_permutations: As in `estimate_uncertainty`.
        num_bootstrap: As in `estimate_uncertainty`.
        seed: The first seed.
    """
    found: dict[Estimator, list[dict[str, FloatArray]]] = {name: [] for name in estimators}
    for number in range(seed, seed + num_runs):
        plan = plan_replies(
            design.num_per_class,
            number,
            goals=design.goals,
            num_unsafe=design.num_unsafe,
            large_goal=design.large_goal,
            refusals=design.refusals,
        )
        run = simulate_nested(design.model, plan, number)
        active, tokens = run.counts.segment("generation")
        frequency = active.sum(axis=0).ravel() / tokens.sum()
        for name, of_name in found.items():
            table = estimate_uncertainty(
                run.counts,
                run.is_unsafe,
                run.goals,
                run.batch_idx,
                estimator=name,
                num_permutations=num_permutations,
                num_bootstrap=num_bootstrap,
                seed=number,
            )
            names = ("p_value", "q_value", "ci_low", "ci_high")
            contrast = build_contrast(
                run.counts, run.is_unsafe, run.batch_idx, plan.goal_of, name, "generation"
            )
            of_name.append(
                {
                    "frequency": frequency,
                    "warned": np.array([class_spread(contrast).is_too_skewed]),
                    **{key: table[key].to_numpy() for key in names},
                }
            )
    return pd.DataFrame([_row(design, name, runs) for name, runs in found.items()])


def _row(
    design: Design, estimator: Estimator, runs: list[dict[str, FloatArray]]
) -> dict[str, object]:
    def share(hits: list[np.ndarray], low: float = 0.0, high: float = 1.01) -> str:
        inside = [(run["frequency"] >= low) & (run["frequency"] < high) for run in runs]
        return short(share_of([h[i] for h, i in zip(hits, inside, strict=True)]))

    flagged = [run["p_value"] <= 0.05 for run in runs]
    certain = [run["p_value"] <= 0.001 for run in runs]
    held = [(run["ci_low"] <= 0) & (run["ci_high"] >= 0) for run in runs]
    any_q = [np.array([run["q_value"].min() <= 0.05]) for run in runs]
    edges = (*BAND_EDGES[1:-1], 1.01)
    bands = " / ".join(share(flagged, low, high) for low, high in pairwise(edges))
    return {
        "data": design.name,
        "estimator": estimator,
        "runs": len(runs),
        "p <= .05": share(flagged),
        "the same at 1-3 / 3-10 / 10-30 / 30+ %": bands,
        "p <= .001": share(certain),
        "any q <= .05": short(share_of(any_q)),
        "intervals hold 0": share(held),
        "of experts from 1 % on": share(held, FREQUENT),
        "warned of skewness": short(share_of([run["warned"] for run in runs])),
    }


def short(share: Share) -> str:
    """Percent and its Monte Carlo error."""
    digits = 1 if share.error >= 0.0005 else 2
    return f"{100 * share.value:.{digits}f} ± {100 * share.error:.{digits}f}"
