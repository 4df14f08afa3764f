"""One-sided p-values allow for skewed differences: by hand, by its sign, and where labels are exchanged."""

from __future__ import annotations

import numpy as np
import pytest

from steermoe.analysis import permutation
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import Contrast, build_contrast
from steermoe.analysis.permutation import NullModel, p_values_of, without_skewness


def contrast_of(active: np.ndarray, unsafe: np.ndarray, goals: np.ndarray, tokens: int) -> Contrast:
    """Replies of one length, pooled; active tokens `(N, experts)`."""
    counts = RoutingCounts(
        active[:, None, None, :].repeat(2, axis=1), np.full((len(active), 2), tokens), (0,)
    )
    return build_contrast(counts, unsafe, np.zeros(len(active)), goals, "pooled", "generation")


def excess_of(contrast: Contrast, num_draws: int = 2000) -> np.ndarray:
    null = NullModel(contrast)
    cubes = null.mean_cubes(null.draw(num_draws, np.random.default_rng(0)))
    columns = np.arange(contrast.num_experts)
    parts = null.parts(contrast.values(columns), contrast.overall_rate())
    return null.skewness(parts, cubes)


def skewed_replies(seed: int, safe: int, unsafe: int, num_experts: int) -> np.ndarray:
    """Both classes from one skewed law, 100 tokens each."""
    rate = np.random.default_rng(seed).beta(0.5, 4.5, (safe + unsafe, num_experts))
    return np.rint(100 * rate).astype(int)


def test_the_skewness_of_pairs_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten tokens each; differences 0.6, 0, 0: about their mean 0.2 they are 0.4, -0.2, -0.2 and add a third of that.
    # Cubes add up to 0.048 / 27; squares, of the differences themselves, to 0.36 / 9 = 0.04.
    monkeypatch.setattr(permutation, "variance_components", lambda *_: np.zeros((3, 1)))
    monkeypatch.setattr(permutation, "lost_to_rate", lambda *_: 1.0)
    active = np.array([[2], [3], [4], [8], [3], [4]])
    unsafe = np.repeat([False, True], 3)
    found = excess_of(contrast_of(active, unsafe, np.tile(np.arange(3), 2), 10))
    assert found == pytest.approx([0.048 / 27 / 0.04**1.5])


@pytest.mark.parametrize(("safe", "unsafe"), [(30, 120), (120, 30), (60, 60)])
def test_labels_that_say_nothing_leave_no_skewness(safe: int, unsafe: int) -> None:
    """Thirty skewed goals make a skewed difference, but relabelled ones are as skewed."""
    active = skewed_replies(0, safe, unsafe, 400)
    is_unsafe = np.repeat([False, True], [safe, unsafe])
    contrast = contrast_of(active, is_unsafe, np.arange(len(active)), 100)
    alone = NullModel(contrast)
    parts = alone.parts(contrast.values(np.arange(400)), contrast.overall_rate())
    raw = alone.skewness(parts, np.zeros(len(alone.permuted))).mean()
    excess = excess_of(contrast)
    noise = 4 * excess.std() / 20
    if safe != unsafe:
        assert np.sign(raw) == np.sign(safe - unsafe) and abs(raw) > 0.1
    assert abs(excess.mean()) < max(noise, 0.3 * abs(raw))


@pytest.mark.parametrize("paired", [True, False])
def test_skewed_safe_replies_make_one_sided_p_values_larger_and_skewed_unsafe_ones_no_smaller(
    monkeypatch: pytest.MonkeyPatch, paired: bool
) -> None:
    rate = np.random.default_rng(3).beta(0.5, 4.5, (60, 40))
    skewed, even = np.rint(100 * rate).astype(int), np.full((60, 40), 10)
    unsafe = np.repeat([False, True], 60)
    goals = np.tile(np.arange(60), 2) if paired else np.arange(120)

    def found(active: np.ndarray) -> permutation.PValues:
        return p_values_of(contrast_of(active, unsafe, goals, 100), 400, np.random.default_rng(1))

    safe_skewed = found(np.concatenate([skewed, even]))
    unsafe_skewed = found(np.concatenate([even, skewed]))
    monkeypatch.setattr(permutation, "without_skewness", lambda statistic, _: statistic)
    for seen, skews_up in ((safe_skewed, True), (unsafe_skewed, False)):
        plain = found(np.concatenate([skewed, even] if skews_up else [even, skewed]))
        assert (seen.differs == plain.differs).all()
        assert (seen.is_higher >= plain.is_higher).all()
        assert (seen.is_higher > plain.is_higher).any() == skews_up


def test_the_transformation_keeps_the_order_and_the_first_two_terms() -> None:
    t = np.linspace(-8, 8, 161)
    for skewness in (-0.5, -0.1):
        assert (np.diff(without_skewness(t, skewness)) >= 0).all()
    assert (without_skewness(t, 0.0) == t).all()
    # To the first order it takes off what a normal chance is changed by: k (2 t^2 + 1) / 6.
    assert without_skewness(t, -1e-6) - t == pytest.approx(-1e-6 * (2 * t**2 + 1) / 6, abs=1e-9)


def test_one_sided_p_values_of_skewed_safe_replies_are_as_rare_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Classes of one mean, the safe one skewed. Uncorrected, 9.4 % lie at 0.05 and 4.5 % at 0.01."""

    def flagged(level: float) -> tuple[float, float]:
        shares = []
        for seed in range(25):
            generator = np.random.default_rng([seed, 9])
            rate = [generator.beta(a, 9 * a, (40, 64)) for a in (0.3, 30)]
            active = np.rint(2000 * np.concatenate(rate)).astype(int)
            unsafe = np.repeat([False, True], 40)
            contrast = contrast_of(active, unsafe, np.arange(80), 2000)
            found = p_values_of(contrast, 200, generator)
            shares.append(float(np.mean(found.is_higher <= level)))
        return float(np.mean(shares)), float(np.std(shares) / 5)

    for level in (0.05, 0.01):
        share, error = flagged(level)
        assert share == pytest.approx(level, abs=3 * error)
    monkeypatch.setattr(permutation, "without_skewness", lambda statistic, _: statistic)
    share, error = flagged(0.05)
    assert share > 0.05 + 3 * error
