"""Figures of other tools as rows, and their changes, on numbers that were worked by hand."""

from __future__ import annotations

import pytest

from steermoe.harness.figures import Figure, change_rows, figure_rows


def of(*values: float | None, metric: str = "acc") -> Figure:
    """A figure that is the mean of its samples."""
    scored = [v for v in values if v is not None]
    named = {f"s{i}": v for i, v in enumerate(values)}
    mean = sum(scored) / len(scored)
    return Figure("quiz", metric, mean, 0.1, len(scored), len(values) - len(scored), named)


def test_binary_samples_have_wilsons_interval_and_unscored_ones_are_counted() -> None:
    (row,) = figure_rows("base", [of(1, 1, 1, 0, 0, 0, 0, 0, 0, 0, None)], "lm_eval 0.4.13")
    assert (row.variant, row.set, row.measure, row.source, row.compared_with) == (
        "base",
        "quiz",
        "acc",
        "lm_eval 0.4.13",
        "",
    )
    assert (row.metric.value, row.metric.n, row.metric.num_unscored) == (0.3, 10, 1)
    assert row.metric.ci_low == pytest.approx(0.10779, abs=1e-5)
    assert row.metric.ci_high == pytest.approx(0.60322, abs=1e-5)
    assert row.metric.more == {"stderr": 0.1}


def test_other_figures_have_a_normal_interval_from_their_standard_error_or_none() -> None:
    bleu = Figure("translate", "bleu", 20.0, 2.0, 50)
    plain = Figure("translate", "length", 9.0, None, 50)
    first, second = (row.metric for row in figure_rows("base", [bleu, plain], "lm_eval"))
    assert first.ci_low == pytest.approx(20 - 1.959964 * 2, abs=1e-5)
    assert first.ci_high == pytest.approx(20 + 1.959964 * 2, abs=1e-5)
    assert (second.value, second.ci_low, second.ci_high, second.n) == (9.0, None, None, 50)


def test_binary_samples_of_both_are_paired_with_mcnemars_exact_test() -> None:
    base = of(1, 1, 1, 1, 0, 0, None)
    after = of(0, 0, 0, 1, 1, None, 1)
    (row,) = change_rows("hardened", [after], "base", [base], "lm_eval", num_bootstrap=200)
    assert row.compared_with == "base"
    # Five are scored on both sides: three are lost, one is won.
    assert (row.metric.n, row.metric.num_unscored) == (5, 2)
    assert row.metric.value == pytest.approx(-0.4)
    more = row.metric.more
    assert (more["paired"], more["only_before"], more["only_after"]) == (1, 3, 1)
    # Two-sided binomial: 2 (C(4,0) + C(4,1)) / 2^4 = 10 / 16.
    assert more["p_value"] == pytest.approx(0.625)


def test_other_samples_of_both_are_paired_by_their_differences() -> None:
    base, after = of(0.5, 0.25, 1.0), of(0.75, 0.5, 1.25)
    (row,) = change_rows("hardened", [after], "base", [base], "lm_eval", num_bootstrap=200)
    assert row.metric.value == pytest.approx(0.25)
    assert (row.metric.n, row.metric.more["paired"]) == (3, 1)
    # Every sample gains a quarter, so every resample does.
    assert row.metric.ci_low == pytest.approx(0.25)
    assert row.metric.ci_high == pytest.approx(0.25)


def test_without_the_same_samples_the_change_is_that_of_independent_figures() -> None:
    base = Figure("quiz", "acc", 0.5, 0.03, 100)
    after = Figure("quiz", "acc", 0.4, 0.04, 90)
    (row,) = change_rows("hardened", [after], "base", [base], "lm_eval")
    assert row.metric.value == pytest.approx(-0.1)
    assert row.metric.more["stderr"] == pytest.approx(0.05)
    assert row.metric.more["paired"] == 0
    assert row.metric.n == 90
    assert row.metric.ci_low == pytest.approx(-0.1 - 1.959964 * 0.05, abs=1e-6)


def test_unknown_stays_unknown_and_what_only_one_side_has_is_no_change() -> None:
    base = [Figure("quiz", "acc", None, None, 0), Figure("quiz", "only_before", 1.0, None, 1)]
    after = [Figure("quiz", "acc", 0.4, 0.04, 90), Figure("quiz", "only_after", 1.0, None, 1)]
    (row,) = change_rows("hardened", after, "base", base, "lm_eval")
    assert row.measure == "acc"
    assert (row.metric.value, row.metric.ci_low, row.metric.ci_high) == (None, None, None)
