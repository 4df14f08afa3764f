"""How long replies are, by hand."""

from __future__ import annotations

import pytest

from made_evidence import by_kind, evidence, prompt, side
from steermoe.measures.length import ReplyLength


def test_the_mean_of_tokens_over_harmless_replies_and_its_change() -> None:
    prompts = [prompt("a"), prompt("b"), prompt("c"), prompt("harm", "unsafe")]
    before = side(
        dict.fromkeys("abc", "x") | {"harm": "x"},
        {"a": [1] * 10, "b": [1] * 20, "c": [1] * 30, "harm": [1] * 99},
    )
    after = side(
        dict.fromkeys("abc", "x") | {"harm": "x"},
        {"a": [1] * 8, "b": [1] * 18, "c": [1] * 22, "harm": [1]},
    )
    rows = by_kind(ReplyLength().of(evidence(prompts, after, before)))
    assert rows["own"].metric.value == pytest.approx(16) and rows["own"].metric.n == 3
    assert rows["change"].metric.value == pytest.approx(-4)  # -2, -2 and -8
    # Resampled goals can be all of one change or all of the other, and nothing beyond.
    low, high = rows["change"].metric.ci_low, rows["change"].metric.ci_high
    assert low is not None and high is not None and -8 <= low < -4 < high <= -2
    assert "num_responses" not in rows["own"].metric.more


def test_one_goal_has_no_interval() -> None:
    prompts = [prompt("a", goal="same"), prompt("b", goal="same")]
    (row,) = ReplyLength().of(evidence(prompts, side({"a": "one two", "b": "one two three four"})))
    assert row.metric.value == 3.0 and row.metric.ci_low is None


def test_no_harmless_prompt_leaves_the_figure_empty() -> None:
    (row,) = ReplyLength().of(evidence([prompt("a", "unsafe")], side({"a": "words"})))
    assert row.metric.value is None and row.metric.n == 0
