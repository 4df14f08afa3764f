"""The statistics: how fast they are, and whether they keep their promises on simulated routing.

    python -m benchmarks.statistics [speed] [calibration] [few] [tails] [planted] [power] [real] [picture]

Each prints a table; `few` and `real` are those of docs/statistics.md, and `picture` writes docs/statistics.svg. The
others ask of another simulator what `python -m benchmarks.validity` asks of nested routing. `--runs` sets how many runs
are simulated for each row. `real` reads the run in `$STEERMOE_RUN`, by default runs/smollm2-moe.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.validity.calibration import (
    TAILS,
    NullSetting,
    calibrate,
    calibration_table,
    null_settings,
    unequal_length_settings,
)
from benchmarks.validity.nested import plan_replies, simulate_nested
from benchmarks.validity.null_study import null_designs
from benchmarks.validity.simulate import Design, RoutingModel, SimulatedRun, simulate_run
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import ESTIMATORS
from steermoe.analysis.power import prompts_needed
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import resolve_rule
from steermoe.analysis.stability import selection_stability
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.records import Expert
from steermoe.units import gibibytes

OLMOE = RoutingModel(num_layers=16, num_experts=64, top_k=8)
QWEN3 = RoutingModel(num_layers=48, num_experts=128, top_k=8)
SHAPES = {"OLMoE, 16 x 64": OLMOE, "Qwen3-30B, 48 x 128": QWEN3}
PILOT_PROMPTS = 80
THRESHOLD = 0.05
"""That of the selection rule, by default: what a difference must be greater than."""


def show(rows: list[dict[str, object]] | pd.DataFrame) -> None:
    """Print a Markdown table."""
    table = pd.DataFrame(rows)
    print("| " + " | ".join(map(str, table.columns)) + " |")
    print("| " + " | ".join("---" for _ in table.columns) + " |")
    for row in table.itertuples(index=False):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


# Speed


def large_run() -> tuple[RoutingCounts, np.ndarray, np.ndarray]:
    """2,000 responses in 125 batches of 8 + 8, 48 layers of 128 experts."""
    generator = np.random.default_rng(0)
    active = np.zeros((2000, 2, 48, 128), dtype=np.int32)
    active[:, 1] = generator.binomial(48, 8 / 128, size=(2000, 48, 128))
    counts = RoutingCounts(active, np.tile([[0, 48]], (2000, 1)), tuple(range(48)))
    return counts, np.tile(np.repeat([False, True], 8), 125), np.repeat(np.arange(125), 16)


def products(num_columns: int, repeats: int = 3) -> float:
    """Seconds of the two matrix products that cannot be avoided: bootstrap, and null statistics."""
    generator = np.random.default_rng(0)
    draws, counts = generator.random((2000, 2000)), generator.random((2000, 48 * 128))
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        draws @ counts
        draws[:, :num_columns] @ counts[:num_columns]
        taken.append(time.perf_counter() - started)
    return min(taken)


def speed_of(design: str, what: str) -> dict[str, object]:
    """One row of the speed table, in this process."""
    counts, unsafe, batches = large_run()
    pair = np.where(unsafe, np.arange(2000) - 8, np.arange(2000))
    clusters = pair if design == "paired" else np.arange(2000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, busy = time.perf_counter(), time.process_time()
    if what == "stability":
        selection_stability(counts, unsafe, [], batches, clusters=clusters)
    else:
        estimate_uncertainty(
            counts, unsafe, [], batches, estimator=what, clusters=clusters, threshold=THRESHOLD
        )
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unavoidable = products(1000 if design == "paired" else 2000)
    return {
        "what": what,
        "goals": design,
        "seconds": f"{seconds:.1f}",
        "processor seconds": f"{busy:.1f}",
        "times the matrix products": f"{seconds / unavoidable:.1f}",
        "peak memory": gibibytes(1024 * peak),
        "of which the counts": gibibytes(1024 * before),
    }


def speed(runs: int) -> None:
    """Seconds and memory of 2,000 responses x 48 layers x 128 experts, 2,000 + 2,000 draws."""
    rows = []
    for design in ("paired", "unpaired"):
        for what in ("pooled", "mean_over_batches", "stability"):
            command = [sys.executable, "-m", "benchmarks.statistics", "--alone", design, what]
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
            result = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            rows.append(json.loads(result.stdout))
    show(rows)


# Promises


def calibration(runs: int) -> None:
    """False alarms, coverage and discoveries where there is nothing to find; large rows from a fifth of the runs."""
    for place, setting in enumerate(calibration_settings()):
        number = max(2, runs // 5) if setting.num_per_class >= 400 else runs
        rows = calibration_table([calibrate(setting, number)])
        if place:
            print("| " + " | ".join(map(str, rows.iloc[0])) + " |", flush=True)
        else:
            show(rows)


def calibration_settings() -> list[NullSetting]:
    """The rows of the table."""
    return [
        *null_settings(40, "mean_over_batches"),
        *null_settings(40, "pooled"),
        *null_settings(400, "mean_over_batches"),
        *(NullSetting("plain", RoutingModel(), 40, "paired", name) for name in ESTIMATORS[2:]),
        *unequal_length_settings(80),
    ]


def few(runs: int) -> None:
    """How many intervals hold 0 where one class has few goals: 100 safe goals, one response each."""
    rows = []
    for num_unsafe in (5, 10, 20, 40):
        row: dict[str, object] = {"unsafe goals": num_unsafe}
        for estimator in ("pooled", "mean_over_responses"):
            shares = []
            for seed in range(runs):
                run = simulate_run(RoutingModel(), 100, seed, design="unpaired")
                kept = ~run.is_unsafe | (np.cumsum(run.is_unsafe) <= num_unsafe)
                table = estimate_uncertainty(
                    run.counts.select(kept), run.is_unsafe[kept], [], np.zeros(kept.sum()),
                    estimator=estimator, clusters=np.flatnonzero(kept), num_permutations=2,
                    num_bootstrap=500, seed=seed,
                )  # fmt: skip
                shares.append(float(((table["ci_low"] <= 0) & (table["ci_high"] >= 0)).mean()))
            row[f"intervals hold 0, {estimator}"] = with_error(shares)
        rows.append(row)
    show(rows)


def tails(runs: int) -> None:
    """How often p-values fall below small numbers: the ratio should be 1."""
    rows = []
    for name, model in SHAPES.items():
        for design in ("paired", "unpaired"):
            setting = NullSetting(name, model, 40, design)
            result = calibrate(setting, runs, num_permutations=2000, num_bootstrap=2)
            row: dict[str, object] = {"shape": name, "goals": design}
            for tail, share in zip(TAILS, result.tails, strict=True):
                row[f"p <= {tail:g}"] = f"{share.value / tail:.2f} ± {share.error / tail:.2f}"
            rows.append(row)
    show(rows)


def pilot_table(run: SimulatedRun, seed: int = 0, num_bootstrap: int = 2000) -> pd.DataFrame:
    """The risk table of a run with its uncertainty."""
    table = risk_tables(run.counts, run.is_unsafe, run.batch_idx).aggregated
    uncertainty = estimate_uncertainty(
        run.counts, run.is_unsafe, run.goals, run.batch_idx, num_bootstrap=num_bootstrap, seed=seed,
        threshold=THRESHOLD,
    )  # fmt: skip
    return table.merge(uncertainty, on=["layer", "expert"])


def planted_in(model: RoutingModel, number: int, seed: int) -> list[Expert]:
    """Random experts, the last layer's last one among them."""
    total = model.num_layers * model.num_experts
    drawn = np.random.default_rng(seed).choice(total - 1, number - 1, replace=False)
    return [divmod(int(place), model.num_experts) for place in [*drawn, total - 1]]


