"""Intervals of paired changes: how often they hold the truth, counted over every outcome that a trinomial has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats

from steermoe.analysis.rates import change
from steermoe.records import FloatArray

Interval = Callable[[int, int, int], tuple[float, float]]
"""From ups, downs and pairs to the ends of an interval."""


@cache
def interval_of_change(num_up: int, num_down: int, n: int) -> tuple[float, float]:
    """What `steermoe.analysis.rates.change` says of so many prompts, each with a goal of its own."""
    same = n - num_up - num_down
    before = [False] * num_up + [True] * num_down + [False] * same
    after = [True] * num_up + [False] * num_down + [False] * same
    found = change(before, after, [str(i) for i in range(n)], num_bootstrap=2000)
    assert found.ci_low is not None and found.ci_high is not None, "all answers are scored"
    return found.ci_low, found.ci_high


def exact_coverage(
    n: int, ups: Sequence[float], downs: Sequence[float], interval: Interval = interval_of_change
) -> FloatArray:
    """Chance that the interval holds `up - down`, for every pair of true shares `(len(ups), len(downs))`.

    Outcomes of which there are fewer than 1e-7 in all are left out, and count as if they missed.
    """
    every = [(up, down) for up in range(n + 1) for down in range(n + 1 - up)]
    counts = np.array([(up, down, n - up - down) for up, down in every])
    chances = np.stack(
        [
            stats.multinomial.pmf(counts, n, [up, down, 1 - up - down])
            for up in ups
            for down in downs
        ]
    )
    needed = np.flatnonzero(chances.max(axis=0) > 1e-9)
    ends = np.array([interval(*every[i], n) for i in needed])
    true = np.array([up - down for up in ups for down in downs])[:, None]
    holds = (ends[:, 0] <= true + 1e-12) & (true - 1e-12 <= ends[:, 1])
    return np.asarray((chances[:, needed] * holds).sum(axis=1).reshape(len(ups), len(downs)))


SHARES = (0.01, 0.02, 0.04, 0.08, 0.12, 0.2, 0.3)
"""True shares of prompts that change in either way."""


def study_changes(sizes: Sequence[int] = (24, 48, 100)) -> pd.DataFrame:
    """One row a size: least and mean coverage over a grid of shares, and how often the two answers differ."""
    rows = []
    for n in sizes:
        held = exact_coverage(n, SHARES, SHARES)
        place = np.unravel_index(held.argmin(), held.shape)
        rows.append(
            {
                "prompts": n,
                "least": f"{held.min():.3f}",
                "at (up, down)": f"{SHARES[place[0]]}, {SHARES[place[1]]}",
                "mean": f"{held.mean():.3f}",
                "share of the grid below 0.945": f"{np.mean(held < 0.945):.0%}",
                "excludes 0 though p > 0.05, at most": f"{_contradictions(n):.3f}",
            }
        )
    return pd.DataFrame(rows)


def _contradictions(n: int) -> float:
    """Largest chance over the grid that the interval leaves 0 out and the exact test does not."""
    most = 0.0
    every = [(up, down) for up in range(n + 1) for down in range(n + 1 - up)]
    counts = np.array([(up, down, n - up - down) for up, down in every])
    for up in SHARES:
        for down in SHARES:
            chance = stats.multinomial.pmf(counts, n, [up, down, 1 - up - down])
            total = 0.0
            for i in np.flatnonzero(chance > 1e-9):
                low, high = interval_of_change(*every[i], n)
                ups, downs = every[i]
                p = stats.binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
                total += float(chance[i]) * ((low > 0 or high < 0) and p > 0.05)
            most = max(most, total)
    return most
