"""What identification costs, against another version of the code: time and memory, in turns.

    git worktree add --detach ../before a6b67e1
    python -m benchmarks.identification [uncertainty] [whole] --before ../before [--turns 5]

2,000 replies in 125 batches of 8 + 8, 48 layers of 128 experts, 2,000 relabellings and 2,000 bootstrap draws. Every
turn runs both versions, each in a process of its own, and gives one ratio of processor seconds and one of peak memory.
Prints the median ratio, and the range.

`uncertainty` is `estimate_uncertainty` alone, which both versions have. `whole` is everything that identification
computes from the counts: the other estimates, what else may explain a difference, relabelled held-out goals and so on,
as far as a version has them. Positions, which are read from the routes themselves, are left out.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import steermoe
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.influences import cluster_robust_errors
from steermoe.analysis.replication import replicate
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.stability import selection_stability
from steermoe.analysis.uncertainty import estimate_uncertainty

HERE = Path(__file__).resolve().parent.parent
NUM_REPLIES, NUM_LAYERS, NUM_EXPERTS = 2000, 48, 128
DEFAULT = "mean_over_batches"


class Data:
    """The replies: goals are pairs, or each reply has its own."""

    def __init__(self, goals: str) -> None:
        generator = np.random.default_rng(0)
        shape = (NUM_REPLIES, NUM_LAYERS, NUM_EXPERTS)
        active = np.zeros((NUM_REPLIES, 2, NUM_LAYERS, NUM_EXPERTS), dtype=np.int32)
        active[:, 1] = generator.binomial(48, 8 / NUM_EXPERTS, size=shape)
        tokens = np.tile([[0, 48]], (NUM_REPLIES, 1))
        self.counts = RoutingCounts(active, tokens, tuple(range(NUM_LAYERS)))
        # In no order, as replies are that were collected: batches and goals lie scattered.
        order = generator.permutation(NUM_REPLIES)
        is_unsafe = np.tile(np.repeat([False, True], 8), NUM_REPLIES // 16)
        clusters = np.arange(NUM_REPLIES)
        if goals == "paired":
            clusters[is_unsafe] -= 8
        self.is_unsafe, self.clusters = is_unsafe[order], clusters[order]
        self.batches = np.repeat(np.arange(NUM_REPLIES // 16), 16)[order]


def uncertainty(data: Data) -> pd.DataFrame:
    """Errors, intervals, p-values and q-values."""
    known = inspect.signature(estimate_uncertainty).parameters
    more = {"threshold": 0.05} if "threshold" in known else {}
    return estimate_uncertainty(
        data.counts, data.is_unsafe, [], data.batches, clusters=data.clusters, **more
    )  # fmt: skip


def whole(data: Data) -> None:
    """All that identification computes from the counts."""
    aggregated = risk_tables(data.counts, data.is_unsafe, data.batches).aggregated
    table = aggregated.merge(uncertainty(data), on=["layer", "expert"])
    selection_stability(data.counts, data.is_unsafe, [], data.batches, clusters=data.clusters)
    default = build_contrast(
        data.counts, data.is_unsafe, data.batches, data.clusters, DEFAULT, "generation"
    )
    cluster_robust_errors(default)
    selected = [
        (int(layer), int(expert)) for layer, expert in table[["layer", "expert"]].to_numpy()[:50]
    ]
    # The first half stands for held-out goals.
    half = np.arange(NUM_REPLIES // 2)
    some = data.counts.select(half), data.is_unsafe[half]
    held_out = risk_tables(*some, np.full(len(half), -1)).aggregated
    try:
        from steermoe.analysis.replication import Resampling
    except ImportError:
        replicate(table, held_out, selected)
        return
    _what_is_new(data, table)
    pooled = build_contrast(*some, np.zeros(len(half)), data.clusters[half], "pooled", "generation")
    replicate(table, held_out, selected, Resampling(pooled, 2000, 2000))


def _what_is_new(data: Data, table: pd.DataFrame) -> None:
    from steermoe.analysis.after_selection import with_false_coverage_intervals
    from steermoe.analysis.confounds import explain, within_strata
    from steermoe.analysis.linear import OfContrast
    from steermoe.analysis.sensitivity import other_estimates
    from steermoe.analysis.spread import class_spread

    def contrast(estimator: str) -> OfContrast:
        seen = build_contrast(
            data.counts, data.is_unsafe, data.batches, data.clusters, estimator, "generation"
        )
        return OfContrast(seen, data.clusters)

    class_spread(contrast(DEFAULT).contrast)
    other_estimates(
        data.counts, data.is_unsafe, data.batches, estimator=DEFAULT, segment="generation"
    )
    same_verdict = within_strata(data.counts, data.is_unsafe, data.batches % 2, data.clusters)
    explain(
        contrast(DEFAULT),
        {"topic_diff": contrast("pooled")},
        {
            "length_diff": contrast("equal_length"),
            "refusal_text_diff": OfContrast(same_verdict, data.clusters),
        },
        np.ones(len(table), dtype=bool),
    )
    with_false_coverage_intervals(table, [])


WORK: dict[str, Callable[[Data], object]] = {"uncertainty": uncertainty, "whole": whole}


def alone(what: str, goals: str) -> dict[str, object]:
    """One turn of one version, in this process: processor seconds, and peak memory in GiB."""
    data = Data(goals)
    started = time.process_time()
    WORK[what](data)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "GiB": peak, "code": str(Path(steermoe.__file__).parents[2])}


def in_a_process(checkout: Path, what: str, goals: str) -> dict[str, float]:
    """The same in a process that imports the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{HERE}"}
    command = [sys.executable, "-m", "benchmarks.identification", "--alone", what, goals]
    found = subprocess.run(
        command, env=environment, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(found.stdout)
    assert Path(result.pop("code")) == checkout, "another steermoe was imported"
    return dict(result)


def compare(before: Path, turns: int, works: Sequence[str]) -> None:
    """Print the table."""
    print("| what | goals | before | now | ratio of processor seconds | ratio of peak memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what in works:
        for goals in ("paired", "unpaired"):
            sides: dict[Path, list[dict[str, float]]] = {before: [], HERE: []}
            for turn in range(turns):
                for side in sorted(sides, reverse=bool(turn % 2)):
                    sides[side].append(in_a_process(side, what, goals))
            cells = [what, goals]
            for found in sides.values():
                seconds, memory = (
                    np.median([one[key] for one in found]) for key in ("seconds", "GiB")
                )
                cells.append(f"{seconds:.1f} s, {memory:.2f} GiB")
            for key in ("seconds", "GiB"):
                pairs = zip(sides[HERE], sides[before], strict=True)
                ratios = [new[key] / old[key] for new, old in pairs]
                cells.append(f"{np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.identification",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", choices=[[], *WORK], default=[])
    parser.add_argument("--before", type=Path, help="a checkout of the code to compare with")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(alone(*given.alone)))
    elif given.before is None:
        parser.error("give --before, a checkout of the code to compare with")
    else:
        compare(given.before.resolve(), given.turns, given.what or list(WORK))


if __name__ == "__main__":
    main()
