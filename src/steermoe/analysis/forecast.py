"""Forecast: what training a set of experts towards refusal is expected to cost, before anything is trained.

`x_i = <g_u, g_i>` says of every expert how far the gradient of prompt i's refusal loss points along the mean one of
harmful prompts (`scores/selectivity.py`). Gradients of different experts' weights are orthogonal, so those of a set add
up, and the set's *interference* on a kind of prompts is

    rho = mean over prompts of the kind (sum_e x_ie) / mean over harmful prompts (sum_e x_ie):

the share of what a small step takes off the refusal loss on harmful prompts that it takes off on the others, where
nobody wants it. It is first order, and of train prompts: it says which of two selections costs more, not how much.

Shape legend: P prompts, C clusters, R draws, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steermoe.analysis.grouping import Grouping
from steermoe.records import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval; None where it is undefined."""

    value: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True, slots=True)
class KindForecast:
    """What is expected on one kind of harmless prompts.

    Attributes:
        num_prompts: Prompts of the kind that were measured.
        selected: Interference of the selected set.
        random: Mean interference of the random sets.
        beyond_random: The selected set's less that mean, of the same prompts.
        least: The smallest interference of a random set.
        largest: The largest.
        num_below: Random sets whose interference is smaller than the selected set's.
        num_draws: Random sets.
    """

    num_prompts: int
    selected: Interval
    random: Interval
    beyond_random: Interval
    least: float | None
    largest: float | None
    num_below: int
    num_draws: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The prompts whose gradients were measured.

    Attributes:
        products: `(P, L, E)` x.
        kinds: `(P,)` `unsafe`, or the kind of harmless prompt.
        clusters: `(P,)` ids of groups that are independent of one another.
    """

    products: FloatArray
    kinds: Sequence[str]
    clusters: IntArray

    def of_kind(self, kind: str) -> BoolArray:
        """`(P,)` which prompts are of a kind."""
        return np.array([found == kind for found in self.kinds], dtype=np.bool_)


UNSAFE = "unsafe"


def forecast(
    measured: Measured,
    selected: BoolArray,
    random: Sequence[BoolArray],
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> dict[str, KindForecast]:
    """Interference of a set of experts on every kind of harmless prompts, beside random sets.

    Intervals are over groups of prompts, drawn with replacement, those with the same kinds among themselves; the
    direction of the harmful prompts' mean gradient is taken as it is.

    Args:
        measured: The prompts.
        selected: `(L, E)` the set.
        random: `(L, E)` each, the sets that it is compared with.
        num_bootstrap: Draws; 0 for no intervals.
        confidence: Of the intervals.
        seed: Seeds the draws.
    """
    sets = [selected, *random]
    values = np.stack([measured.products[:, of_set].sum(axis=1) for of_set in sets], axis=1)
    draws = drawn_weights(
        measured.clusters, measured.kinds, num_bootstrap, np.random.default_rng(seed)
    )
    unsafe = measured.of_kind(UNSAFE)
    found = {}
    for kind in dict.fromkeys(measured.kinds):
        if kind == UNSAFE or not unsafe.any():
            continue
        of_kind = measured.of_kind(kind)
        observed = _ratios(values, of_kind, unsafe, np.ones((1, len(values))))[0]
        drawn = _ratios(values, of_kind, unsafe, draws)
        others = observed[1:]
        known = others[np.isfinite(others)]
        found[kind] = KindForecast(
            num_prompts=int(of_kind.sum()),
            selected=_interval(observed[0], drawn[:, 0], confidence),
            random=_interval(_mean(others), drawn[:, 1:].mean(axis=1), confidence)
            if len(others)
            else Interval(None, None, None),
            beyond_random=_interval(
                observed[0] - _mean(others), drawn[:, 0] - drawn[:, 1:].mean(axis=1), confidence
            )
            if len(others)
            else Interval(None, None, None),
            least=float(known.min()) if len(known) else None,
            largest=float(known.max()) if len(known) else None,
            num_below=int((known < observed[0]).sum()),
            num_draws=len(others),
        )
    return found


def _mean(values: FloatArray) -> float:
    return float(values.mean())


def _ratios(
    values: FloatArray, of_kind: BoolArray, unsafe: BoolArray, weight: FloatArray
) -> FloatArray:
    """`(R, sets)` interference of every set, NaN where harmful prompts have no gradient in it."""
    means = []
    for rows in (of_kind, unsafe):
        total = weight[:, rows].sum(axis=1, keepdims=True)
        mean = weight[:, rows] @ values[rows] / np.where(total > 0, total, 1.0)
        means.append(np.where(total > 0, mean, np.nan))
    return np.asarray(means[0] / np.where(means[1] > 0, means[1], np.nan))


def drawn_weights(
    clusters: IntArray, kinds: Sequence[str], num_draws: int, generator: np.random.Generator
) -> FloatArray:
    """`(R, P)` how often each prompt is drawn: whole clusters, with replacement, among those of the same kinds."""
    cluster = np.unique(clusters, return_inverse=True)[1]
    grouping = Grouping.of(cluster)
    members = np.split(grouping.rows, grouping.starts[1:])
    alike: dict[frozenset[str], list[int]] = {}
    for number, rows in enumerate(members):
        alike.setdefault(frozenset(kinds[row] for row in rows), []).append(number)
    weight = np.zeros((num_draws, len(members)))
    for group in alike.values():
        evenly = np.full(len(group), 1 / len(group))
        weight[:, group] = generator.multinomial(len(group), evenly, size=num_draws)
    return weight[:, cluster]


def _interval(value: float, drawn: FloatArray, confidence: float) -> Interval:
    """A percentile interval; none without draws."""
    if not np.isfinite(value):
        return Interval(None, None, None)
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return Interval(float(value), None, None)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def as_kinds(found: Mapping[str, KindForecast]) -> list[str]:
    """The kinds of a forecast, in the order in which they are shown."""
    order = ("look_alike", "safe", "benign")
    return sorted(found, key=lambda kind: order.index(kind) if kind in order else len(order))
