"""Random sets that the selected one could as well have been: who is in them, and that a rank among them is right."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from steermoe.analysis.ablation import position_among
from steermoe.analysis.matched_sets import MatchedSets, frequency_strata
from steermoe.errors import SelectionError
from steermoe.records import Expert


def frequencies(num_layers: int, num_experts: int, seed: int = 0) -> dict[Expert, float]:
    drawn = np.random.default_rng(seed).random((num_layers, num_experts))
    return {
        Expert(layer, expert): float(drawn[layer, expert])
        for layer in range(num_layers)
        for expert in range(num_experts)
    }


def test_strata_are_neighbours_in_frequency_within_a_layer() -> None:
    frequency = {Expert(3, e): f for e, f in enumerate([0.9, 0.1, 0.5, 0.2, 0.8, 0.3, 0.7, 0.1])}
    low, high = frequency_strata(frequency)
    assert low == [(3, 1), (3, 7), (3, 3), (3, 5)]
    assert high == [(3, 2), (3, 6), (3, 4), (3, 0)]


@pytest.mark.parametrize(
    ("num_experts", "sizes"),
    [(3, [3]), (4, [4]), (7, [7]), (10, [5, 5]), (11, [6, 5]), (64, [4] * 16)],
)
def test_every_expert_is_in_one_stratum_of_about_four(num_experts: int, sizes: list[int]) -> None:
    strata = frequency_strata(frequencies(2, num_experts))
    assert [len(stratum) for stratum in strata] == sizes * 2
    assert len({expert for stratum in strata for expert in stratum}) == 2 * num_experts


def test_the_sets_are_counted_and_drawn_evenly() -> None:
    frequency = frequencies(2, 4)
    selected = [Expert(0, 0), Expert(0, 1), Expert(1, 3)]
    assert MatchedSets(frequency, selected).number == 6 * 4
    every = {
        frozenset([Expert(0, a), Expert(0, b), Expert(1, c)])
        for a, b in combinations(range(4), 2)
        for c in range(4)
    } - {frozenset(selected)}
    first = Counter(
        frozenset(MatchedSets(frequency, selected).draw(1, seed)[0]) for seed in range(4600)
    )
    assert set(first) == every
    # 200 each are expected, give or take 14.
    assert all(abs(number - 200) < 5 * 14 for number in first.values())
    all_of_them = MatchedSets(frequency, selected).draw(1000, 0)
    assert len(all_of_them) == 23 and {frozenset(drawn) for drawn in all_of_them} == every


def test_a_stratum_that_is_selected_whole_is_in_every_set() -> None:
    frequency = frequencies(1, 8)
    low, high = frequency_strata(frequency)
    matched = MatchedSets(frequency, [*low, high[0]])
    assert matched.number == 4
    assert all(set(low) < set(drawn) for drawn in matched.draw(9, 0))
    assert MatchedSets(frequency, low).number == 1 and MatchedSets(frequency, low).draw(9, 0) == []


def test_an_unknown_expert_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"no expert \(5, 0\)"):
        MatchedSets(frequencies(1, 8), [Expert(5, 0)])


@pytest.mark.parametrize("positive", [False, True])
def test_a_set_selected_for_something_else_has_the_smallest_p_value_as_often_as_it_says(
    positive: bool,
) -> None:
    """Effects add up over a set, and grow with frequency; the selection goes by noise alone."""
    generator = np.random.default_rng(1)
    smallest = []
    for run in range(1500):
        frequency = frequencies(4, 16, run)
        experts = list(frequency)
        factor = generator.exponential(size=64) if positive else generator.normal(size=64)
        effect = {e: frequency[e] * f for e, f in zip(experts, factor, strict=True)}
        # A selection that prefers busy experts, as those of large differences are.
        score = np.array([frequency[e] for e in experts]) * generator.exponential(size=64)
        selected = [experts[i] for i in np.argsort(score)[-16:]]
        drawn = MatchedSets(frequency, selected).draw(20, run)
        found = position_among(
            sum(effect[e] for e in selected), [sum(effect[e] for e in d) for d in drawn]
        )
        assert found is not None and found.num_draws == 20
        smallest.append(found.p_value <= 1 / 21 + 1e-12)
    # 1/21 is 4.8 %, with an error of 0.55 points; strata are not exactly alike.
    assert 0.03 <= np.mean(smallest) <= 0.07
