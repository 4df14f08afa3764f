"""Deactivated experts: who stays on, which sets are compared, and effects, ranks and intervals worked by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.analysis.ablation import (
    TABLE_COLUMNS,
    Ablation,
    kept_active,
    matching_figures,
    plan_ablations,
    position_among,
    summarise,
)
from steermoe.records import Expert

INTERVALS = {"confidence": 0.95, "num_bootstrap": 200, "seed": 0}


def risk_table(layers: Mapping[int, Sequence[float]]) -> pd.DataFrame:
    """A risk table of some risk differences a layer; all experts are as active as each other."""
    return pd.DataFrame(
        [
            {"layer": layer, "expert": e, "risk_diff": d, "a_safe_n": 0.5, "a_unsafe_n": 0.5}
            for layer, differences in layers.items()
            for e, d in enumerate(differences)
        ]
    )


# ---- who stays on -------------------------------------------------------------------------------------


def test_a_layer_keeps_as_many_experts_as_a_token_needs_those_of_smallest_risk_difference() -> None:
    table = risk_table({3: [0.4, 0.1, 0.3, 0.2], 5: [0.4, 0.1, 0.3, 0.2]})
    everything_of_3 = [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert kept_active(table, everything_of_3, top_k=2) == ((3, 1), (3, 3))
    assert kept_active(table, [(3, 0), (3, 2), (3, 3)], top_k=2) == ((3, 3),)
    assert kept_active(table, [(3, 0), (3, 2), (5, 0), (5, 1)], top_k=2) == ()
    assert kept_active(table, [], top_k=2) == ()
    assert kept_active(table, everything_of_3, top_k=4) == ((3, 1), (3, 3), (3, 2), (3, 0))


def test_of_equal_risk_differences_the_first_expert_stays() -> None:
    table = risk_table({0: [0.2, 0.2, 0.2]})
    assert kept_active(table, [(0, 2), (0, 1), (0, 0)], top_k=1) == ((0, 0),)


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=18),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_no_layer_is_ever_left_with_fewer_than_top_k(
    chosen: set[Expert], top_k: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    table = risk_table({layer: generator.normal(size=6).round(1).tolist() for layer in range(3)})
    ablation = Ablation("random", 0, tuple(chosen), kept_active(table, list(chosen), top_k))
    left = ablation.allowed((0, 1, 2), 6).sum(axis=1)
    assert left.min() >= top_k
    # Nobody stays on without need.
    for layer in range(3):
        wanted = sum(expert[0] == layer for expert in chosen)
        assert left[layer] == max(6 - wanted, top_k)


def test_what_is_allowed_is_everything_that_is_not_deactivated() -> None:
    ablation = Ablation("selected", 0, ((2, 0), (7, 1), (7, 2)), kept=((7, 2),))
    assert ablation.deactivated == ((2, 0), (7, 1))
    assert ablation.allowed((2, 7), 3).tolist() == [[False, True, True], [True, False, True]]
    assert Ablation("intact").allowed((2, 7), 3).all()


# ---- which sets are compared --------------------------------------------------------------------------


def test_the_sets_of_a_plan_worked_by_hand() -> None:
    table = risk_table({0: [0.3, 0.0, -0.2, 0.1], 1: [0.2, -0.1, 0.25, -0.3]})
    intact, selected, lowest, *draws = plan_ablations(
        table, [(0, 0), (1, 2), (1, 0)], num_draws=20, top_k=1, seed=0
    )
    assert (intact.name, intact.experts, intact.deactivated) == ("intact", (), ())
    assert selected.experts == ((0, 0), (1, 2), (1, 0))
    assert selected.overlap == 3
    assert selected.num_sets == 4 * 6, "one of four, and two of four"
    assert lowest.experts == ((1, 3), (0, 2), (1, 1))
    assert lowest.overlap == 0
    assert [draw.draw for draw in draws] == list(range(20))
    for draw in draws:
        assert [layer for layer, _ in draw.experts] == [0, 1, 1]
        assert draw.overlap == len({*draw.experts} & {*selected.experts}) < 3
    overlaps = [draw.overlap for draw in draws]
    assert matching_figures([intact, selected, lowest, *draws]) == {
        "mean_frequency_selected": 0.5,
        "mean_frequency_draws": 0.5,
        "num_draws": 20,
        "num_distinct_draws": 20,
        "num_possible_sets": 24,
        "mean_overlap": np.mean(overlaps),
        "least_overlap": 0,
        "largest_overlap": 2,
    }


def test_a_plan_has_no_more_draws_than_there_are_sets() -> None:
    table = risk_table({0: [0.4, 0.3, 0.2, 0.1], 1: [0.0] * 4})
    plan = plan_ablations(table, [(0, 0), (0, 1), (0, 2)], num_draws=20, top_k=2, seed=3)
    # Of layer 0 three of four: three other sets, each without another one of the three.
    assert {frozenset(draw.experts) for draw in plan[3:]} == {
        frozenset({(0, 0), (0, 1), (0, 3)}),
        frozenset({(0, 0), (0, 2), (0, 3)}),
        frozenset({(0, 1), (0, 2), (0, 3)}),
    }
    assert plan[1].kept == ((0, 2),)
    assert len(plan) == 6 and matching_figures(plan)["mean_overlap"] == 2.0
    whole = plan_ablations(table, [(0, e) for e in range(4)], num_draws=20, top_k=2, seed=3)
    assert len(whole) == 3 and matching_figures(whole)["num_possible_sets"] == 1


def test_a_plan_depends_on_its_seed_alone_and_a_draw_not_on_how_many_there_are() -> None:
    table = risk_table({layer: [0.1] * 16 for layer in range(4)})
    selected = [(layer, 0) for layer in range(4)]
    first, more, other = (
        plan_ablations(table, selected, n, 2, seed) for n, seed in ((5, 0), (9, 0), (5, 1))
    )
    assert more[: len(first)] == first
    assert {a.experts for a in other[3:]} != {a.experts for a in first[3:]}
    assert len({draw.experts for draw in more[3:]}) == 9


def test_the_frequencies_of_a_plan_worked_by_hand() -> None:
    frequencies = [0.3, 0.4, 0.0, 0.8, 0.81, 0.82, 0.83, 0.1]
    table = risk_table({0: [0.3, 0.0, -0.1] + [0.0] * 5}).assign(
        a_safe_n=frequencies, a_unsafe_n=frequencies
    )
    _, selected, lowest, *draws = plan_ablations(table, [(0, 0)], num_draws=30, top_k=1, seed=0)
    assert selected.mean_frequency == pytest.approx(0.3)
    assert lowest.mean_frequency == 0.0
    # The less active four of eight are its stratum: 0.4, 0.0 and 0.1.
    assert {draw.experts for draw in draws} == {((0, 1),), ((0, 2),), ((0, 7),)}
    found = matching_figures([selected, *draws])
    assert found["mean_frequency_selected"] == pytest.approx(0.3)
    assert found["mean_frequency_draws"] == pytest.approx((0.4 + 0.0 + 0.1) / 3)


def test_no_draws_have_no_overlap() -> None:
    assert matching_figures([Ablation("intact")]) == {
        "mean_frequency_selected": None,
        "mean_frequency_draws": None,
        "num_draws": 0,
        "num_distinct_draws": 0,
        "num_possible_sets": None,
        "mean_overlap": None,
        "least_overlap": None,
        "largest_overlap": None,
    }


# ---- where a set lies among the draws -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "draws", "p_value", "percentile"),
    [
        (9.0, [1.0, 2.0, 3.0], 1 / 4, 1.0),  # the median of the four is 2.5, and nothing is as far
        (-9.0, [1.0, 2.0, 3.0], 1 / 4, 0.0),
        (2.0, [1.0, 2.0, 3.0], 1.0, 0.5),  # everything is as far from 2 as 2
        (3.0, [1.0, 2.0, 4.0, 10.0], 1.0, 0.5),  # it is the median
        (
            4.0,
            [0.0, 1.0, 2.0, 5.0],
            3 / 5,
            0.75,
        ),  # the median is 2: 0 and 5 are as far, 1 and 2 not
        (5.0, [5.0, 5.0, 5.0], 1.0, 0.5),
        (1.0, [0.0], 1.0, 1.0),  # each is as far from 0.5
    ],
)
def test_ranks_among_draws_worked_by_hand(
    value: float, draws: list[float], p_value: float, percentile: float
) -> None:
    found = position_among(value, draws)
    assert found is not None
    assert (found.p_value, found.percentile, found.num_draws) == (p_value, percentile, len(draws))


def test_without_draws_there_is_no_rank() -> None:
    assert position_among(1.0, []) is None


def test_a_set_that_is_one_of_the_draws_has_a_p_value_that_is_right() -> None:
    """Under exchangeability `P(p <= t) <= t` at every level t that the draws allow."""
    generator = np.random.default_rng(0)
    p_values = []
    for _ in range(4000):
        value, *draws = generator.normal(3.0, 2.0, size=20).tolist()
        found = position_among(value, draws)
        assert found is not None
        p_values.append(found.p_value)
    for level in (0.05, 0.1, 0.25, 0.5):
        share = float(np.mean(np.array(p_values) <= level + 1e-9))
        assert share == pytest.approx(level, abs=4 * (level * (1 - level) / 4000) ** 0.5)


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e3, 1e3), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_a_rank_is_the_same_for_mirrored_values(value: float, draws: list[float]) -> None:
    found, mirrored = position_among(value, draws), position_among(-value, [-d for d in draws])
    assert found is not None and mirrored is not None
    assert found.p_value == mirrored.p_value
    assert found.percentile == pytest.approx(1 - mirrored.percentile)
    assert 1 / (1 + len(draws)) <= found.p_value <= 1


# ---- effects ------------------------------------------------------------------------------------------


def scores_of(sets: Mapping[tuple[str, int], Sequence[Any]], **column: Any) -> pd.DataFrame:
    """Scores of prompts with 2 and 3 tokens, by set: totals, or verdicts."""
    rows = []
    for (name, draw), values in sets.items():
        for i, value in enumerate(values):
            is_verdict = isinstance(value, str)
            rows.append(
                {
                    "set": name,
                    "draw": draw,
                    "measure": "refusal",
                    "prompt_id": f"p{i}",
                    "kind": "unsafe",
                    "goal": f"goal {i}",
                    "total": 0.0 if is_verdict else value,
                    "num_tokens": 0 if is_verdict else 2 + i,
                    "verdict": value if is_verdict else "",
                    **column,
                }
            )
    return pd.DataFrame(rows)


FOUR_SETS: dict[tuple[str, int], list[float]] = {
    ("intact", 0): [-4.0, -6.0],
    ("selected", 0): [-2.0, -3.0],
    ("lowest", 0): [-5.0, -6.0],
    ("random", 0): [-4.0, -5.0],
    ("random", 1): [-3.0, -6.0],
}


def test_effects_worked_by_hand() -> None:
    table, figures = summarise(scores_of(FOUR_SETS), INTERVALS)
    assert list(figures) == ["refusal_log_prob"]
    found = figures["refusal_log_prob"]
    assert found["intact"]["value"] == pytest.approx(-10 / 5)
    assert found["selected"]["value"] == pytest.approx(-5 / 5)
    assert found["selected"]["effect"]["value"] == pytest.approx(5 / 5)
    assert found["lowest"]["effect"]["value"] == pytest.approx(-1 / 5)
    assert found["random"] == {
        "num_draws": 2,
        "mean_effect": pytest.approx((1 / 5 + 1 / 5) / 2),
        "least_effect": pytest.approx(1 / 5),
        "largest_effect": pytest.approx(1 / 5),
    }
    # The draws' mean totals are -3.5 and -5.5.
    assert found["selected"]["beyond_random"]["value"] == pytest.approx((1.5 + 2.5) / 5)
    assert found["selected"]["among_random"] == {
        "p_value": pytest.approx(1 / 3),
        "percentile": 1.0,
        "num_draws": 2,
    }
    assert found["lowest"]["among_random"]["percentile"] == 0.0
    # Two goals, whose own effects are 2 / 2 and 3 / 3: every resample gives 1.
    assert found["selected"]["effect"]["ci_low"] == pytest.approx(1.0)
    assert found["selected"]["effect"]["ci_high"] == pytest.approx(1.0)
    # Those of the lowest are -1 / 2 and 0: every resample is among -0.5, -0.2 and 0.
    assert found["lowest"]["effect"]["ci_low"] == pytest.approx(-0.5)
    assert found["lowest"]["effect"]["ci_high"] == pytest.approx(0.0)
    assert list(table["set"]) == ["intact", "selected", "lowest", "random", "random"]
    assert list(table["draw"]) == [0, 0, 0, 0, 1]
    assert table["effect"].tolist() == pytest.approx([0.0, 1.0, -0.2, 0.2, 0.2])
    assert table[["effect_ci_low", "effect_ci_high"]].iloc[0].tolist() == [0.0, 0.0]
    assert not table.isna().any().any()
    assert table["value"].tolist() == pytest.approx([-2.0, -1.0, -2.2, -1.8, -1.8])


def test_intervals_draw_goals_and_not_prompts() -> None:
    """Ten prompts of one goal are one observation: no interval, since nothing is known of other goals."""
    many = {key: [value[0]] * 10 for key, value in FOUR_SETS.items()}
    alone = summarise(scores_of(many, goal="the same"), INTERVALS)[1]["refusal_log_prob"]
    assert alone["selected"]["effect"]["n"] == sum(range(2, 12))
    for metric in (
        alone["intact"],
        alone["selected"]["effect"],
        alone["selected"]["beyond_random"],
    ):
        assert metric["value"] is not None
        assert (metric["ci_low"], metric["ci_high"]) == (None, None)
    table, _ = summarise(scores_of(many, goal="the same"), INTERVALS)
    assert set(table["ci_low"]) == {-inf} and set(table["ci_high"]) == {inf}
    assert set(table["effect_ci_low"]) == {0.0, -inf}, (
        "only the intact model is sure to be unchanged"
    )


def test_rates_have_paired_changes() -> None:
    verdicts: dict[tuple[str, int], list[str]] = {
        ("intact", 0): ["refused", "refused", "answered", "unscored"],
        ("selected", 0): ["answered", "answered", "answered", "refused"],
        ("lowest", 0): ["refused", "refused", "refused", "refused"],
        ("random", 0): ["refused", "answered", "answered", "answered"],
    }
    _, figures = summarise(scores_of(verdicts, measure="verdict"), INTERVALS)
    found = figures["refusal_rate"]
    assert found["intact"]["value"] == pytest.approx(2 / 3)
    assert found["intact"]["num_unscored"] == 1
    # At worst the unscored one was not refused.
    assert found["intact"]["worst_case"] == pytest.approx(2 / 4)
    effect = found["selected"]["effect"]
    assert (effect["value"], effect["n"]) == (pytest.approx(-2 / 3), 3)
    assert (effect["only_before"], effect["only_after"], effect["p_value"]) == (2, 0, 0.5)
    assert found["lowest"]["effect"]["value"] == pytest.approx(1 / 3)
    assert found["selected"]["among_random"]["num_draws"] == 1
    assert "beyond_random" not in found["selected"]
    benign = scores_of(verdicts, measure="verdict", kind="benign")
    worst = summarise(benign, INTERVALS)[1]["over_refusal_rate"]["intact"]["worst_case"]
    assert worst == pytest.approx(3 / 4), "at worst the unscored one was refused"


def test_a_kind_without_prompts_has_no_figures_and_empty_replies_are_unscored() -> None:
    _, figures = summarise(scores_of(FOUR_SETS, measure="kl", kind="benign"), INTERVALS)
    assert list(figures) == ["kl_per_token"]
    empty = scores_of({key: [0.0, 0.0] for key in FOUR_SETS}, measure="reply", num_tokens=0)
    table, figures = summarise(empty, INTERVALS)
    found = figures["reply_log_prob_unsafe"]
    assert found["intact"] == {
        "value": None,
        "ci_low": None,
        "ci_high": None,
        "n": 0,
        "num_unscored": 2,
        "num_responses": 0,
    }
    assert found["selected"]["among_random"] is None
    assert found["random"] == {
        "num_draws": 0,
        "mean_effect": None,
        "least_effect": None,
        "largest_effect": None,
    }
    assert table.empty and list(table.columns) == list(TABLE_COLUMNS)


def test_what_is_undefined_has_no_row() -> None:
    """The intact model's replies are all unscored: the others' rates are known, what they change is not."""
    verdicts = {
        ("intact", 0): ["unscored", "unscored"],
        ("selected", 0): ["refused", "answered"],
        ("lowest", 0): ["unscored", "unscored"],
    }
    table, figures = summarise(scores_of(verdicts, measure="verdict"), INTERVALS)
    assert figures["refusal_rate"]["selected"]["value"] == 0.5
    assert figures["refusal_rate"]["selected"]["effect"]["value"] is None
    assert table.empty


def test_sets_with_other_prompts_are_not_compared() -> None:
    scores = scores_of(FOUR_SETS)
    with pytest.raises(AssertionError):
        summarise(scores[(scores["set"] != "selected") | (scores["prompt_id"] != "p0")], INTERVALS)
