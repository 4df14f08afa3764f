"""The interference of a set of experts, worked by hand and against gradients that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from steermoe.analysis.forecast import Measured, forecast

KINDS = ["unsafe", "unsafe", "look_alike", "look_alike", "benign"]


def mask(*experts: int, number: int = 3) -> np.ndarray:
    found = np.zeros((1, number), bool)
    found[0, list(experts)] = True
    return found


def measured(values: list[list[float]], kinds: list[str] = KINDS) -> Measured:
    products = np.array(values)[:, None, :]
    return Measured(products, kinds, np.array([0, 1, 0, 1, 2][: len(kinds)]))


HAND = measured(
    [[2.0, 1.0, 0.0], [4.0, 1.0, 0.0], [1.0, 3.0, 0.0], [2.0, 1.0, 0.0], [0.5, -1.0, 0.0]]
)


def test_interference_worked_by_hand() -> None:
    found = forecast(HAND, mask(0), [mask(1), mask(0, 1)], 0, 0.95, 0)
    look_alike = found["look_alike"]
    # Expert 0: (1 + 2) / 2 over (2 + 4) / 2; expert 1: 2 over 1; both: 3.5 over 4.
    assert look_alike.selected.value == pytest.approx(0.5)
    assert (look_alike.least, look_alike.largest) == pytest.approx((3.5 / 4, 2.0))
    assert look_alike.random.value == pytest.approx((2.0 + 3.5 / 4) / 2)
    assert look_alike.beyond_random.value == pytest.approx(0.5 - (2.0 + 3.5 / 4) / 2)
    assert (look_alike.num_below, look_alike.num_draws, look_alike.num_prompts) == (0, 2, 2)
    assert look_alike.selected.ci_low is None
    assert found["benign"].selected.value == pytest.approx(0.5 / 3)
    assert found["benign"].num_below == 2  # the others are negative


def test_a_set_that_no_harmful_prompt_reaches_has_none() -> None:
    found = forecast(HAND, mask(2), [], 10, 0.95, 0)
    assert found["look_alike"].selected.value is None
    assert found["look_alike"].random.value is None and found["look_alike"].num_draws == 0


def test_without_harmful_prompts_there_is_no_forecast() -> None:
    assert forecast(measured([[1.0, 1, 1]], ["benign"]), mask(0), [], 10, 0.95, 0) == {}


def test_sets_add_up_as_gradients_of_different_weights_do() -> None:
    generator = np.random.default_rng(0)
    # 6 prompts, 3 experts of 5 weights: gradients of all weights of a set, written out.
    gradients = generator.normal(size=(6, 3, 5))
    kinds = ["unsafe"] * 3 + ["benign"] * 3
    towards = gradients[:3].mean(axis=0)
    products = np.einsum("ied,ed->ie", gradients, towards)[:, None, :]
    found = forecast(Measured(products, kinds, np.arange(6)), mask(0, 2), [mask(1)], 0, 0.95, 0)
    unsafe, benign = (
        np.concatenate([gradients[rows].mean(axis=0)[e] for e in (0, 2)])
        for rows in (slice(0, 3), slice(3, 6))
    )
    assert found["benign"].selected.value == pytest.approx(unsafe @ benign / (unsafe @ unsafe))


def test_intervals_draw_groups_and_hold_the_figure() -> None:
    generator = np.random.default_rng(1)
    number = 40
    kinds = ["unsafe", "look_alike"] * number
    values = np.where(np.array(kinds) == "unsafe", 1.0, 0.6)[:, None]
    values = values + generator.normal(0, 0.3, (2 * number, 1))
    pairs = Measured(values[:, None, :], kinds, np.repeat(np.arange(number), 2))
    found = forecast(pairs, mask(0, number=1), [], 500, 0.95, 0)["look_alike"].selected
    assert found.ci_low is not None and found.ci_high is not None and found.value is not None
    assert found.ci_low < 0.6 < found.ci_high and found.ci_low < found.value < found.ci_high
    # A ratio of two means of 40: about sqrt(0.09 / 40 * (1 + 0.36)) to either side, twice.
    assert 0.1 < found.ci_high - found.ci_low < 0.35
    again = forecast(pairs, mask(0, number=1), [], 500, 0.95, 0)["look_alike"].selected
    assert again == found
