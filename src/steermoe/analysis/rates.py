"""Rates and their changes, each with its interval, its n and the count of answers that could not be scored.

Where each goal has one prompt, rates have Wilson intervals, and changes Tango's score interval and the exact McNemar
test. Where goals have several prompts, which are not independent, both intervals come from a bootstrap over goals,
widened where all goals agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import optimize, stats

from steermoe.metrics import Metric
from steermoe.records import FloatArray, IntArray

CONTINUITY = 0.25
"""Pairs that a difference may be off before it counts as evidence, in the interval of a change."""

UNSCORED_ALLOWED = 0.02
"""Above this share of unscored answers the worst-case rate is given too."""


def rate(
    hits: Sequence[bool | None],
    goals: Sequence[str],
    *,
    worse: bool,
    confidence: float = 0.95,
    num_bootstrap: int = 10_000,
    seed: int = 0,
) -> Metric:
    """Share of hits among the scored answers.

    Args:
        hits: Whether each answer is a hit; None where it could not be scored.
        goals: The goal of each answer; answers of one goal are not independent.
        worse: What an unscored answer counts as in the worst case.
        confidence: Level of the interval.
        num_bootstrap: Draws of the bootstrap over goals.
        seed: Seeds it.

    Returns:
        The metric; with more than 2 % unscored also `worst_case`, the rate with those counted as `worse`.
    """
    scored = [(bool(hit), goal) for hit, goal in zip(hits, goals, strict=True) if hit is not None]
    num_unscored = len(hits) - len(scored)
    values = np.array([hit for hit, _ in scored], dtype=np.float64)
    metric = _empty(num_unscored)
    if scored:
        kept = [goal for _, goal in scored]
        if len(set(kept)) == len(kept):
            low, high = wilson(int(values.sum()), len(values), confidence)
        else:
            sums, counts = _by_goal(values, np.ones_like(values), kept)
            low, high = _share_interval(sums, counts, 0.0, confidence, num_bootstrap, seed)
        metric = Metric(float(values.mean()), low, high, len(values), num_unscored)
    if hits and num_unscored > UNSCORED_ALLOWED * len(hits):
        worst = float(np.mean([worse if hit is None else hit for hit in hits]))
        return replace(metric, more={"worst_case": worst})
    return metric


def change(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    goals: Sequence[str],
    *,
    confidence: float = 0.95,
    num_bootstrap: int = 10_000,
    seed: int = 0,
) -> Metric:
    """Change of a rate between two models on the same prompts.

    Args:
        before: Whether each answer of the first model is a hit; None where unscored.
        after: The same of the second model.
        goals: The goal of each prompt.
        confidence: Level of the interval: Tango's score interval where each goal has one prompt, otherwise from a
            bootstrap over goals.
        num_bootstrap: Its draws.
        seed: Seeds it.

    Returns:
        The metric of `after - before` over the prompts that are scored on both sides, with `only_before` and
        `only_after` (prompts that are a hit on one side only) and `p_value`: exact McNemar where each goal has
        one prompt, otherwise the exact sign test over goals whose number of hits changed. With more than 2 % of
        the prompts unscored on a side also `worst_case`, the change if every unscored answer had gone against the
        one found (of no change: the largest possible), with `worst_case_ci_low, worst_case_ci_high` and
        `worst_case_p_value`.
    """
    settings = (confidence, num_bootstrap, seed)
    scored = [
        i
        for i, (x, y) in enumerate(zip(before, after, strict=True))
        if x is not None and y is not None
    ]
    num_unscored = len(before) - len(scored)
    if not scored:
        nothing = {"only_before": 0, "only_after": 0, "p_value": None}
        return replace(_empty(num_unscored), more=nothing)
    metric = _change_of_scored(
        [bool(before[i]) for i in scored],
        [bool(after[i]) for i in scored],
        [goals[i] for i in scored],
        *settings,
    )
    more = dict(metric.more)
    if num_unscored > UNSCORED_ALLOWED * len(before):
        worst = _worst_change(before, after, goals, metric.value or 0.0, settings)
        more |= {
            "worst_case": worst.value,
            "worst_case_ci_low": worst.ci_low,
            "worst_case_ci_high": worst.ci_high,
            "worst_case_p_value": worst.more["p_value"],
        }
    return replace(metric, num_unscored=num_unscored, more=more)


def _worst_change(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    goals: Sequence[str],
    found: float,
    settings: tuple[float, int, int],
) -> Metric:
    """The change if every unscored answer had gone against the one found; of no change, the largest possible."""
    return min(
        (
            _change_of_scored(
                [(not rises) if x is None else x for x in before],
                [rises if y is None else y for y in after],
                goals,
                *settings,
            )
            for rises in (True, False)
        ),
        key=lambda case: _value(case) * np.sign(found) if found else -abs(_value(case)),
    )


def _change_of_scored(
    before: Sequence[bool],
    after: Sequence[bool],
    goals: Sequence[str],
    confidence: float,
    num_bootstrap: int,
    seed: int,
) -> Metric:
    """As `change`, where every answer was scored and there is at least one."""
    x, y = np.array(before), np.array(after)
    difference = y.astype(np.float64) - x
    only_before, only_after = int((x & ~y).sum()), int((y & ~x).sum())
    sums, counts = _by_goal(difference, np.ones_like(difference), goals)
    if len(sums) == len(x):
        low, high = tango(only_after, only_before, len(x), confidence)
    else:
        low, high = _share_interval(sums, counts, -1.0, confidence, num_bootstrap, seed)
    # With one prompt a goal the sums are the single differences, and the sign test is McNemar's.
    return Metric(
        *(float(difference.mean()), low, high, len(x), 0),
        more={
            "only_before": only_before,
            "only_after": only_after,
            "p_value": sign_test(int((sums > 0).sum()), int((sums < 0).sum())),
        },
    )


def mean_per_token(
    totals: Sequence[float],
    num_tokens: Sequence[int],
    goals: Sequence[str],
    *,
    confidence: float = 0.95,
    num_bootstrap: int = 10_000,
    seed: int = 0,
) -> Metric:
    """Mean of a quantity over all tokens, with an interval from a bootstrap over goals.

    Args:
        totals: Sum over the tokens of each reply.
        num_tokens: Tokens of each reply; replies without tokens are counted as unscored.
        goals: The goal of each reply.
        confidence: Level of the interval.
        num_bootstrap: Draws.
        seed: Seeds them.

    Returns:
        The metric; `n` counts tokens, `num_responses` replies. No interval where there is one goal, whose
        resamples are all the same.
    """
    kept = [i for i, tokens in enumerate(num_tokens) if tokens > 0]
    num_empty = len(num_tokens) - len(kept)
    if not kept:
        return replace(_empty(num_empty), more={"num_responses": 0})
    values = np.array([totals[i] for i in kept], dtype=np.float64)
    tokens = np.array([num_tokens[i] for i in kept], dtype=np.float64)
    sums, counts = _by_goal(values, tokens, [goals[i] for i in kept])
    ends: tuple[float | None, float | None] = (None, None)
    if len(sums) > 1:
        ends = ratio_interval(sums, counts, confidence, num_bootstrap, seed)
    mean, n = float(values.sum() / tokens.sum()), int(tokens.sum())
    return Metric(mean, *ends, n, num_empty, {"num_responses": len(kept)})


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a binomial share (Wilson 1927)."""
    interval = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def tango(num_up: int, num_down: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference of two paired shares (Tango, Statistics in Medicine 17 (1998) 891).

    The differences d that a score test would not reject: `|up - down - n d| - c <= z sqrt(n (2 q + d (1 - d)))`,
    where q is the share of downs that is likeliest if the difference is d. Without c, which Tango's interval does not
    have, it holds the truth in as few as 93 % of the cases; with `CONTINUITY` it is in no fewer than 94.8 %, and 0 is
    held wherever the exact test does not reject it.

    Args:
        num_up: Pairs that are a hit on the second side only.
        num_down: Pairs that are a hit on the first side only.
        n: All pairs.
        confidence: Level.
    """
    z = stats.norm.ppf((1 + confidence) / 2)

    def beyond(d: float) -> float:
        linear = (2 * n - num_up + num_down) * d - num_up - num_down
        constant = -num_down * d * (1 - d)
        root = np.sqrt(max(0.0, linear**2 - 8 * n * constant))
        share_of_downs = (root - linear) / (4 * n)
        variance = n * (2 * share_of_downs + d * (1 - d))
        distance = max(0.0, abs(num_up - num_down - n * d) - CONTINUITY)
        return float(distance**2 - z**2 * variance)

    found, step = (num_up - num_down) / n, CONTINUITY / n
    # At -1 and 1 no variance is left: nothing beyond them is accepted, and they are if they were found.
    low = -1.0 if found == -1 else float(optimize.brentq(beyond, -1.0, found - step))
    high = 1.0 if found == 1 else float(optimize.brentq(beyond, found + step, 1.0))
    if sign_test(num_up, num_down) > 1 - confidence:
        return min(low, 0.0), max(high, 0.0)
    return low, high


def sign_test(num_up: int, num_down: int) -> float:
    """Two-sided exact p-value that ups and downs are equally likely; McNemar's exact test on pairs."""
    if num_up + num_down == 0:
        return 1.0
    return float(stats.binomtest(num_up, num_up + num_down, 0.5).pvalue)


def ratio_interval(
    sums: FloatArray, counts: FloatArray, confidence: float, num_bootstrap: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of `sum(sums) / sum(counts)` when goals are drawn with replacement.

    Args:
        sums: `(M,)` numerator of each of M goals.
        counts: `(M,)` denominator of each, positive.
        confidence: Level.
        num_bootstrap: Draws.
        seed: Seeds them.
    """
    generator = np.random.default_rng(seed)
    num_goals = len(sums)
    drawn: IntArray = generator.multinomial(
        num_goals, np.full(num_goals, 1 / num_goals), num_bootstrap
    )
    ratios = (drawn @ sums) / (drawn @ counts)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def _share_interval(
    sums: FloatArray,
    counts: FloatArray,
    least: float,
    confidence: float,
    num_bootstrap: int,
    seed: int,
) -> tuple[float, float]:
    """As `ratio_interval`, for a share between `least` and 1, and not of no width where all goals agree.

    A bootstrap sees no spread then, whatever the number of goals. The margin is what Wilson's interval allows for
    goals that differ when none of M does: `z^2 / (M + z^2)`.
    """
    shares = sums / counts
    if np.ptp(shares) > 0:
        return ratio_interval(sums, counts, confidence, num_bootstrap, seed)
    _, margin = wilson(0, len(shares), confidence)
    return max(least, float(shares[0]) - margin), min(1.0, float(shares[0]) + margin)


def _by_goal(
    values: FloatArray, counts: FloatArray, goals: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Sums of values and counts within each goal."""
    _, group = np.unique(np.array(goals, dtype=object).astype(str), return_inverse=True)
    return np.bincount(group, values).astype(np.float64), np.bincount(group, counts).astype(
        np.float64
    )


def _empty(num_unscored: int) -> Metric:
    return Metric(None, None, None, 0, num_unscored)


def _value(metric: Metric) -> float:
    assert metric.value is not None, "something was scored"
    return metric.value
