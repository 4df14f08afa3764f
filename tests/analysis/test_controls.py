"""The hardened model against controls, worked by hand, and intervals that hold what they should."""

from __future__ import annotations

import numpy as np
import pytest

from steermoe.analysis.controls import Against, compare_controls

DRAWS = Against(0.95, 400, 0)


def rate(*refused: int) -> dict[str, tuple[float, float]]:
    return {f"p{i}": (float(x), 1.0) for i, x in enumerate(refused)}


GOALS = {f"p{i}": f"g{i}" for i in range(60)}


def test_differences_worked_by_hand() -> None:
    found = compare_controls(
        {"a": {"over": rate(1, 1, 0, 0)}, "b": {"over": rate(1, 1, 1, 0)}},
        {"over": rate(1, 0, 0, 0)},
        {"over": rate(1, 1, 1, 1)},
        GOALS,
        DRAWS,
    )["over"]
    assert found.selected == 0.25 and found.random == (0.5, 0.75) and found.lowest == 1.0
    assert found.beyond_random.value == pytest.approx(0.25 - 0.625)
    assert found.beyond_lowest.value == pytest.approx(-0.75)
    assert found.num_prompts == 4


def test_tokens_are_pooled_and_prompts_that_one_lacks_are_left_out() -> None:
    own = {"p0": (1.0, 10.0), "p1": (4.0, 10.0), "p2": (9.0, 1.0)}
    other = {"p0": (2.0, 10.0), "p1": (6.0, 30.0)}
    found = compare_controls({"a": {"kl": other}}, {"kl": own}, None, GOALS, DRAWS)["kl"]
    assert found.selected == pytest.approx(5 / 20) and found.random == pytest.approx((8 / 40,))
    assert found.num_prompts == 2 and found.lowest is None and found.beyond_lowest.value is None


def test_without_random_controls_the_lowest_is_compared_alone() -> None:
    found = compare_controls({}, {"over": rate(1, 0)}, {"over": rate(1, 1)}, GOALS, DRAWS)["over"]
    assert found.beyond_random.value is None and found.beyond_lowest.value == -0.5


def test_an_interval_counts_the_draws_of_sets_too() -> None:
    """Prompts alone would make random sets that differ look known."""
    generator = np.random.default_rng(0)
    base = generator.random(60)
    random = {}
    for draw, level in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        random[f"r{draw}"] = {"over": rate(*(base < level).astype(int))}
    own = {"over": rate(*(base < 0.5).astype(int))}
    wide = compare_controls(random, own, None, GOALS, DRAWS)["over"].beyond_random
    same = {f"r{i}": {"over": rate(*(base < 0.5).astype(int))} for i in range(5)}
    narrow = compare_controls(same, own, None, GOALS, DRAWS)["over"].beyond_random
    ends = (narrow.value, narrow.ci_low, narrow.ci_high)
    assert ends == pytest.approx((0, 0, 0), abs=1e-12)
    assert wide.ci_low is not None and wide.ci_high is not None
    # The mean of five sets drawn from five has a standard error of sqrt(0.08 / 5).
    assert 0.3 < wide.ci_high - wide.ci_low < 0.7


def test_prompts_of_a_goal_are_drawn_together() -> None:
    own, other = {"over": rate(*[1, 0] * 20)}, {"a": {"over": rate(*[0, 0] * 20)}}
    alone = compare_controls(other, own, None, GOALS, DRAWS)["over"].beyond_random
    paired = {f"p{i}": f"g{i // 2}" for i in range(40)}
    together = compare_controls(other, own, None, paired, DRAWS)["over"].beyond_random
    assert alone.ci_low is not None and alone.ci_high is not None and alone.ci_low < 0.5
    assert together.ci_low == together.ci_high == 0.5  # each goal has one of either
