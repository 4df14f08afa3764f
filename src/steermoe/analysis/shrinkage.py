"""Empirical Bayes: how many of some experts are false, and what is left of their differences.

One-sided p-values are turned into z-scores, and what all experts' scores are made of is estimated from them
together: an expert's true score is 0 or one of a grid of values,

    z ~ N(theta, 1),    theta in {0, +-1.5, +-2, +-2.5, ..}

How many experts have which value is fitted by maximum likelihood (Kiefer and Wolfowitz 1956, Annals of Mathematical
Statistics 27:887-906; Koenker and Mizera 2014, JASA 109:674-685), with a penalty that prefers 0. No shape is assumed,
and up and down are apart: experts of a layer compete, so many are truly lower, and they must not speak for the
higher ones. True scores below 1.5 standard errors cannot be told from 0 and count for it.

What follows holds for any set of experts, however it was selected from these differences: the mean of its members'
chances to be false is its expected false share (Efron 2007, Annals of Statistics 35:1351-1377).

Shape legend: M experts, V values of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from steermoe.records import FloatArray

SMALLEST_SCORE = 1.5
"""Smallest true score that is told from 0, in standard errors."""

STEP = 0.5
"""Distance of neighbouring values."""

NULL_PENALTY = 9.0
"""As many experts as this are added to those of score 0."""

LARGEST_SCORE = 6.0
"""Scores are cut here: draws resolve no smaller p-values."""

MOST_ROUNDS = 1000
"""Rounds of the fit, at most."""

TOLERANCE = 1e-6
"""The fit has settled when no share changes by more than this."""


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """What all experts together say of each one, `(M,)` both.

    Attributes:
        local_fdr: Chance that it is not higher in unsafe content; 1 where nothing is known.
        left: Share of its difference that is left when what made it stand out is taken off, 0 to 1: estimates of
            experts that were selected for being large are too large.
    """

    local_fdr: FloatArray
    left: FloatArray


def shrink(p_higher: FloatArray) -> Shrinkage:
    """Fit what the experts' scores are made of, and say what it means for each.

    Args:
        p_higher: `(M,)` one-sided p-values of the difference being above 0, of all experts that may be selected.

    Example:
        >>> found = shrink(np.array([1e-7] * 5 + [0.05, 0.35, 0.55, 0.75, 0.95] * 10))
        >>> found.local_fdr[[0, 9]].round(2).tolist(), found.left[[0, 9]].round(1).tolist()
        ([0.0, 1.0], [1.0, 0.0])
    """
    if len(p_higher) == 0 or p_higher.min() >= 1:
        return Shrinkage(np.ones_like(p_higher), np.zeros_like(p_higher))
    z = np.clip(stats.norm.isf(p_higher), -LARGEST_SCORE, LARGEST_SCORE)
    sizes = np.arange(SMALLEST_SCORE, max(SMALLEST_SCORE, np.abs(z).max()) + STEP, STEP)
    values = np.concatenate([[0.0], sizes, -sizes])  # (V,)
    likelihood = np.exp(-0.5 * (z[:, None] - values) ** 2)  # (M, V)
    chance = likelihood * _fitted_shares(likelihood)
    chance /= chance.sum(axis=1, keepdims=True)
    expected = chance @ values
    left = np.where(z == 0, 0.0, expected / np.where(z == 0, 1.0, z))
    higher = chance[:, 1 : 1 + len(sizes)].sum(axis=1)
    return Shrinkage(np.asarray(np.clip(1 - higher, 0.0, 1.0)), np.asarray(np.clip(left, 0.0, 1.0)))


def _fitted_shares(likelihood: FloatArray) -> FloatArray:
    """The share of experts that have each value, `(V,)`, by expectation and maximisation."""
    number = likelihood.shape[1]
    share = np.full(number, 0.5 / (number - 1))
    share[0] = 0.5
    for _ in range(MOST_ROUNDS):
        members = share * (likelihood.T @ (1 / (likelihood @ share)))
        members[0] += NULL_PENALTY
        before, share = share, members / members.sum()
        if np.abs(share - before).max() < TOLERANCE:
            break
    return share
