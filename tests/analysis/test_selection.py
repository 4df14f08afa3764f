"""Selection: the true top-k, controls, and what a user's rule may return."""

import sys
import types

import numpy as np
import pandas as pd
import pytest

from steermoe.analysis.selection import (
    RULES,
    SelectionSettings,
    create_expert_mask,
    how_to_select_more,
    identify_unsafe_experts,
    matched_random,
    resolve_rule,
)
from steermoe.errors import SelectionError


def table_of(risk_diffs: list[list[float]], **columns: object) -> pd.DataFrame:
    """A risk table from differences given as layers of experts."""
    rows = [
        {"layer": layer, "expert": expert, "risk_diff": value, "a_safe_n": 0.2, "a_unsafe_n": 0.2}
        for layer, experts in enumerate(risk_diffs)
        for expert, value in enumerate(experts)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_the_largest_are_selected_even_when_they_lie_in_the_last_layer() -> None:
    table = table_of([[0.06, 0.07, 0.0], [0.0, 0.3, 0.9]])
    assert identify_unsafe_experts(table, top_k=2) == [(1, 2), (1, 1)]
    assert identify_unsafe_experts(table) == [(1, 2), (1, 1), (0, 1), (0, 0)]


def test_the_threshold_is_inclusive_and_the_order_of_rows_does_not_matter() -> None:
    table = table_of([[0.05, 0.049999, -0.9]])
    assert identify_unsafe_experts(table.iloc[::-1], threshold=0.05) == [(0, 0)]
    assert identify_unsafe_experts(table, threshold=0.1) == []
    assert identify_unsafe_experts(table, top_k=0) == []


@pytest.mark.parametrize(
    ("rule", "largest", "advice"),
    [
        ("fdr", 0.06, "raise identify.max_q_value"),
        ("fdr", 0.02, "lower identify.threshold"),  # no q-value selects what is below it
        ("stability", 0.02, "lower identify.threshold"),
        ("combined", 0.06, "raise identify.max_q_value and lower identify.min_stability"),
        ("threshold", 0.02, "lower identify.threshold"),
        ("my_rules:mine", 0.02, "choose another identify.rule"),
    ],
)
def test_advice_names_a_setting_that_helps(rule: str, largest: float, advice: str) -> None:
    assert how_to_select_more(rule, 0.05, largest) == advice


def test_ties_go_to_the_lower_layer_and_expert() -> None:
    table = table_of([[0.1, 0.1], [0.1, 0.2]])
    for shuffled in (table, table.iloc[[2, 0, 3, 1]]):
        assert identify_unsafe_experts(shuffled, top_k=3) == [(1, 1), (0, 0), (0, 1)]


def test_selection_can_be_limited_to_layers() -> None:
    table = table_of([[0.9, 0.0], [0.1, 0.0]])
    assert identify_unsafe_experts(table, layer_indices=[1]) == [(1, 0)]


def test_tables_that_cannot_be_selected_from_are_refused() -> None:
    table = table_of([[0.1, 0.2]])
    with pytest.raises(SelectionError, match="no column risk_diff"):
        identify_unsafe_experts(table.drop(columns="risk_diff"))
    with pytest.raises(SelectionError, match="not numbers"):
        identify_unsafe_experts(table.assign(risk_diff=[np.nan, 0.1]))
    with pytest.raises(SelectionError, match="two rows for one expert"):
        identify_unsafe_experts(pd.concat([table, table]))
    with pytest.raises(SelectionError, match="top_k is -1"):
        identify_unsafe_experts(table, top_k=-1)


def test_mask_is_true_exactly_where_experts_are_unsafe() -> None:
    mask = create_expert_mask(2, 3, [(0, 2), (1, 0)])
    assert mask.tolist() == [[False, False, True], [True, False, False]]
    assert create_expert_mask(2, 3, [(7, 1)], layer_indices=[5, 7]).tolist() == [
        [False, False, False],
        [False, True, False],
    ]


@pytest.mark.parametrize("expert", [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_mask_refuses_experts_the_model_does_not_have(expert: tuple[int, int]) -> None:
    with pytest.raises(SelectionError, match="there is no expert"):
        create_expert_mask(2, 3, [expert])


def test_mask_needs_one_layer_index_a_layer() -> None:
    with pytest.raises(SelectionError, match="3 layer indices were given for 2"):
        create_expert_mask(2, 3, [], layer_indices=[0, 1, 2])


def test_named_rules_worked_by_hand() -> None:
    table = table_of(
        [[0.50, 0.40, 0.30, 0.01], [-0.2, -0.3, 0.06, 0.0]],
        q_value=[0.01, 0.90, 0.05, 0.001, 0.01, 0.01, 0.2, 1.0],
        stability=[0.9, 1.0, 0.2, 1.0, 1.0, 0.0, 0.75, 0.0],
    )
    settings = SelectionSettings(threshold=0.05, top_k=3)
    chosen = {name: resolve_rule(name, settings)(table) for name in RULES if name != "random"}
    assert chosen == {
        "threshold": [(0, 0), (0, 1), (0, 2)],
        "fdr": [(0, 0), (0, 2)],
        "stability": [(0, 0), (0, 1), (1, 2)],
        "combined": [(0, 0)],
        "lowest": [(1, 1), (1, 0), (1, 3)],
    }


def test_a_rule_says_which_column_it_lacks() -> None:
    with pytest.raises(SelectionError, match="no column q_value"):
        resolve_rule("fdr")(table_of([[0.1]]))
    with pytest.raises(SelectionError, match="no column stability"):
        resolve_rule("stability")(table_of([[0.1]]))


def test_random_experts_match_layer_and_frequency_and_avoid_the_selected() -> None:
    frequency = np.tile(np.linspace(0.01, 0.4, 40), 2)
    table = pd.DataFrame(
        {
            "layer": np.repeat([0, 1], 40),
            "expert": np.tile(np.arange(40), 2),
            "a_safe_n": frequency,
            "a_unsafe_n": frequency,
            "risk_diff": 0.0,
        }
    )
    selected = [(0, 3), (0, 4), (1, 30)]
    draws = [matched_random(table, selected, seed) for seed in range(50)]
    for drawn in draws:
        assert [layer for layer, _ in drawn] == [0, 0, 1]
        assert len(set(drawn)) == 3 and not set(drawn) & set(selected)
        assert all(abs(e - s) <= 6 for (_, e), (_, s) in zip(drawn, selected, strict=True))
    assert len({tuple(drawn) for drawn in draws}) > 20
    assert matched_random(table, selected, 7) == matched_random(table, selected, 7)


def test_random_experts_are_matched_in_layers_of_eight_experts_too() -> None:
    """Four busy and four idle experts a layer: a busy one is replaced by a busy one."""
    frequency = np.tile([0.41, 0.42, 0.43, 0.44, 0.01, 0.02, 0.03, 0.04], 30)
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(30), 8),
            "expert": np.tile(np.arange(8), 30),
            "a_safe_n": frequency,
            "a_unsafe_n": frequency,
            "risk_diff": 0.0,
        }
    )
    selected = [(layer, 1) for layer in range(30)]
    draws = [matched_random(table, selected, seed) for seed in range(50)]
    # The two nearest to 0.42 are 0.41 and 0.43.
    assert {expert for drawn in draws for _, expert in drawn} == {0, 2}
    assert len({tuple(drawn) for drawn in draws}) == 50
    of_draws = np.mean([frequency[8 * layer + e] for drawn in draws for layer, e in drawn])
    assert of_draws == pytest.approx(0.42, abs=0.002)


