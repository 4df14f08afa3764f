"""The tables of docs/statistics.md that come from routing of the second kind, or from exact counting.

    python -m benchmarks.validity null --size 40 --runs 400
    python -m benchmarks.validity skewed --size 200 --runs 400
    python -m benchmarks.validity discoveries --size 200 --runs 400 --only "200 + 200 paired"
    python -m benchmarks.validity spread --runs 100
    python -m benchmarks.validity changes
    python -m benchmarks.validity ablation --runs 200
    python -m benchmarks.validity power --runs 60
    python -m benchmarks.validity unpaired_power --runs 60

Runs have the seeds 0, 1, 2 ...; `±` is the Monte Carlo error with the run as the unit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import pandas as pd

from benchmarks.validity.ablation_study import study_ranks
from benchmarks.validity.change_study import study_changes
from benchmarks.validity.null_study import (
    OF_INTERVALS,
    null_designs,
    spread_designs,
    study_null,
)
from benchmarks.validity.power_study import study_power
from steermoe.analysis.estimators import Estimator

Tables = Iterator[pd.DataFrame]


def null(runs: int, size: int, only: str | None) -> Tables:
    """No difference: short refusals on one side, heavy tails, goals alike or one with a fifth of the replies."""
    designs = [design for design in null_designs(size) if only in (None, design.name)]
    return (study_null(design, runs) for design in designs)


def skewed(runs: int, size: int, only: str | None) -> Tables:
    """As null, but only the estimator of the most skewed differences, and its p-values: intervals of two draws."""
    estimators: tuple[Estimator, ...] = ("mean_over_responses",)
    return (
        study_null(design, runs, estimators=estimators, num_bootstrap=2).drop(columns=OF_INTERVALS)
        for design in null_designs(size)
        if only in (None, design.name)
    )


def discoveries(runs: int, size: int, only: str | None) -> Tables:
    """As null, but p- and q-values alone, which takes a fraction of the time: intervals of two draws are left out."""
    return (
        study_null(design, runs, num_bootstrap=2).drop(columns=OF_INTERVALS)
        for design in null_designs(size)
        if only in (None, design.name)
    )


def spread(runs: int, size: int, only: str | None) -> Tables:
    """No difference of means, but one of spread."""
    return (study_null(design, runs) for design in spread_designs())


def changes(runs: int, size: int, only: str | None) -> Tables:
    """Intervals of paired changes, exactly."""
    return (study_changes([n]) for n in (24, 48, 100))


def ablation(runs: int, size: int, only: str | None) -> Tables:
    """Ranks of a selection from noise among random sets, at the smallest p-value of twenty draws."""
    yield study_ranks(runs)


def power(runs: int, size: int, only: str | None) -> Tables:
    """The share of planted experts that are found with as many prompts as a pilot names for 0.9."""
    return study_power(runs, goals="paired")


def unpaired_power(runs: int, size: int, only: str | None) -> Tables:
    """The same where prompts are not in pairs."""
    return study_power(runs, goals="unpaired")


PARTS: dict[str, tuple[Callable[[int, int, str | None], Tables], int]] = {
    "null": (null, 400),
    "skewed": (skewed, 400),
    "discoveries": (discoveries, 400),
    "spread": (spread, 100),
    "changes": (changes, 1),
    "ablation": (ablation, 200),
    "power": (power, 60),
    "unpaired_power": (unpaired_power, 60),
}
"""Each part, and the runs it simulates for each row unless told otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs", type=int, help="simulated runs for each row")
    parser.add_argument("--size", type=int, default=40, help="of the same: replies of either class")
    parser.add_argument(
        "--only", help="of null, discoveries and skewed: the one row of data with this name"
    )
    chosen = parser.parse_args()
    part, runs = PARTS[chosen.part]
    heads: list[str] = []
    for table in part(chosen.runs or runs, chosen.size, chosen.only):
        if heads != list(table.columns):
            heads = list(table.columns)
            print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
        for row in table.itertuples(index=False):
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
