"""The perplexity of a text, and its change between two models, with intervals from a bootstrap over windows.

Tokens of one window are not independent; windows are long enough to be taken for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steermoe.metrics import Metric
from steermoe.records import FloatArray


def perplexity(
    windows: Sequence[Sequence[float]], *, confidence: float, num_bootstrap: int, seed: int
) -> Metric:
    """`exp` of the mean negative log-probability per token (Jelinek et al. 1977).

    Args:
        windows: Log-probability of each token, in nats, window by window.
        confidence: Level of the interval.
        num_bootstrap: Draws.
        seed: Seeds them.

    Returns:
        The metric; `n` counts tokens. No interval of one window alone.
    """
    sums, counts = _by_window(windows)
    drawn = _perplexities(sums, counts, num_bootstrap, seed)
    return _metric(_perplexity(sums.sum(), counts.sum()), drawn, counts, confidence)


def perplexity_change(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    *,
    confidence: float,
    num_bootstrap: int,
    seed: int,
) -> Metric:
    """The perplexity under one model less that under another; both are drawn on the same windows.

    Raises:
        ValueError: The windows are not of the same tokens.
    """
    sums, counts = _by_window(after)
    sums_before, counts_before = _by_window(before)
    if not np.array_equal(counts, counts_before):
        raise ValueError("the two models have read other windows")
    value = _perplexity(sums.sum(), counts.sum()) - _perplexity(sums_before.sum(), counts.sum())
    drawn = _perplexities(sums, counts, num_bootstrap, seed) - _perplexities(
        sums_before, counts, num_bootstrap, seed
    )
    return _metric(value, drawn, counts, confidence)


def _by_window(windows: Sequence[Sequence[float]]) -> tuple[FloatArray, FloatArray]:
    sums = np.array([float(np.sum(window)) for window in windows], dtype=np.float64)
    return sums, np.array([len(window) for window in windows], dtype=np.float64)


def _perplexity(log_prob: float, num_tokens: float) -> float:
    return float(np.exp(-log_prob / num_tokens))


def _perplexities(
    sums: FloatArray, counts: FloatArray, num_bootstrap: int, seed: int
) -> FloatArray:
    """Those of as many windows, drawn with replacement; the same draws for the same seed."""
    number = len(sums)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(number, np.full(number, 1 / number), num_bootstrap)
    found: FloatArray = np.exp(-(drawn @ sums) / (drawn @ counts))
    return found


def _metric(value: float, drawn: FloatArray, counts: FloatArray, confidence: float) -> Metric:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    is_one = len(counts) == 1
    return Metric(
        value,
        None if is_one else float(low),
        None if is_one else float(high),
        int(counts.sum()),
        0,
    )
