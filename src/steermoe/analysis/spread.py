"""Do the classes differ in spread, in a way that a test of means cannot bear?

Relabelling makes both classes alike, and a studentised difference bears it if they are not, as long as it is as
likely to err up as down. Where the goals of one class are few, variable and skewed, it is not: their mean lies
below the truth when their spread is small too, and so looks certain. The first term of that error is the skewness
of the difference itself (Hall 1992), which is what is measured here.

Shape legend: N responses, C clusters, M experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steermoe.analysis.estimators import Contrast, column_chunks
from steermoe.analysis.grouping import Grouping, sum_of_cubes, sum_of_squares
from steermoe.analysis.influences import class_rates

TOO_SKEWED = 0.08
"""Mean skewness k of the differences from which p-values are not to be trusted. A standard normal that should exceed z
with chance P does so with P + k phi(z) (2 z^2 + 1) / 6: at z = 3.29, that of p = 0.001, twice as often on one side."""


@dataclass(frozen=True, slots=True)
class ClassSpread:
    """How unlike the classes' spreads are.

    Attributes:
        variance_ratio: Variance between unsafe goals over that between safe ones, median of the experts.
        skewness: Skewness of the risk difference, mean of the experts: the sum of the cubes of what goals add to it,
            over the sum of their squares to the power 1.5. Of alike classes it is near 0.
        num_unsafe: Goals with unsafe responses.
        num_safe: Goals with safe ones.
    """

    variance_ratio: float
    skewness: float
    num_unsafe: int
    num_safe: int

    @property
    def is_too_skewed(self) -> bool:
        """Whether two-sided p-values and intervals are not to be trusted.

        By the skewness, which is what makes them wrong; a ratio of variances far from 1 alone does not.
        """
        return abs(self.skewness) >= TOO_SKEWED

    def as_json(self) -> dict[str, float | int | bool]:
        """As `run.json` holds it."""
        return {
            "variance_ratio": float(f"{self.variance_ratio:.4g}"),
            "skewness": float(f"{self.skewness:.4g}"),
            "is_too_skewed": self.is_too_skewed,
        }

    def warning(self) -> str | None:
        """What to say of it, if anything."""
        if not self.is_too_skewed:
            return None
        smaller = "unsafe" if self.num_unsafe < self.num_safe else "safe"
        of_q = "allows for part of it" if self.skewness < 0 else "is cautious"
        return (
            "the classes differ in spread, and not evenly: variance of unsafe goals "
            f"{self.variance_ratio:.2g} times that of safe ones, {self.num_unsafe} and {self.num_safe} goals, "
            f"skewness of the differences {self.skewness:+.2f}. p_value is too small and intervals are too short; "
            f"q_value {of_q}. identify.estimator=mean_over_responses bears it better, more {smaller} goals best"
        )


def class_spread(contrast: Contrast) -> ClassSpread:
    """Compare the classes' spread between goals, over all experts that are ever active."""
    sides = [
        Grouping.of(contrast.cluster, np.flatnonzero(contrast.is_unsafe == unsafe))
        for unsafe in (False, True)
    ]
    numbers = [len(side) for side in sides]
    weight = contrast.coefficients()[0]
    taken = weight * contrast.size
    ratios, skewness = [], []
    for columns in column_chunks(contrast.num_experts):
        values = contrast.values(columns)
        rates = class_rates(contrast, values)
        whole = np.zeros((contrast.num_clusters, values.shape[1]))
        spreads = []
        for side, rate in zip(sides, rates, strict=True):
            parts = side.sums(values, weight)
            parts -= side.sums(taken)[:, None] * rate
            spreads.append(len(side) * sum_of_squares(parts))
            whole[contrast.cluster[side.rows[side.starts]]] += parts
        squares = sum_of_squares(whole)
        active = (spreads[0] > 0) & (spreads[1] > 0) & (squares > 0)
        ratios.append(spreads[1][active] / spreads[0][active])
        skewness.append(sum_of_cubes(whole)[active] / squares[active] ** 1.5)
    ratio, skew = np.concatenate(ratios), np.concatenate(skewness)
    if not len(ratio):
        return ClassSpread(1.0, 0.0, numbers[1], numbers[0])
    return ClassSpread(float(np.median(ratio)), float(np.mean(skew)), numbers[1], numbers[0])