def selections(
    model: RoutingModel, num_per_class: int, design: Design, risk_diff: float, runs: int
) -> tuple[list[float], int, int]:
    """Share found of ten planted experts in each run; and how many were selected, and wrongly."""
    found, selected, wrong = [], 0, 0
    for seed in range(runs):
        planted = planted_in(model, 10, seed)
        run = simulate_run(
            model, num_per_class, seed, planted=planted, risk_diff=risk_diff, design=design
        )
        chosen = set(resolve_rule("fdr")(pilot_table(run, seed, num_bootstrap=50)))
        found.append(len(chosen & set(planted)) / 10)
        selected += len(chosen)
        wrong += len(chosen - set(planted))
    return found, selected, wrong


def with_error(values: list[float]) -> str:
    """Mean and its Monte Carlo error."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"


def planted(runs: int) -> None:
    """Ten planted experts among all, found by the rule `fdr` from 400 responses a class."""
    rows = []
    for name, model in SHAPES.items():
        for design in ("paired", "unpaired"):
            for risk_diff in (0.08, 0.1, 0.15):
                found, selected, wrong = selections(model, 400, design, risk_diff, runs)
                rows.append(
                    {
                        "shape": name,
                        "goals": design,
                        "planted difference": risk_diff,
                        "recall": with_error(found),
                        "precision": f"{1 - wrong / max(1, selected):.3f}",
                    }
                )
    show(rows)


def power(runs: int) -> None:
    """The number of prompts that is named for power 0.9, and the share found with as many."""
    rows = []
    for name, model in SHAPES.items():
        for design in ("paired", "unpaired"):
            pilot = pilot_table(simulate_run(model, PILOT_PROMPTS, 1000, design=design))
            for risk_diff in (0.08, 0.12):
                needed = prompts_needed(
                    pilot,
                    PILOT_PROMPTS,
                    risk_diff=risk_diff,
                    num_unsafe=10,
                    paired=design == "paired",
                )
                found, _, _ = selections(model, needed.num_prompts, design, risk_diff, runs)
                rows.append(
                    {
                        "shape": name,
                        "goals": design,
                        "true difference": risk_diff,
                        "prompts a class named": needed.num_prompts,
                        "power promised": f"{needed.power:.3f}",
                        "power achieved": with_error(found),
                    }
                )
    show(rows)


def real(runs: int) -> None:
    """The same on recorded routing: the responses of one class, split at random into two."""
    from steermoe.store.directory import RunDirectory

    directory = RunDirectory(os.environ.get("STEERMOE_RUN", "runs/smollm2-moe"))
    counts, responses = directory.read_counts(), directory.read_replies()
    generator = np.random.default_rng(0)
    rows = []
    for label in ("safe", "unsafe", "benign"):
        members = np.flatnonzero(responses["label"] == label)
        half = len(members) // 2
        flagged, covered, discovered, naive = [], [], [], []
        for seed in range(runs):
            chosen = counts.select(generator.permutation(members)[: 2 * half])
            exposed = np.repeat([True, False], half)
            table = estimate_uncertainty(
                chosen, exposed, [], np.zeros(2 * half), estimator="pooled",
                clusters=np.arange(2 * half), num_permutations=1000, num_bootstrap=500, seed=seed,
            )  # fmt: skip
            flagged.append(float((table["p_value"] <= 0.05).mean()))
            covered.append(float(((table["ci_low"] <= 0) & (table["ci_high"] >= 0)).mean()))
            discovered.append(float(table["q_value"].min() <= 0.05))
            whole = risk_tables(chosen, exposed, np.full(2 * half, -1)).aggregated
            naive.append(float((token_level_p_values(whole) <= 0.05).mean()))
        rows.append(
            {
                "responses": f"{half} + {half} {label}",
                "flagged token by token": with_error(naive),
                "flagged": with_error(flagged),
                "intervals hold 0": with_error(covered),
                "any q <= 0.05": with_error(discovered),
            }
        )
    show(rows)


def token_level_p_values(table: pd.DataFrame) -> np.ndarray:
    """What a test says that takes every token for independent."""
    rate = (table["a_safe"] + table["a_unsafe"]) / (table["n_safe"] + table["n_unsafe"])
    error = np.sqrt(rate * (1 - rate) * (1 / table["n_safe"] + 1 / table["n_unsafe"]))
    fires = error > 0  # one that never does is no evidence
    return np.where(fires, 2 * stats.norm.sf(table["risk_diff_pooled"].abs() / error), 1.0)


# The picture


def null_p_values(runs: int) -> dict[str, np.ndarray]:
    """P-values of innocent experts: token by token, and with the response as the unit; short refusals on one side."""
    design = null_designs(40)[0]
    naive, ours = [], []
    for seed in range(runs):
        plan = plan_replies(
            design.num_per_class, seed, goals=design.goals, refusals=design.refusals
        )
        run = simulate_nested(design.model, plan, seed)
        table = risk_tables(run.counts, run.is_unsafe, run.batch_idx).aggregated
        uncertainty = estimate_uncertainty(
            run.counts, run.is_unsafe, run.goals, run.batch_idx, num_bootstrap=2, seed=seed
        )
        naive.append(token_level_p_values(table))
        ours.append(uncertainty["p_value"].to_numpy())
    return {
        "tokens as the unit": np.concatenate(naive),
        "responses as the unit": np.concatenate(ours),
    }


def picture(runs: int) -> None:
    """Write docs/statistics.svg, and say how many p-values lie below 0.05."""
    from benchmarks.svg import Axes, document

    quantiles = Axes(
        "Experts that are innocent: p-values", "expected -log10 p", "observed -log10 p"
    )
    for name, values in null_p_values(runs).items():
        ordered = np.sort(values)
        rank = np.unique(np.geomspace(1, len(ordered), 60).astype(int))
        expected = -np.log10((rank - 0.5) / len(ordered))
        quantiles.line(name, expected, np.minimum(-np.log10(ordered[rank - 1]), 8))
        print(f"{name}: {np.mean(values <= 0.05):.1%} below 0.05")
    reach = np.linspace(0, 4, 2)
    quantiles.line("as it should be", reach, reach, dashed=True)
    path = Path(__file__).parent.parent / "docs" / "statistics.svg"
    path.write_text(document([quantiles]), encoding="utf-8")
    print(path)


PARTS: dict[str, tuple[Callable[[int], None], int]] = {
    "speed": (speed, 1),
    "calibration": (calibration, 1000),
    "few": (few, 500),
    "tails": (tails, 1000),
    "planted": (planted, 20),
    "power": (power, 60),
    "real": (real, 200),
    "picture": (picture, 100),
}
"""Each part, and the runs it simulates for each row unless told otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.statistics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--runs", type=int, help="simulated runs for each row")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.alone:
        print(json.dumps(speed_of(*chosen.alone)))
        return
    for name in chosen.parts or PARTS:
        part, runs = PARTS[name]
        print(f"\n## {name}: {(part.__doc__ or '').strip()}\n", flush=True)
        part(chosen.runs or runs)


if __name__ == "__main__":
    main()
