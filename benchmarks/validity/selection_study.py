"""What is said of a selection: one-sided errors, held-out overlap, expected false shares, intervals after selection.

    python -m benchmarks.validity.selection_study [one_sided] [overlap] [confounds] [after] [--runs N]

Each prints a table of docs/statistics.md; run number r of a row has the seed r. `±` is the Monte Carlo error with
the run as the unit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.validity.confound_study import THRESHOLD, designs, one_run
from benchmarks.validity.nested import (
    Effects,
    NestedModel,
    NestedRun,
    plan_replies,
    simulate_nested,
)
from steermoe.analysis.after_selection import expected_false_share, with_false_coverage_intervals
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.replication import Resampling, replicate
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import SelectionSettings, resolve_rule
from steermoe.analysis.stability import selection_stability
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.records import Expert

Row = dict[str, object]


def show(rows: Iterable[Row]) -> None:
    """Print a Markdown table, each row as soon as it is known."""
    heads: list[str] = []
    for row in rows:
        if not heads:
            heads = list(row)
            print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
        print("| " + " | ".join(str(row.get(head, "-")) for head in heads) + " |", flush=True)


def with_error(values: Sequence[float], digits: int = 1, scale: float = 100) -> str:
    """Mean in per cent, and its Monte Carlo error; values that are not numbers are left out."""
    known = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    if len(known) < 2:
        return "-"
    error = known.std(ddof=1) / np.sqrt(len(known))
    return f"{scale * known.mean():.{digits}f} ± {scale * error:.{digits}f}"


def table_of(run: NestedRun, seed: int, threshold: float, draws: tuple[int, int]) -> pd.DataFrame:
    """The risk table of a run in the order of layer and expert, with the truth."""
    table = risk_tables(run.counts, run.is_unsafe, run.batch_idx).aggregated
    table = table.sort_values(["layer", "expert"], ignore_index=True)
    found = estimate_uncertainty(
        run.counts, run.is_unsafe, [], run.batch_idx, clusters=run.plan.goal_of,
        num_permutations=draws[0], num_bootstrap=draws[1], threshold=threshold, seed=seed,
    )  # fmt: skip
    return table.merge(found, on=["layer", "expert"]).assign(truth=run.truth.ravel())


def planted(model: NestedModel, sizes: Sequence[float], seed: int) -> Mapping[Expert, float]:
    """One expert in each of as many slots, at random."""
    generator = np.random.default_rng([seed, 5])
    slots = generator.permutation(model.num_layers * model.num_slots)[: len(sizes)]
    places = generator.integers(model.slot_size, size=len(sizes))
    found = {}
    for slot, place, size in zip(slots, places, sizes, strict=True):
        layer, inside = divmod(int(slot), model.num_slots)
        found[(layer, inside * model.slot_size + int(place))] = size
    return found


# ---- one-sided ----------------------------------------------------------------------------------------


def one_sided(runs: int) -> Iterator[Row]:
    """False discoveries of the higher side: many truly lower, and many between 0 and the threshold."""
    wide = NestedModel(slot_size=12, base_spread=2.0)
    cases = {
        "5.5 % higher by 0.3, 60 % lower": (wide, [0.3] * 21, 0.0),
        "2 % higher by 0.5, 48 % lower": (
            NestedModel(slot_size=24, base_spread=4.0), [0.5] * 16, 0.0,
        ),
        "10 at 0.03 and 10 at 0.12, threshold 0.05": (
            NestedModel(base_spread=2.0), [0.03] * 10 + [0.12] * 10, 0.05,
        ),
    }  # fmt: skip
    for name, (model, sizes, threshold) in cases.items():
        shares: dict[str, list[float]] = {"two-sided, then the higher": [], "one-sided": []}
        recall: dict[str, list[float]] = {key: [] for key in shares}
        for seed in range(runs):
            plan = plan_replies(200, seed)
            effects = Effects(planted(model, sizes, seed), 0.5)
            run = simulate_nested(model, plan, seed, effects=effects)
            table = table_of(run, seed, threshold, (500, 2))
            is_large = (table["risk_diff"] > 0) & (table["risk_diff"] >= threshold)
            before = stats.false_discovery_control(table["p_value"]) <= 0.05
            after = table["q_value"] <= 0.05
            is_true = table["truth"] > threshold
            for key, found in zip(shares, (before & is_large, after & is_large), strict=True):
                shares[key].append(float((found & ~is_true).sum() / max(1, found.sum())))
                recall[key].append(float((found & is_true).sum() / is_true.sum()))
        row: Row = {"truth": name}
        for key in shares:
            row[f"{key}: false, %"] = with_error(shares[key])
            row[f"{key}: found, %"] = with_error(recall[key])
        yield row


# ---- overlap on held-out goals ------------------------------------------------------------------------


def overlap(runs: int) -> Iterator[Row]:
    """P-values of the overlap where there is no difference, by random sets and by exchanged labels."""
    for name, model in (
        ("64 experts a layer", NestedModel()),
        ("8 a layer", NestedModel(16, 2, 4)),
    ):
        by_sets, by_labels, expected, seen = [], [], [], []
        for seed in range(runs):
            run = simulate_nested(model, plan_replies(150, seed), seed)
            is_train = run.plan.goal_of < 100
            tables = [
                risk_tables(run.counts.select(r), run.is_unsafe[r], np.full(r.sum(), -1)).aggregated
                for r in (is_train, ~is_train)
            ]
            chosen = [(int(a), int(b)) for a, b in tables[0][["layer", "expert"]].to_numpy()[:20]]
            rest = np.flatnonzero(~is_train)
            contrast = build_contrast(
                run.counts.select(rest), run.is_unsafe[rest], np.zeros(len(rest)),
                run.plan.goal_of[rest], "pooled", "generation",
            )  # fmt: skip
            found = replicate(*tables, chosen, Resampling(contrast, 399, 0, seed))
            number = found.num_experts
            by_sets.append(float(stats.hypergeom.sf(found.overlap - 1, number, 20, 20)))
            by_labels.append(found.overlap_p_value)
            expected.append(found.overlap_when_relabelled)
            seen.append(found.overlap)
        for kind, p_values in (("random sets", by_sets), ("exchanged labels", by_labels)):
            values = np.array(p_values)
            yield {
                "experts": name,
                "compared with": kind,
                **{f"p <= {at}, %": with_error(values <= at) for at in (0.01, 0.05, 0.25, 0.5)},
                "overlap of 20": with_error(seen, 2, 1),
                "expected": f"{400 / number:.2f}"
                if kind == "random sets"
                else with_error(expected, 2, 1),
            }


# ---- confounds and the filter -------------------------------------------------------------------------


def confounds(runs: int) -> Iterator[Row]:
    """What else than unsafety makes a difference: how much is flagged, named, and left where replies are alike."""
    for design in designs(200):
        seen: dict[str, list[float]] = {}
        for seed in range(runs):
            table, freedom = one_run(design, seed)
            risky = table["risk_diff"] >= THRESHOLD
            if design.planted:
                risky &= table["truth"] >= THRESHOLD
            named = risky & (table["confounded_by"] != "")
            values = {
                "flagged, %": 100 * float((table["p_value"] <= 0.05).mean()),
                "runs with q <= 0.05, %": 100 * float(table["q_value"].min() <= 0.05),
                "at least 0.05, a run": float(risky.sum()),
                "of them named, %": 100 * float(named.sum() / risky.sum())
                if risky.any()
                else np.nan,
            }
            for column, known in freedom.items():
                score = (table[column] / table[f"{column}_se"]).abs()
                flagged = 100 * float((score > stats.t.ppf(0.975, known)).mean())
                values[f"{column} flagged, %"] = flagged
            for key, value in values.items():
                seen.setdefault(key, []).append(value)
        yield {"data": design.name, **{k: with_error(v, 1, 1) for k, v in seen.items()}}


# ---- after selection ----------------------------------------------------------------------------------


def after(runs: int) -> Iterator[Row]:
    """Expected and true false shares, intervals and estimates of what several rules select."""
    model = NestedModel(num_layers=8, base_spread=1.0)
    rules = {
        "threshold 0.05": ("threshold", SelectionSettings(0.05)),
        "threshold 0, top 50": ("threshold", SelectionSettings(0.0)),
        "stability, 0.02": ("stability", SelectionSettings(0.02)),
        "fdr, 0.02": ("fdr", SelectionSettings(0.02)),
    }
    for size, number in ((0.0, 100), (0.05, 100), (0.1, 40), (0.1, 100), (0.1, 200)):
        seen: dict[tuple[str, str], list[float]] = {}
        for seed in range(runs):
            plan = plan_replies(number, seed)
            effects = Effects(planted(model, [size] * 10, seed) if size else {}, 0.5)
            run = simulate_nested(model, plan, seed, effects=effects)
            table = table_of(run, seed, 0.02, (300, 300))
            table["stability"] = selection_stability(
                run.counts, run.is_unsafe, [], run.batch_idx, clusters=plan.goal_of,
                threshold=0.02, num_subsamples=60, seed=seed,
            ).table["stability"]  # fmt: skip
            for rule, (name, settings) in rules.items():
                chosen = resolve_rule(name, settings)(table)
                for key, value in _of_selected(table, chosen).items():
                    seen.setdefault((rule, key), []).append(value)
        for rule in rules:
            row: Row = {"planted": size or "nothing", "goals": number, "rule": rule}
            for (of, key), values in seen.items():
                if of == rule:
                    row[key] = with_error(values, 1 if "%" in key else 3, 1)
            yield row


def _of_selected(table: pd.DataFrame, chosen: list[Expert]) -> dict[str, float]:
    names = ("selected", "false, %", "expected false, %", "intervals hold the truth, %", "fcr intervals, %",
             "estimate", "shrunken", "truth")  # fmt: skip
    if not chosen:
        return dict.fromkeys(names, np.nan) | {"selected": 0.0}
    share = expected_false_share(table, chosen)
    allowed = with_false_coverage_intervals(table, chosen)
    own = allowed[pd.MultiIndex.from_frame(allowed[["layer", "expert"]]).isin(chosen)]
    truth = own["truth"]
    holds = (own["ci_low"] <= truth) & (truth <= own["ci_high"])
    holds_after = (own["fcr_low"] <= truth) & (truth <= own["fcr_high"])
    values = (
        len(own), 100 * (truth <= 0).mean(), 100 * (share or 0.0), 100 * holds.mean(),
        100 * holds_after.mean(), own["estimate"].mean(), own["shrunken"].mean(), truth.mean(),
    )  # fmt: skip
    return dict(zip(names, map(float, values), strict=True))


STUDIES: dict[str, tuple[Callable[[int], Iterator[Row]], int]] = {
    "one_sided": (one_sided, 100),
    "overlap": (overlap, 400),
    "confounds": (confounds, 40),
    "after": (after, 40),
}


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="*", choices=[[], *STUDIES], default=[])
    parser.add_argument("--runs", type=int)
    given = parser.parse_args()
    for name in given.what or STUDIES:
        study, runs = STUDIES[name]
        print(f"\n## {name}\n")
        show(study(given.runs or runs))


if __name__ == "__main__":
    main()
