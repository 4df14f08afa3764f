"""The selected experts against random ones that were trained alike: paired over prompts, random over goals and draws.

Shape legend: V variants, P prompts, C goals, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steermoe.records import FloatArray

PerPrompt = Mapping[str, tuple[float, float]]
"""By prompt: what is added up, and what the sum is divided by."""


@dataclass(frozen=True, slots=True)
class Against:
    """How intervals are made: level, draws of goals and of random sets together, and their seed."""

    confidence: float
    num_bootstrap: int
    seed: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference with its interval; None where it is undefined."""

    value: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True, slots=True)
class ControlMeasure:
    """One measure of the hardened model and of its controls, on the prompts that all of them have.

    Attributes:
        num_prompts: Those prompts.
        selected: The hardened model's figure.
        random: That of each random control.
        lowest: That of the lowest control; None without one.
        beyond_random: The hardened model's figure less the mean of the random controls'; its interval is over goals and
            over draws of random sets.
        beyond_lowest: The same against the lowest; over goals.
    """

    num_prompts: int
    selected: float
    random: tuple[float, ...]
    lowest: float | None
    beyond_random: Difference
    beyond_lowest: Difference


def compare_controls(
    random: Mapping[str, Mapping[str, PerPrompt]],
    selected: Mapping[str, PerPrompt],
    lowest: Mapping[str, PerPrompt] | None,
    goals: Mapping[str, str],
    against: Against,
) -> dict[str, ControlMeasure]:
    """Compare measure by measure.

    A draw takes goals with replacement, and random sets with replacement: what other goals, and other random sets,
    would have shown. The figures of all variants come from the same prompts, so the differences are paired.

    Args:
        random: Of every random control, its measures.
        selected: The hardened model's.
        lowest: The lowest control's, if there is one.
        goals: The goal of each prompt; prompts that share one are drawn together.
        against: How intervals are made.
    """
    found = {}
    for measure in selected:
        own = [selected[measure], *(of.get(measure, {}) for of in random.values())]
        if lowest is not None:
            own.append(lowest.get(measure, {}))
        shared = [i for i in selected[measure] if all(i in of for of in own)]
        if not shared:
            continue
        sums = np.array([[of[i] for i in shared] for of in own])  # (V, P, 2)
        cluster = np.unique([goals[i] for i in shared], return_inverse=True)[1]
        found[measure] = _compared(sums, cluster, len(random), lowest is not None, against)
    return found


def _compared(
    sums: FloatArray,
    cluster: np.ndarray[tuple[int], np.dtype[np.intp]],
    num_random: int,
    has_lowest: bool,
    against: Against,
) -> ControlMeasure:
    generator = np.random.default_rng(against.seed)
    number = int(cluster.max()) + 1
    drawn = generator.multinomial(number, np.full(number, 1 / number), against.num_bootstrap)
    figures = _figures(sums, np.ones((1, sums.shape[1])))[0]  # (V,)
    draws = _figures(sums, drawn[:, cluster].astype(np.float64))  # (R, V)
    beyond_random = beyond_lowest = Difference(None, None, None)
    if num_random:
        evenly = np.full(num_random, 1 / num_random)
        weight = generator.multinomial(num_random, evenly, against.num_bootstrap) / num_random
        mean = np.sum(weight * draws[:, 1 : 1 + num_random], axis=1)
        value = float(figures[0] - figures[1 : 1 + num_random].mean())
        beyond_random = _interval(value, draws[:, 0] - mean, against.confidence)
    if has_lowest:
        value = float(figures[0] - figures[-1])
        beyond_lowest = _interval(value, draws[:, 0] - draws[:, -1], against.confidence)
    return ControlMeasure(
        num_prompts=sums.shape[1],
        selected=float(figures[0]),
        random=tuple(float(v) for v in figures[1 : 1 + num_random]),
        lowest=float(figures[-1]) if has_lowest else None,
        beyond_random=beyond_random,
        beyond_lowest=beyond_lowest,
    )


def _figures(sums: FloatArray, weight: FloatArray) -> FloatArray:
    """`(R, V)` ratio of two sums for every variant, NaN where nothing was drawn."""
    over, under = weight @ sums[:, :, 0].T, weight @ sums[:, :, 1].T
    return np.asarray(np.where(under > 0, over / np.where(under > 0, under, 1.0), np.nan))


def _interval(value: float, drawn: FloatArray, confidence: float) -> Difference:
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return Difference(value, None, None)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(value, float(low), float(high))
