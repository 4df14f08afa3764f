"""Power: how many prompts does it take to find an expert of a given risk difference?

From a pilot run's standard errors. An expert counts as found if the rule `fdr` selects it: the q-value of its risk
difference being greater than the threshold is small enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from steermoe.analysis.estimators import Contrast
from steermoe.errors import RoutingError
from steermoe.records import FloatArray

NUM_QUANTILES = 100
"""Standard errors that stand for those of all experts."""

EFFECT_VARIATION = 0.5
"""Spread of an effect between prompts, as a share of its mean, that is assumed where none is given."""

THRESHOLD_MULTIPLES = (1.2, 1.6, 2.0, 3.0, 4.0, 6.0)
"""Risk differences to ask about by default, in multiples of the threshold."""

LARGEST_MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""The same in multiples of the pilot's largest risk difference, where there is no threshold to go by."""

MOST_PROMPTS = 1_000_000
"""Prompts a class beyond which no number is named."""


@dataclass(frozen=True, slots=True)
class PowerEstimate:
    """How many prompts are needed.

    Attributes:
        num_prompts: Prompts of either class.
        power: Chance, at that number, to find an expert of the given risk difference, averaged over
            the model's experts.
        risk_diff: The true risk difference in question.
        num_unsafe: Experts assumed to have it. The more there are, the milder the correction for
            multiple comparisons.
        pilot_prompts: Prompts of either class in the pilot run.
    """

    num_prompts: int
    power: float
    risk_diff: float
    num_unsafe: int
    pilot_prompts: int


def prompts_needed(
    pilot: pd.DataFrame,
    num_prompts: int,
    *,
    risk_diff: float,
    power: float = 0.9,
    max_q_value: float = 0.05,
    threshold: float = 0.05,
    num_unsafe: int | None = None,
    paired: bool = True,
    effect_variation: float = EFFECT_VARIATION,
    concentration: float | None = None,
) -> PowerEstimate:
    """The least number of prompts a class that gives the power asked for.

    Args:
        pilot: Risk table with `risk_diff_se, a_safe_n, a_unsafe_n, n_unsafe`, and `risk_diff` and
            `q_value` where `num_unsafe` is not given.
        num_prompts: Prompts of either class behind the pilot's standard errors (the smaller number, if
            they differ): those that its estimator used.
        risk_diff: True risk difference to find; above `threshold`.
        power: Chance to find it.
        max_q_value: As in the selection rule.
        threshold: As in the selection rule.
        num_unsafe: Experts assumed to have a difference of that size; by default as many as the pilot
            finds at `max_q_value` with at least that difference, and at least one. Small
            differences that are certain in the pilot say nothing of how many large ones there are.
        paired: Whether goals have a safe and an unsafe prompt, so that there are only half as many
            goals as prompts.
        effect_variation: Standard deviation of the effect between prompts over its mean. A pilot that found no
            such expert cannot tell it; the larger it is, the more prompts are needed.
        concentration: How unevenly the estimate weighs the pilot's unsafe goals, `weight_concentration`: long replies
            count for more, and then so do their goals' effects. By default all weigh the same.

    Returns:
        The number, the power it reaches, and the assumptions.

    Raises:
        RoutingError: As `check_findable`, if the variation is negative, or if no number up to a million is enough.
    """
    check_findable(risk_diff, threshold)
    check_variation(effect_variation)
    if not 0 < power < 1:
        raise RoutingError(f"power is {power}; give a number between 0 and 1")
    if num_unsafe is None:
        as_large = (pilot["q_value"] <= max_q_value) & (pilot["risk_diff"] >= risk_diff)
        num_unsafe = max(1, int(as_large.sum()))
    spread = _spread_at(pilot, num_prompts, risk_diff, effect_variation, concentration)
    alone = max_q_value / len(pilot)  # What Bonferroni would allow.

    def reached(number: int) -> float:
        return _power(number, spread, risk_diff, alone, threshold, num_unsafe, paired)

    least = _least(reached, power)
    if least is None:
        raise RoutingError(
            f"even {MOST_PROMPTS} prompts a class do not find a risk difference of {risk_diff} with "
            f"power {power}; ask for a larger difference"
        )
    return PowerEstimate(least, reached(least), risk_diff, num_unsafe, num_prompts)