def test_the_pool_is_a_quarter_of_the_layer_between_two_and_eight() -> None:
    for num_experts, size in ((3, 2), (8, 2), (16, 4), (32, 8), (64, 8)):
        table = table_of([np.zeros(num_experts).tolist()])
        drawn = {matched_random(table, [(0, 0)], seed)[0] for seed in range(300)}
        assert drawn == {(0, expert) for expert in range(1, size + 1)}


def test_random_experts_overlap_the_selected_only_where_a_layer_has_no_others() -> None:
    table = table_of([[0.3, 0.2, 0.1], [0.5, 0.0, 0.0]])
    drawn = matched_random(table, [(0, 0), (0, 1), (1, 0)], seed=0)
    assert (0, 2) in drawn and len(set(drawn)) == 3
    assert drawn[2] in [(1, 1), (1, 2)]
    with pytest.raises(SelectionError, match="no expert"):
        matched_random(table, [(9, 9)], seed=0)


def use_module(monkeypatch: pytest.MonkeyPatch, rule: object) -> None:
    module = types.ModuleType("my_rules")
    module.rule = rule
    monkeypatch.setitem(sys.modules, "my_rules", module)


def test_a_users_rule_is_called_with_a_copy_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(table: pd.DataFrame) -> list[tuple[int, int]]:
        table["risk_diff"] = 0.0
        return [(np.int64(0), np.int64(1))]

    use_module(monkeypatch, rule)
    table = table_of([[0.1, 0.2]])
    assert resolve_rule("my_rules:rule")(table) == [(0, 1)]
    assert table["risk_diff"].tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned a NoneType"),
        ([3], "returned a list"),
        ([(0, 1, 2)], r"\(layer, expert\) pairs of integers"),
        ([(0, 1.5)], r"\(layer, expert\) pairs of integers"),
        ([(0, True)], r"\(layer, expert\) pairs of integers"),
        ([(4, 0)], r"\(4, 0\), which is not in the risk table"),
        ([(0, 1), (0, 1)], "twice"),
    ],
)
def test_what_a_users_rule_returns_is_checked(
    returned: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_module(monkeypatch, lambda table: returned)
    with pytest.raises(SelectionError, match=message):
        resolve_rule("my_rules:rule")(table_of([[0.1, 0.2]]))


def test_a_users_rule_that_fails_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    use_module(monkeypatch, lambda table: table["no_such_column"])
    with pytest.raises(SelectionError, match="failed with KeyError: 'no_such_column'"):
        resolve_rule("my_rules:rule")(table_of([[0.1]]))


@pytest.mark.parametrize("name", ["no_such_package:rule", "math:no_such_rule", "math:", ":rule"])
def test_a_rule_that_cannot_be_imported_is_refused(name: str) -> None:
    with pytest.raises(SelectionError, match="cannot import the selection rule"):
        resolve_rule(name)


def test_unknown_and_uncallable_rules_are_refused() -> None:
    with pytest.raises(
        SelectionError, match="unknown selection rule 'best'; choose one of combined"
    ):
        resolve_rule("best")
    with pytest.raises(SelectionError, match="is a float; name a callable"):
        resolve_rule("math:pi")
