"""What else may explain a difference: matched comparisons, their errors, and what is flagged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from benchmarks.validity.confound_study import designs, one_run
from benchmarks.validity.nested import NestedModel, plan_replies, simulate_nested
from scipy import stats

from steermoe.analysis.confounds import confound_contrasts, explain, flag_confounded, within_strata
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import build_contrast
from steermoe.analysis.influences import cluster_robust_errors
from steermoe.analysis.linear import OfContrast, errors_of, higher_p_values
from steermoe.analysis.positions import at_equal_position, position_bins
from steermoe.errors import RoutingError


def counts_of(active: list[list[int]], tokens: list[int]) -> RoutingCounts:
    """One layer, both segments alike."""
    shaped = np.array(active)[:, None, None, :].repeat(2, axis=1)
    return RoutingCounts(shaped, np.array(tokens)[:, None].repeat(2, axis=1), (0,))


# ---- equal position -----------------------------------------------------------------------------------


def routed(*experts: int) -> np.ndarray:
    """A reply by the expert of each token, one layer, top-1."""
    return np.array(experts, dtype=np.uint8).reshape(-1, 1, 1)


def test_positions_of_one_side_only_count_for_nothing() -> None:
    # Both sides open with expert 0; only the long unsafe replies go on, with expert 1. Pooled, expert 1 differs by 2/3.
    replies = [routed(0), routed(0), routed(0, 1, 1), routed(0, 1, 1)]
    unsafe = np.array([False, False, True, True])
    found = at_equal_position(replies, np.array([1, 1, 3, 3]), unsafe, np.arange(4), 2)
    assert found.difference().tolist() == [0.0, 0.0]
    assert (found.influences(np.arange(2)) == 0).all()


def test_equal_positions_worked_by_hand() -> None:
    replies = [routed(0, 1), routed(1), routed(1, 1), routed(1, 0)]
    unsafe = np.array([False, False, True, True])
    found = at_equal_position(replies, np.array([2, 1, 2, 2]), unsafe, np.array([5, 6, 5, 6]), 2)
    # Position 0: 2 safe and 2 unsafe tokens, weight 4/4; position 1: 1 and 2, weight 2/3. So 3/5 and 2/5.
    # Expert 1 at position 0: safe 1/2, unsafe 2/2; at position 1: safe 1/1, unsafe 1/2.
    assert found.difference()[1] == pytest.approx(3 / 5 * (1 - 1 / 2) + 2 / 5 * (1 / 2 - 1))
    assert found.difference()[0] == pytest.approx(-found.difference()[1])
    assert found.owners.tolist() == [5, 6] and found.least_clusters == 2
    # Pair 5: unsafe (1, 1) above (1, 1/2), safe (0, 1) above (1/2, 1). A safe token weighs 3/10 and 4/10, an
    # unsafe one 3/10 and 2/10.
    of_pair = (0.3 * 0 + 0.2 * 0.5) - (0.3 * -0.5 + 0.4 * 0)
    # Two pairs: each part is multiplied by the root of 2 / (2 - 1).
    assert found.influences(np.array([1]))[0, 0] == pytest.approx(of_pair * np.sqrt(2))


def test_equal_positions_agree_with_a_loop_over_tokens() -> None:
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 40, 24)
    replies = [
        np.stack([generator.permuted(np.tile(np.arange(6), (t, 1)), axis=1)[:, :2]] * 2, axis=1)
        for t in lengths
    ]
    unsafe = np.arange(24) % 2 == 1
    found = at_equal_position(iter(replies), lengths, unsafe, np.arange(24) // 2, 6)
    bins = position_bins(40)
    rates = np.zeros((2, bins.max() + 1, 2, 6))
    totals = np.zeros((2, bins.max() + 1))
    for reply, side in zip(replies, unsafe, strict=True):
        for position, token in enumerate(reply):
            totals[int(side), bins[position]] += 1
            for layer, chosen in enumerate(token):
                rates[int(side), bins[position], layer, chosen] += 1
    shared = totals[0] * totals[1] / np.maximum(totals.sum(axis=0), 1)
    rates /= np.maximum(totals, 1)[:, :, None, None]
    expected = np.einsum("b,ble->le", shared / shared.sum(), rates[1] - rates[0]).ravel()
    assert found.difference() == pytest.approx(expected, abs=1e-7)
    assert found.influences(np.arange(12)).sum(axis=0) == pytest.approx(np.zeros(12), abs=1e-7)


def test_first_positions_have_bins_of_their_own_and_later_ones_are_alike() -> None:
    bins = position_bins(200)
    assert bins[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert set(np.diff(bins)) == {0, 1}
    for number in range(int(bins.max())):
        inside = np.flatnonzero(bins == number)
        assert len(inside) == 1 or inside[-1] < 1.3 * inside[0]
    assert position_bins(0).tolist() == [] and position_bins(2).tolist() == [0, 1]


def test_replies_that_share_no_position_or_do_not_fit_are_refused() -> None:
    unsafe = np.array([False, True])
    with pytest.raises(RoutingError, match="no position in a reply has tokens of both classes"):
        at_equal_position([routed(), routed(0)], np.array([0, 1]), unsafe, np.arange(2), 2)
    with pytest.raises(RoutingError, match="reply 1 has 2 routed tokens"):
        at_equal_position([routed(0), routed(0, 1)], np.array([1, 1]), unsafe, np.arange(2), 2)
    with pytest.raises(RoutingError, match="1 routings were given for 2 replies"):
        at_equal_position([routed(0)], np.array([1, 1]), unsafe, np.arange(2), 2)


# ---- equal verdict ------------------------------------------------------------------------------------


def test_replies_are_compared_within_their_stratum_only() -> None:
    # Expert 0 in refusals always, in answers never; three of four safe replies refuse, one of four unsafe ones.
    refuses = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    counts = counts_of([[4 * r, 4 - 4 * r] for r in refuses], [4] * 8)
    unsafe = np.repeat([False, True], 4)
    pooled = build_contrast(counts, unsafe, np.zeros(8), np.arange(8), "pooled", "generation")
    assert pooled.difference()[0] == pytest.approx(-0.5)
    alike = within_strata(counts, unsafe, refuses, np.arange(8))
    assert alike.difference() == pytest.approx(np.zeros(2), abs=1e-12)


def test_strata_are_weighted_by_how_much_they_can_tell() -> None:
    # Stratum 0: 1 safe at 1/2, 1 unsafe at 1; stratum 1: 2 safe at 1/4, 2 unsafe at 1/2. Weights 1/2 and 1: 1/3, 2/3.
    counts = counts_of([[2], [4], [1], [1], [2], [2], [4]], [4] * 7)
    unsafe = [False, True, False, False, True, True, True]
    found = within_strata(counts, unsafe, [0, 0, 1, 1, 1, 1, -1], np.arange(7))
    assert found.difference()[0] == pytest.approx(0.5 / 3 + 0.25 * 2 / 3)
    assert len(found) == 6, "a negative stratum is left out"
    with pytest.raises(RoutingError, match="has tokens of both classes"):
        within_strata(counts, unsafe, [0, 1, 0, 0, 1, 1, 1], np.arange(7))


# ---- errors of combinations ---------------------------------------------------------------------------


def test_the_error_of_one_estimate_is_the_cluster_robust_one() -> None:
    for goals in ("paired", "unpaired"):
        plan = plan_replies(40, 1, goals=goals)
        run = simulate_nested(NestedModel(num_layers=1), plan, 1)
        contrast = build_contrast(
            run.counts, plan.is_unsafe, run.batch_idx, plan.goal_of, "pooled", "generation"
        )
        term = OfContrast(contrast, plan.goal_of)
        errors = errors_of({"a": term}, {"own": {"a": 1.0}, "nothing": {"a": 0.0}})
        assert errors["own"] == pytest.approx(cluster_robust_errors(contrast))
        assert errors["nothing"].max() == 0


def test_estimates_of_the_same_responses_are_not_independent() -> None:
    """Four pairs, worked by hand: half of the same difference has half of its error, none of it has none."""
    active = [[5, 1], [4, 2], [6, 1], [5, 3], [7, 2], [7, 1], [6, 2], [9, 3]]
    counts = counts_of(active, [10] * 8)
    unsafe, goals = np.repeat([False, True], 4), np.tile(np.arange(4), 2)
    own = build_contrast(counts, unsafe, np.zeros(8), goals, "pooled", "generation")
    first, second = OfContrast(own, goals), OfContrast(own, goals)
    errors = errors_of(
        {"a": first, "b": second}, {"less": {"a": 1.0, "b": -1.0}, "half": {"a": 1.0, "b": -0.5}}
    )
    assert errors["less"].tolist() == [0, 0]
    pairs = (np.array(active[4:]) - np.array(active[:4])) / 10
    assert errors["half"] == pytest.approx(0.5 * pairs.std(axis=0, ddof=1) / 2)


def test_clusters_of_other_responses_add_their_own_part() -> None:
    counts = counts_of([[1], [3], [6], [9], [2], [5]], [10] * 6)
    benign = confound_contrasts(
        counts, [0, 1, 2, 3, 4, 5], is_benign=[0, 0, 1, 1, 0, 0], is_look_alike=[0, 0, 0, 0, 1, 1]
    )["topic_diff"]
    assert benign.difference()[0] == pytest.approx(0.35 - 0.75)
    error = errors_of({"t": OfContrast(benign, np.arange(6))}, {"t": {"t": 1.0}})["t"][0]
    # Two means of two: (0.3^2 + 0.3^2) / 2 / 2.
    expected = np.sqrt(np.var([0.6, 0.9], ddof=1) / 2 + np.var([0.2, 0.5], ddof=1) / 2)
    assert error == pytest.approx(expected)


def test_one_sided_p_values_are_students() -> None:
    p = higher_p_values(np.array([0.2, -0.2, 0.0, 0.1]), np.array([0.1, 0.1, 0.1, 0.0]), 11)
    assert p == pytest.approx([stats.t.sf(2, 10), stats.t.cdf(2, 10), 0.5, 1.0])
    assert higher_p_values(np.array([0.2]), np.array([0.1]), 1).tolist() == [1.0]


def test_a_column_and_what_is_left_add_up_to_the_estimate() -> None:
    plan = plan_replies(60, 2)
    run = simulate_nested(NestedModel(num_layers=1), plan, 2)

    def by(name: str) -> OfContrast:
        return OfContrast(
            build_contrast(
                run.counts, plan.is_unsafe, run.batch_idx, plan.goal_of, name, "generation"
            ),
            plan.goal_of,
        )

    default, equal = by("pooled"), by("equal_length")
    columns = explain(default, {}, {"length_diff": equal}, np.ones(64, dtype=bool))
    assert set(columns) == {
        *(f"length_diff{end}" for end in ("", "_se", "_q")),
        *(f"at_equal_length{end}" for end in ("", "_se", "_q")),
        "length_margin_se",
    }
    total = columns["length_diff"] + columns["at_equal_length"]
    assert total == pytest.approx(default.difference(), abs=1e-6)
    assert columns["at_equal_length_se"] == pytest.approx(
        cluster_robust_errors(equal.contrast), rel=1e-4
    )


# ---- flags --------------------------------------------------------------------------------------------


def test_length_and_refusals_are_named_where_they_make_half_of_the_estimate() -> None:
    table = pd.DataFrame({"risk_diff": [0.2] * 5, "estimate": [0.1] * 5})
    table["length_diff"] = [0.05, 0.04, 0.0, 0.0, -0.1]
    table["position_diff"] = [0.0, 0.0, 0.06, 0.0, 0.0]
    table["refusal_text_diff"] = [0.0, 0.0, 0.05, 0.05, 0.049]
    table["topic_diff"] = [0.0, 0.1, 0.0, 0.0, 0.0]
    expected = ["length", "topic", "length and refusal_text", "refusal_text", ""]
    assert flag_confounded(table).tolist() == expected


@pytest.mark.parametrize("place", range(3))
def test_a_confound_is_named_and_disappears_where_replies_are_alike(place: int) -> None:
    """Short refusals where routing goes by position; refusals with words of their own; pairs chosen by verdict."""
    confound = designs(160)[place]
    risky, named, left, flagged = 0, 0, [], []
    for seed in range(3):
        table, _ = one_run(confound, seed)
        is_risky = table["risk_diff"] >= 0.05
        risky += int(is_risky.sum())
        named += int((is_risky & (table["confounded_by"] != "")).sum())
        alike = "at_same_verdict" if place else "at_equal_position"
        score = table[alike] / table[f"{alike}_se"]
        left.append(float((score.abs() > stats.t.ppf(0.975, 60)).mean()))
        flagged.append(float((table["p_value"] <= 0.05).mean()))
    assert risky >= 15 and named >= 0.75 * risky
    assert np.mean(flagged) > 0.15, "the difference is there"
    assert np.mean(left) < 0.1, "and is not where replies are alike"