def _least(reached: Callable[[int], float], power: float) -> int | None:
    """The least number of prompts above 2 that reaches a power; None where a million do not."""
    low, high = 2, 4
    while reached(high) < power:
        if high == MOST_PROMPTS:
            return None
        low, high = high, min(2 * high, MOST_PROMPTS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return high


def check_findable(risk_diff: float, threshold: float) -> None:
    """Refuse a risk difference that is not positive, or not above the threshold.

    At most half of the experts at the threshold ever reach it in an estimate.

    Raises:
        RoutingError: If it is one of these.
    """
    if not 0 < risk_diff < 1:
        raise RoutingError(
            f"a risk difference of {risk_diff} was asked for; give one between 0 and 1"
        )
    if not risk_diff > threshold:
        raise RoutingError(
            f"a risk difference of {risk_diff} is not above the threshold {threshold}, so no number "
            "of prompts finds it reliably; ask for a larger one or lower the threshold"
        )


def check_variation(effect_variation: float) -> None:
    """Refuse a spread of an effect between prompts that is negative or not a number.

    Raises:
        RoutingError: If it is.
    """
    if not 0 <= effect_variation < np.inf:
        raise RoutingError(
            f"an effect that varies between prompts by {effect_variation} of its size was asked for; give 0 or more"
        )


def risk_diffs_to_find(pilot: pd.DataFrame, threshold: float) -> list[float]:
    """True risk differences worth asking about, where nobody names any.

    Multiples of the threshold; where that is not positive, of the largest difference that the pilot estimates.

    Args:
        pilot: Risk table with `risk_diff`.
        threshold: As in the selection rule.

    Returns:
        Ascending, to two significant digits, at least one.

    Raises:
        RoutingError: If the threshold leaves no room below 1, or is not positive and no expert of the
            pilot has a positive difference.
    """
    largest = float(pilot["risk_diff"].max())
    if threshold > 0:
        sizes = [threshold * multiple for multiple in THRESHOLD_MULTIPLES]
    else:
        sizes = [largest * multiple for multiple in LARGEST_MULTIPLES]
    rounded = sorted({float(f"{size:.2g}") for size in sizes})
    findable = [size for size in rounded if max(threshold, 0.0) < size < 1]
    if not findable:
        raise RoutingError(
            f"with the threshold {threshold} and a largest risk difference of {largest:+.4f} in the pilot there is "
            "no natural size to ask about; name one above the threshold and below 1 (--risk-diff)"
        )
    return findable


def power_at(
    pilot: pd.DataFrame,
    num_prompts: int,
    numbers: npt.ArrayLike,
    *,
    risk_diff: float,
    max_q_value: float = 0.05,
    threshold: float = 0.05,
    num_unsafe: int = 1,
    paired: bool = True,
    effect_variation: float = EFFECT_VARIATION,
    concentration: float | None = None,
) -> pd.DataFrame:
    """The power at several numbers of prompts; arguments as in `prompts_needed`.

    Returns:
        Columns `num_prompts, power`.
    """
    spread = _spread_at(pilot, num_prompts, risk_diff, effect_variation, concentration)
    alone = max_q_value / len(pilot)
    asked = [int(number) for number in np.atleast_1d(np.asarray(numbers))]
    reached = [
        _power(number, spread, risk_diff, alone, threshold, num_unsafe, paired) for number in asked
    ]
    return pd.DataFrame({"num_prompts": asked, "power": reached})


def weight_concentration(contrast: Contrast) -> float:
    """The sum of the squares of what share of the estimate's weight each unsafe goal has.

    1 / goals where all weigh the same, 1 where one has everything: the variance of a weighted mean of goals' effects,
    over that of one goal's effect.
    """
    weight = np.where(contrast.is_unsafe, contrast.coefficients()[0] * contrast.size, 0.0)
    of_goal = np.bincount(contrast.cluster, weight)
    return float(np.sum(of_goal**2) / of_goal.sum() ** 2)


def _spread_at(
    pilot: pd.DataFrame,
    num_prompts: int,
    risk_diff: float,
    effect_variation: float,
    concentration: float | None,
) -> FloatArray:
    """The standard error, for one prompt a class, that experts would have with this risk difference.

    To the variance of the pilot come that of the additional activations, in the unsafe class, and that
    of an effect which differs between prompts by `effect_variation` of its size.

    Returns:
        Evenly spaced quantiles over the experts that have room for such a difference.
    """
    frequency = (pilot["a_safe_n"] + pilot["a_unsafe_n"]).to_numpy(dtype=np.float64) / 2
    error = pilot["risk_diff_se"].to_numpy(dtype=np.float64)
    tokens = pilot["n_unsafe"].to_numpy(dtype=np.float64)
    then = frequency + risk_diff
    possible = (error > 0) & (then < 1)
    if not possible.any():
        raise RoutingError(
            f"no expert of the pilot has room for a risk difference of {risk_diff}; ask for a smaller one"
        )
    of_tokens = np.maximum(0.0, then * (1 - then) - frequency * (1 - frequency)) / tokens
    of_prompts = (effect_variation * risk_diff) ** 2 * (concentration or 1 / num_prompts)
    variance = (error**2 + of_tokens + of_prompts)[possible] * num_prompts
    return np.asarray(
        np.quantile(np.sqrt(variance), (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES)
    )


def _power(
    number: int,
    spread: FloatArray,
    risk_diff: float,
    allowed_alone: float,
    threshold: float,
    num_unsafe: int,
    paired: bool,
) -> float:
    """Mean over experts of the chance that the estimate is found to be greater than the threshold."""
    error = spread / np.sqrt(number)
    freedom = number - 1 if paired else 2 * number - 2
    reached = 1.0
    # The allowed p-value depends on how many are found, and that on the p-value: a few rounds settle it.
    for _ in range(20):
        allowed = allowed_alone * max(1.0, num_unsafe * reached)
        critical = stats.t.isf(allowed, freedom)
        found = stats.nct.sf(critical, freedom, (risk_diff - max(threshold, 0.0)) / error)
        reached = float(np.mean(found))
    return reached
