"""Power: what the formula gives in cases with a known answer, and what a simulation reaches."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.power import power_at, prompts_needed, weight_concentration
from steermoe.errors import RoutingError


def pilot_of(error: float, num_experts: int = 200, frequency: float = 0.1) -> pd.DataFrame:
    """A pilot whose experts are all alike; replies are so long that tokens add no variance."""
    return pd.DataFrame(
        {
            "risk_diff": 0.0,
            "risk_diff_se": np.full(num_experts, error),
            "a_safe_n": frequency,
            "a_unsafe_n": frequency,
            "n_unsafe": 10**9,
            "q_value": 1.0,
        }
    )


@pytest.mark.parametrize("variation", [0.0, 1.0, 20.0])
def test_it_is_the_textbook_sample_size_when_experts_are_alike(variation: float) -> None:
    """n = ((z_{1 - a} + z_power) sd / difference)^2, where n is large, and sd that of experts and effects."""
    result = prompts_needed(
        pilot_of(0.03),
        100,
        risk_diff=0.02,
        threshold=0.0,
        power=0.9,
        num_unsafe=1,
        effect_variation=variation,
    )
    deviation = np.sqrt(0.03**2 * 100 + (variation * 0.02) ** 2)
    allowed = 0.05 / 200
    n = ((stats.norm.isf(allowed) + stats.norm.ppf(0.9)) * deviation / 0.02) ** 2
    assert result.num_prompts == pytest.approx(n, rel=0.01)
    assert result.power >= 0.9
    # What must be shown is that a difference is greater than the threshold, so only what it has above it counts.
    above = prompts_needed(
        pilot_of(0.03),
        100,
        risk_diff=0.07,
        threshold=0.05,
        power=0.9,
        num_unsafe=1,
        effect_variation=0.0,
    )
    of_experts = (stats.norm.isf(allowed) + stats.norm.ppf(0.9)) * 0.3 / 0.02
    assert above.num_prompts == pytest.approx(of_experts**2, rel=0.01)


def test_more_unsafe_experts_larger_effects_and_less_power_need_fewer_prompts() -> None:
    def needed(**changed: float) -> int:
        options = {"risk_diff": 0.1, "num_unsafe": 5, "power": 0.9, **changed}
        return prompts_needed(pilot_of(0.02), 50, **options).num_prompts

    assert needed(num_unsafe=50) < needed() < needed(num_unsafe=1)
    assert needed(risk_diff=0.2) < needed() < needed(risk_diff=0.08)
    assert needed(power=0.5) < needed() < needed(power=0.99)


def test_effects_of_uneven_goals_vary_as_those_of_fewer() -> None:
    """An effect that varies by its whole size, in 50 goals that weigh like 25: twice its variance."""
    even, uneven = (
        prompts_needed(
            pilot_of(1e-6), 50, risk_diff=0.02, threshold=0.0, num_unsafe=1,
            effect_variation=20.0, concentration=concentration,
        ).num_prompts
        for concentration in (None, 1 / 25)
    )  # fmt: skip
    assert uneven == pytest.approx(2 * even, rel=0.02)


def test_concentration_of_weights_worked_by_hand() -> None:
    # Two unsafe goals of 30 and 10 tokens, one safe one: shares 3/4 and 1/4.
    active = np.zeros((3, 2, 1, 2), dtype=np.int64)
    counts = RoutingCounts(active, np.array([[0, 30], [0, 10], [0, 7]]), (0,))
    contrast = build_contrast(counts, [1, 1, 0], [0, 0, 0], [0, 1, 2], "pooled", "generation")
    assert weight_concentration(contrast) == pytest.approx(9 / 16 + 1 / 16)
    together = build_contrast(counts, [1, 1, 0], [0, 0, 0], [0, 0, 2], "pooled", "generation")
    assert weight_concentration(together) == pytest.approx(1.0)


def test_the_named_number_is_the_smallest_that_is_enough() -> None:
    result = prompts_needed(pilot_of(0.02), 50, risk_diff=0.1, num_unsafe=3)
    curve = power_at(
        pilot_of(0.02),
        50,
        [result.num_prompts - 1, result.num_prompts],
        risk_diff=0.1,
        num_unsafe=3,
    )
    assert curve["power"][0] < 0.9 <= curve["power"][1] == result.power


def test_power_rises_with_the_number_of_prompts_to_the_threshold_limited_end() -> None:
    curve = power_at(pilot_of(0.02), 50, [20, 40, 80, 160, 320, 1280], risk_diff=0.08)["power"]
    assert curve.is_monotonic_increasing and curve.iloc[-1] > 0.99


def test_an_expert_at_the_threshold_cannot_be_found_reliably() -> None:
    with pytest.raises(RoutingError, match="not above the threshold"):
        prompts_needed(pilot_of(0.02), 50, risk_diff=0.05)
    with pytest.raises(RoutingError, match="no expert of the pilot has room"):
        prompts_needed(pilot_of(0.02, frequency=0.99), 50, risk_diff=0.1)
    with pytest.raises(RoutingError, match="even 1000000 prompts"):
        prompts_needed(pilot_of(5.0), 50, risk_diff=0.051)
    with pytest.raises(RoutingError, match="varies between prompts by -1"):
        prompts_needed(pilot_of(0.02), 50, risk_diff=0.1, effect_variation=-1)
    with pytest.raises(RoutingError, match="power is 1"):
        prompts_needed(pilot_of(0.02), 50, risk_diff=0.1, power=1)


def test_the_largest_number_is_tried_before_it_is_said_not_to_do() -> None:
    """Doubling from 4 passes a million between 524,288 and 1,048,576."""
    found = prompts_needed(pilot_of(0.25), 50, risk_diff=0.06)
    assert 524_288 < found.num_prompts <= 1_000_000
    assert found.power >= 0.9


def test_the_number_of_unsafe_experts_defaults_to_those_as_large_that_the_pilot_finds() -> None:
    pilot = pilot_of(0.02)
    assert prompts_needed(pilot, 50, risk_diff=0.1).num_unsafe == 1
    # Seven are certain, but small: of an expert of 0.1 they say nothing.
    pilot.loc[:6, "q_value"] = 0.01
    pilot.loc[:6, "risk_diff"] = 0.02
    assert prompts_needed(pilot, 50, risk_diff=0.1).num_unsafe == 1
    # Three are certain and large; the fourth is large and uncertain, and one is lower.
    pilot.loc[4:6, "risk_diff"] = [0.1, 0.3, 0.12]
    pilot.loc[3, "risk_diff"] = -0.3
    pilot.loc[9, "risk_diff"] = 0.5
    assert prompts_needed(pilot, 50, risk_diff=0.1).num_unsafe == 3
    assert prompts_needed(pilot, 50, risk_diff=0.2).num_unsafe == 1


def test_small_certain_differences_in_the_pilot_do_not_make_large_ones_easier_to_find() -> None:
    """The correction for 200 experts is the same, however many of them differ a little."""
    pilot = pilot_of(0.02)
    alone = prompts_needed(pilot, 50, risk_diff=0.1).num_prompts
    pilot.loc[:120, ["q_value", "risk_diff"]] = [1e-6, 0.01]
    assert prompts_needed(pilot, 50, risk_diff=0.1).num_prompts == alone
