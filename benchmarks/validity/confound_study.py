"""What is said of experts that differ only by something else: length and position, a topic, refusal text, a filter.

Replies of the two sides route alike at equal position, topic and text; whatever is found is a confound. The last
design plants real differences, to see how many of them are flagged wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from benchmarks.validity.nested import (
    Effects,
    NestedModel,
    NestedRun,
    Plan,
    plan_replies,
    simulate_nested,
)
from steermoe.analysis.confounds import (
    MATCHED,
    explain,
    flag_confounded,
    within_strata,
)
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.linear import Linear, OfContrast
from steermoe.analysis.positions import AtEqualPosition
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.records import BoolArray

THRESHOLD = 0.05


@dataclass(frozen=True, slots=True)
class Confound:
    """One kind of data in which something else than unsafety differs.

    Attributes:
        name: What to call it.
        plan: From a seed to the replies there are.
        model: How they route.
        filtered: Only pairs whose safe reply refuses and whose unsafe one does not are compared.
        planted: Real differences beside it.
        look_alikes: Of as many benign and look-alike replies, the topic of the latter; None for none.
    """

    name: str
    plan: Callable[[int], Plan]
    model: NestedModel
    filtered: bool = False
    planted: float = 0.0


def designs(number: int) -> list[Confound]:
    """The confounds, with so many replies a class."""
    long_tail = NestedModel()

    def refusing(safe: float, unsafe: float) -> Callable[[int], Plan]:
        return lambda seed: plan_replies(number, seed, refusals=(safe, unsafe))

    return [
        Confound("short refusals, routing by position", refusing(0.8, 0.0), replace(long_tail, opening_text=0.3)),
        Confound("text of refusals", refusing(0.8, 0.0), replace(long_tail, refusal_text=0.3)),
        Confound(
            "one law, pairs filtered by verdict", refusing(0.5, 0.5),
            replace(long_tail, refusal_text=0.3), filtered=True,
        ),
        Confound("nothing but short refusals", refusing(0.8, 0.0), long_tail),
        Confound("real differences, short refusals", refusing(0.8, 0.0), long_tail, planted=0.1),
        Confound("real differences, filtered by verdict", refusing(0.5, 0.5), long_tail, True, 0.1),
    ]  # fmt: skip


def equal_positions(run: NestedRun, kept: BoolArray) -> AtEqualPosition:
    """Openings compared with openings and the rest with the rest: the positions that the simulator knows."""
    parts = [run.opening.select(kept), run.counts.select(kept)]
    opening, whole = (part.active[:, 1].reshape(len(part), -1) for part in parts)
    tokens = np.stack([part.num_tokens[:, 1] for part in parts], axis=1)
    tokens[:, 1] -= tokens[:, 0]
    active = np.stack([opening, whole - opening], axis=1)  # (N, 2, L * E)
    unsafe = run.is_unsafe[kept]
    totals = np.stack([tokens[unsafe == side].sum(axis=0) for side in (False, True)])
    shared = totals.prod(axis=0) / totals.sum(axis=0)
    a_token = shared / shared.sum() / np.maximum(totals, 1)
    of = a_token[unsafe.astype(int)]
    rates = np.stack([active[unsafe == side].sum(axis=0) for side in (False, True)])
    return AtEqualPosition(
        np.einsum("nb,nbe->ne", of, active).astype(np.float32),
        rates / np.maximum(totals, 1)[:, :, None],
        tokens * of,
        unsafe,
        run.plan.goal_of[kept],
    )


def one_run(
    confound: Confound, seed: int, num_draws: int = 300
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The risk table of one simulated run with what may explain it.

    Returns:
        The table with the column `truth`, and for each matched column (`at_equal_length`, ..) the degrees of freedom
        that its q-values have.
    """
    plan = confound.plan(seed)
    generator = np.random.default_rng([seed, 7])
    planted = {}
    if confound.planted:
        for slot in generator.permutation(confound.model.num_slots)[:5]:
            layer = int(generator.integers(confound.model.num_layers))
            place = int(generator.integers(confound.model.slot_size))
            planted[(layer, int(slot) * confound.model.slot_size + place)] = confound.planted
    effects = Effects(planted, 0.5)
    run = simulate_nested(confound.model, plan, seed, effects=effects)
    kept = np.ones(len(plan), dtype=bool)
    if confound.filtered:
        ok = plan.refuses != plan.is_unsafe
        kept = np.bincount(plan.goal_of, ok)[plan.goal_of] == 2
    counts, unsafe, goal = run.counts.select(kept), run.is_unsafe[kept], plan.goal_of[kept]
    batches = run.batch_idx[kept]
    table = risk_tables(counts, unsafe, batches).aggregated.sort_values(
        ["layer", "expert"], ignore_index=True
    )
    uncertainty = estimate_uncertainty(
        counts,
        unsafe,
        [],
        batches,
        clusters=goal,
        num_permutations=num_draws,
        num_bootstrap=num_draws,
        seed=seed,
    )
    table = table.merge(uncertainty, on=["layer", "expert"])
    default = build_contrast(counts, unsafe, batches, goal, "mean_over_batches", "generation")
    equal = build_contrast(counts, unsafe, batches, goal, "equal_length", "generation")
    verdict = within_strata(run.counts, run.is_unsafe, plan.refuses.astype(int), plan.goal_of)
    matched: dict[str, Linear] = {
        "length_diff": OfContrast(equal, goal),
        "position_diff": equal_positions(run, kept),
        "refusal_text_diff": OfContrast(verdict, plan.goal_of),
    }
    found = explain(OfContrast(default, goal), {}, matched, np.ones(len(table), dtype=bool))
    table = table.assign(**found)
    table["confounded_by"] = flag_confounded(table, THRESHOLD)
    table["truth"] = run.truth.ravel()
    return table, {MATCHED[name]: term.least_clusters - 1 for name, term in matched.items()}
