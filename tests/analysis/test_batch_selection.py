"""One rule for the global selection and for every batch's: worked by hand on one layer of four experts."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pandas as pd
import pytest

from hand_made import SAFE, TWO_BATCHES, UNSAFE, Reply, make_run, selected_experts, settings
from steermoe.analysis.batch_selection import same_as_uncontrolled, select_experts
from steermoe.analysis.selection import RULES, SelectionSettings
from steermoe.records import Expert
from steermoe.stages.identify import identify
from tiny import Listener

BATCHES = {
    # Experts 0 .. 7 of one layer; each fires as often as its neighbour of the same pair.
    0: [0.3, -0.1, 0.2, -0.2, 0.0, -0.2, 0.0, 0.0],
    1: [0.1, -0.1, 0.0, -0.1, 0.2, -0.1, 0.0, 0.0],
}
FREQUENCIES = [0.5, 0.5, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]


def table_of(risk_diffs: list[float], batch_idx: int | None = None) -> pd.DataFrame:
    half = [difference / 2 for difference in risk_diffs]
    rows = {
        "layer": [0] * 8,
        "expert": range(8),
        "a_safe_n": [f - h for f, h in zip(FREQUENCIES, half, strict=True)],
        "a_unsafe_n": [f + h for f, h in zip(FREQUENCIES, half, strict=True)],
        "risk_diff": risk_diffs,
    }
    return pd.DataFrame(rows if batch_idx is None else {"batch_idx": batch_idx, **rows})


MEAN = [sum(pair) / 2 for pair in zip(*BATCHES.values(), strict=True)]
OVERALL = table_of(MEAN).assign(
    q_value=[0.01, 1, 0.9, 1, 0.01, 1, 1, 1], stability=[1.0, 0, 1.0, 0, 0.2, 0, 0, 0]
)
PER_BATCH = pd.concat([table_of(values, i) for i, values in BATCHES.items()])
BY = SelectionSettings(threshold=0.05, top_k=2)


def experts(*numbers: int) -> list[Expert]:
    return [(0, number) for number in numbers]


@pytest.mark.parametrize(
    ("rule", "overall", "first", "second"),
    [
        # Means: .2, -.1, .1, -.15, .1, -.15, 0, 0.
        ("threshold", (0, 2), (0, 2), (4, 0)),
        # A batch goes by its own differences among what all batches together give a small q-value: not expert 2.
        ("fdr", (0, 4), (0,), (4, 0)),
        ("stability", (0, 2), (0, 2), (0,)),
        ("combined", (0,), (0,), (0,)),
        # Two lowest in each: ties go to the lower expert.
        ("lowest", (3, 5), (3, 5), (1, 3)),
    ],
)
def test_every_named_rule_holds_in_every_batch(
    rule: str, overall: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    selection = select_experts(OVERALL, PER_BATCH, rule, BY)
    assert selection.overall == experts(*overall)
    assert selection.per_batch == {0: experts(*first), 1: experts(*second)}
    assert selection.union == experts(*sorted({*first, *second}))


@pytest.mark.parametrize("seed", range(5))
def test_random_puts_one_counterpart_in_an_experts_place_everywhere(seed: int) -> None:
    by = SelectionSettings(threshold=0.05, top_k=2, seed=seed)
    selected = select_experts(OVERALL, PER_BATCH, "threshold", by)
    control = select_experts(OVERALL, PER_BATCH, "random", by)
    assert not set(control.union) & set(selected.union)
    assert len(control.union) == len(selected.union) == 3
    # Expert 0 is in all three selections, and so is its counterpart, in the same places.
    counterpart = control.overall[0]
    assert control.per_batch[0][0] == counterpart == control.per_batch[1][1]
    assert [len(chosen) for chosen in control.per_batch.values()] == [2, 2]


def test_a_rule_of_the_users_own_is_asked_for_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_rules")
    seen: list[pd.DataFrame] = []

    def first_row(table: pd.DataFrame) -> list[Expert]:
        seen.append(table)
        return [(int(table["layer"].iloc[0]), int(table["expert"].iloc[0]))]

    module.first_row = first_row
    monkeypatch.setitem(sys.modules, "my_rules", module)
    overall = OVERALL.sort_values("risk_diff", ascending=False)
    selection = select_experts(overall, PER_BATCH, "my_rules:first_row", BY)
    # Largest difference first, as in the aggregated table.
    assert selection.overall == experts(0)
    assert selection.per_batch == {0: experts(0), 1: experts(4)}
    assert all(
        set(OVERALL.columns) | {"risk_diff_pooled"} <= {*t.columns, "risk_diff_pooled"}
        for t in seen
    )
    assert seen[2]["q_value"].iloc[0] == 0.01 and seen[2]["risk_diff_pooled"].iloc[0] == 0.2


def test_experts_that_may_not_be_selected_are_in_no_batchs_selection() -> None:
    allowed = OVERALL[OVERALL["expert"] != 0]
    selection = select_experts(allowed, PER_BATCH, "threshold", BY)
    assert selection.per_batch == {0: experts(2), 1: experts(4)}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("lowest", "random")])
def test_only_controls_are_compared(rule: str) -> None:
    everything = SelectionSettings(threshold=-1, top_k=50)
    assert same_as_uncontrolled(OVERALL, PER_BATCH, rule, everything) == []


@pytest.mark.parametrize("rule", ["lowest", "random"])
def test_a_control_that_can_select_no_others_is_found_out(rule: str) -> None:
    everything = SelectionSettings(threshold=-1, top_k=50)
    assert same_as_uncontrolled(OVERALL, PER_BATCH, rule, everything) == ["global", "union"]
    assert same_as_uncontrolled(OVERALL, PER_BATCH, rule, BY) == []


# ---- in a run -----------------------------------------------------------------------------------------


def test_the_union_trains_what_the_rule_chose(tmp_path: Path) -> None:
    chosen = {}
    for rule in ("threshold", "lowest"):
        run = make_run(tmp_path / rule, TWO_BATCHES)
        identify(run, settings(rule=rule, top_k=1, threshold=0.25), Listener())
        chosen[rule] = selected_experts(run, "union")
    # Batch 0: expert 0 leads by .5, expert 1 is last; batch 1: expert 2 leads by .8, expert 1 is last.
    assert chosen == {"threshold": [(7, 0), (7, 2)], "lowest": [(7, 1)]}


def test_random_experts_are_other_experts_in_the_union_too(tmp_path: Path) -> None:
    # Expert 0 leads, experts 1 and 2 share the rest alike.
    replies = [Reply(SAFE, b, [1, 2, 1, 2]) for b in (0, 1)]
    replies += [Reply(UNSAFE, b, [0, 0, 1, 2]) for b in (0, 1)]
    run = make_run(tmp_path, replies)
    listener = Listener()
    identify(run, settings(rule="random"), listener)
    assert selected_experts(run, "union") == selected_experts(run)
    assert (7, 0) not in selected_experts(run, "union")
    assert "no control" not in listener.text


def test_a_control_that_controls_nothing_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, TWO_BATCHES)
    listener = Listener()
    identify(run, settings(rule="random", threshold=-1.0), listener)
    assert len(selected_experts(run, "union")) == 3
    assert "train.experts = 'union'" in listener.text and "no control" in listener.text
