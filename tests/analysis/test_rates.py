"""Rates: numbers from the literature and worked by hand, and how often the intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steermoe.analysis.rates import change, mean_per_token, rate, sign_test, tango, wilson

METRIC_KEYS = {"value", "ci_low", "ci_high", "n", "num_unscored"}


def separate_goals(n: int) -> list[str]:
    return [f"goal {i}" for i in range(n)]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3 (score without correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_limits(hits: int, n: int, low: float, high: float) -> None:
    found = wilson(hits, n)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_another_level_solves_its_own_equation() -> None:
    # The limits are where |p - hits/n| is exactly z standard errors of p; z of 80 % is 1.281552.
    for limit in wilson(7, 11, confidence=0.8):
        distance = abs(7 / 11 - limit)
        assert distance / math.sqrt(limit * (1 - limit) / 11) == pytest.approx(1.281552, abs=1e-5)


@pytest.mark.parametrize(
    ("up", "down", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 32),
        (0, 10, 2 / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),  # both tails of at least 8 of 10
        (3, 3, 1.0),
    ],
)
def test_mcnemar_by_hand(up: int, down: int, p_value: float) -> None:
    assert sign_test(up, down) == pytest.approx(p_value, rel=1e-12)


def test_a_rate_counts_scored_answers_and_tells_the_rest() -> None:
    hits = [True, False, None, True, False, True]
    metric = rate(hits, separate_goals(6), worse=True)
    assert set(metric.as_json()) == METRIC_KEYS | {"worst_case"}
    assert metric.value == pytest.approx(3 / 5)
    assert (metric.n, metric.num_unscored) == (5, 1)
    assert (metric.ci_low, metric.ci_high) == pytest.approx(wilson(3, 5))
    assert metric.more["worst_case"] == pytest.approx(4 / 6)
    assert rate(hits, separate_goals(6), worse=False).more["worst_case"] == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("num_unscored", "n", "shown"),
    [(0, 10, False), (1, 50, False), (2, 100, False), (1, 49, True), (3, 100, True)],
)
def test_the_worst_case_is_given_above_two_percent(num_unscored: int, n: int, shown: bool) -> None:
    hits: list[bool | None] = [None] * num_unscored + [True] * (n - num_unscored)
    assert ("worst_case" in rate(hits, separate_goals(n), worse=False).more) is shown


@pytest.mark.parametrize("num_unscored", [0, 3])
def test_without_a_scored_answer_there_is_no_rate(num_unscored: int) -> None:
    metric = rate([None] * num_unscored, separate_goals(num_unscored), worse=True)
    assert [metric.value, metric.ci_low, metric.ci_high, metric.n, metric.num_unscored] == [
        None,
        None,
        None,
        0,
        num_unscored,
    ]


def test_without_a_pair_there_is_no_change() -> None:
    metric = change([None, True], [True, None], separate_goals(2))
    assert metric.value is None and metric.ci_low is None and metric.more["p_value"] is None
    assert (metric.n, metric.num_unscored) == (0, 2)


def test_a_change_counts_pairs_scored_on_both_sides() -> None:
    before = [False, False, False, True, True, None, False]
    after = [True, True, True, False, True, True, None]
    metric = change(before, after, separate_goals(7))
    assert metric.value == pytest.approx((3 - 1) / 5)
    assert (metric.n, metric.num_unscored) == (5, 2)
    assert (metric.more["only_before"], metric.more["only_after"]) == (1, 3)
    # 4 discordant pairs, 3 of them one way: 2 * (1 + 4) / 16.
    assert metric.more["p_value"] == pytest.approx(10 / 16)


def test_prompts_of_one_goal_count_once_in_the_test_of_a_change() -> None:
    # Four goals of three prompts, each prompt turning from missed to hit: 4 ups and not 12.
    goals = [f"goal {i // 3}" for i in range(12)]
    metric = change([False] * 12, [True] * 12, goals)
    assert metric.more["p_value"] == pytest.approx(2 / 16)
    assert metric.n == 12


def test_goals_with_several_prompts_have_a_wider_interval_than_wilson() -> None:
    # Ten goals of ten prompts that all agree: ten independent answers, not a hundred.
    hits = [i // 10 < 5 for i in range(100)]
    clustered = rate(hits, [f"goal {i // 10}" for i in range(100)], worse=True)
    single = rate(hits, separate_goals(100), worse=True)
    width = clustered.ci_high - clustered.ci_low
    assert width > 2 * (single.ci_high - single.ci_low)
    assert clustered.value == single.value == 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    totals = [float(i * i % 17) for i in range(30)]
    first, again, other = (
        mean_per_token(totals, [5] * 30, separate_goals(30), seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.ci_low != other.ci_low


def test_goals_that_all_agree_do_not_give_certainty() -> None:
    # None of 10 goals of 3 prompts was refused: as Wilson of 0 of 10 goals, not of 0 of 30 prompts.
    goals = [f"goal {i // 3}" for i in range(30)]
    metric = rate([False] * 30, goals, worse=True)
    assert (metric.ci_low, metric.ci_high) == pytest.approx(wilson(0, 10))
    every = rate([True] * 30, goals, worse=True)
    assert (every.ci_low, every.ci_high) == pytest.approx(wilson(10, 10))
    # Ten prompts that all changed, or of which none did.
    margin = wilson(0, 10)[1]
    up = change([False] * 10, [True] * 10, separate_goals(10))
    # Half of them may have been hits before, as far as ten can tell, so the margin is twice as wide.
    assert up.ci_high == 1.0 and 1 - 2.2 * margin < up.ci_low < 1 - 2 * margin
    same = change([True] * 10, [True] * 10, separate_goals(10))
    assert same.ci_low == pytest.approx(-same.ci_high)
    assert margin < same.ci_high < 1.15 * margin
    # A single goal leaves almost everything open.
    one = rate([True, False, True], ["one"] * 3, worse=True)
    assert one.ci_low == 0.0 and one.ci_high == 1.0


# ---- intervals of changes -----------------------------------------------------------------------------


def likeliest_downs(up: int, down: int, n: int, difference: float) -> float:
    """Share of downs of largest likelihood among trinomials with that difference, by golden section."""

    def log_likelihood(q: float) -> float:
        parts = ((up, q + difference), (down, q), (n - up - down, 1 - 2 * q - difference))
        if any(count and share <= 0 for count, share in parts):
            return -math.inf
        return sum(count * math.log(share) for count, share in parts if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    grid = np.linspace(low, high, 2001)[1:-1]
    best = max(grid, key=log_likelihood)
    low, high = best - (high - low) / 2000, best + (high - low) / 2000
    for _ in range(100):
        third = (high - low) / 3
        if log_likelihood(low + third) < log_likelihood(high - third):
            low += third
        else:
            high -= third
    return (low + high) / 2


@pytest.mark.parametrize(
    ("up", "down", "n"), [(9, 3, 32), (3, 1, 24), (1, 0, 48), (2, 7, 10), (5, 0, 48), (40, 11, 100)]
)
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_at_tangos_limits_the_score_is_z_under_the_likeliest_trinomial(
    up: int, down: int, n: int, confidence: float
) -> None:
    z = {0.95: 1.959964, 0.8: 1.281552}[confidence]
    for limit, sign in zip(tango(up, down, n, confidence), (1, -1), strict=True):
        if limit == 0:  # The exact test does not reject it, though the score would.
            assert sign_test(up, down) > 1 - confidence
            continue
        q = likeliest_downs(up, down, n, limit)
        p_up, p_down = q + limit, q
        deviation = math.sqrt(n * (p_up + p_down - (p_up - p_down) ** 2))
        distance = sign * (up - down - n * limit) - 0.25
        assert distance / deviation == pytest.approx(z, abs=2e-4)


def test_tangos_interval_where_nothing_changed_or_everything_did() -> None:
    # No variance but that of d itself: (48 d - 0.25)^2 = z^2 48 d (1 - d).
    low, high = tango(0, 0, 48)
    assert low == pytest.approx(-high)
    assert (48 * high - 0.25) ** 2 == pytest.approx(1.959964**2 * 48 * high * (1 - high), rel=1e-5)
    # All rose: the share that did not is (1 - d) / 2 either way.
    low, high = tango(48, 0, 48)
    assert high == 1.0
    assert (48 * (1 - low) - 0.25) ** 2 == pytest.approx(
        1.959964**2 * 48 * (1 - low) * (1 + low), rel=1e-5
    )
    assert tango(0, 48, 48) == pytest.approx((-1.0, -low))
    assert tango(0, 0, 1) == pytest.approx((-tango(0, 0, 1)[1], tango(0, 0, 1)[1]))
    assert tango(1, 0, 1)[1] == 1.0 and tango(1, 0, 1)[0] < 0


def test_tangos_interval_mirrors_and_widens_as_evidence_appears() -> None:
    for up, down in ((5, 2), (0, 3), (1, 1)):
        low, high = tango(up, down, 30)
        assert tango(down, up, 30) == pytest.approx((-high, -low), abs=1e-9)
    # One prompt of 48 that changed does not make it surer than none.
    none, one = (tango(up, 0, 48) for up in (0, 1))
    assert one[1] > none[1] and one[0] < 0
    # Five of 48, all up, are no evidence to the exact test (p = 1/16), nor to the interval; six are (p = 1/32).
    assert tango(5, 0, 48)[0] == 0 and tango(6, 0, 48)[0] > 0.02


@pytest.mark.parametrize("n", [24, 48, 100])
@pytest.mark.parametrize("confidence", [0.95, 0.9])
def test_an_interval_holds_zero_exactly_where_the_exact_test_does_not_reject(
    n: int, confidence: float
) -> None:
    rejected = 0
    for up in range(min(n // 2, 30) + 1):
        for down in range(min(n // 2, 30) + 1):
            low, high = tango(up, down, n, confidence)
            assert -1 <= low <= (up - down) / n <= high <= 1
            rejects = sign_test(up, down) <= 1 - confidence
            assert (low > 0 or high < 0) is rejects
            rejected += rejects
    assert rejected > 20


def coverage(n: int, p_up: float, p_down: float, confidence: float = 0.95) -> float:
    """Exact: over all trinomial outcomes that are not too unlikely to matter (1e-10)."""
    held = 0.0
    for up in range(n + 1):
        for down in range(n + 1 - up):
            log_chance = (
                math.lgamma(n + 1)
                - math.lgamma(up + 1)
                - math.lgamma(down + 1)
                - math.lgamma(n - up - down + 1)
                + up * math.log(p_up)
                + down * math.log(p_down)
                + (n - up - down) * math.log(1 - p_up - p_down)
            )
            if log_chance > -23:
                low, high = tango(up, down, n, confidence)
                held += math.exp(log_chance) * (low <= p_up - p_down <= high)
    return held


@pytest.mark.parametrize(("p_up", "p_down"), [(0.02, 0.01), (0.1, 0.05), (0.3, 0.02)])
def test_intervals_of_few_changes_hold_the_truth_as_often_as_they_say(
    p_up: float, p_down: float
) -> None:
    """The bootstrap that stood here before held it in 90 % of the cases at n = 24."""
    assert coverage(24, p_up, p_down) >= 0.945


def test_a_change_has_tangos_interval_where_goals_have_one_prompt_and_the_goals_spread_elsewhere() -> (
    None
):
    before, after = [False] * 10 + [True] * 2, [True] * 5 + [False] * 6 + [True]
    alone = change(before, after, separate_goals(12))
    assert (alone.more["only_after"], alone.more["only_before"]) == (5, 1)
    assert (alone.ci_low, alone.ci_high) == tango(5, 1, 12)
    grouped = change(before, after, [f"goal {i // 2}" for i in range(12)])
    assert (grouped.ci_low, grouped.ci_high) != (alone.ci_low, alone.ci_high)


# ---- unscored answers of a change ---------------------------------------------------------------------


def test_unscored_answers_go_against_the_change_that_is_claimed() -> None:
    # Three rise of five scored on both sides; one is unscored before, one after, and one on both sides.
    before: list[bool | None] = [False, False, False, True, False, None, True, None]
    after: list[bool | None] = [True, True, True, True, False, True, None, None]
    metric = change(before, after, separate_goals(8))
    assert metric.value == pytest.approx(3 / 5) and metric.num_unscored == 3
    # Against it: the first was a hit before already, the second none after, the third fell. 3 ups, 2 downs.
    assert metric.more["worst_case"] == pytest.approx(1 / 8)
    assert (metric.more["worst_case_ci_low"], metric.more["worst_case_ci_high"]) == tango(3, 2, 8)
    assert metric.more["worst_case_p_value"] == pytest.approx(1.0)
    fallen = change(after, before, separate_goals(8))
    assert fallen.more["worst_case"] == pytest.approx(-1 / 8)


def test_forty_of_48_replies_unscored_are_no_certain_change() -> None:
    before: list[bool | None] = [False] * 48
    after: list[bool | None] = [True] * 8 + [None] * 40
    metric = change(before, after, separate_goals(48))
    assert metric.value == 1.0 and metric.more["p_value"] == pytest.approx(2 / 2**8)
    assert metric.more["worst_case"] == pytest.approx(8 / 48)
    more = change([True] * 40 + [None] * 8, [True] * 48, separate_goals(48))
    # No change was found: against that, all that are unscored had changed.
    assert more.value == 0.0 and more.more["worst_case"] == pytest.approx(8 / 48)


def test_without_more_than_two_percent_unscored_there_is_no_worst_case() -> None:
    before: list[bool | None] = [None] + [True] * 49
    assert "worst_case" not in change(before, [True] * 50, separate_goals(50)).more
    assert "worst_case" in change(before[:49], [True] * 49, separate_goals(49)).more


def test_the_bootstrap_over_goals_holds_the_truth_about_as_often_as_it_says() -> None:
    # 40 goals of 3 prompts; each goal has its own rate, drawn evenly from 0 .. 1, so the truth is 0.5.
    generator = np.random.default_rng(0)
    goals = [f"goal {i // 3}" for i in range(120)]
    num_held = 0
    for trial in range(300):
        shares = np.repeat(generator.random(40), 3)
        hits = [bool(x) for x in generator.random(120) < shares]
        metric = rate(hits, goals, worse=True, num_bootstrap=400, seed=trial)
        num_held += metric.ci_low <= 0.5 <= metric.ci_high
    # 300 trials at 95 % have a standard error of 1.3 points; percentile intervals are a little narrow.
    assert 0.90 <= num_held / 300 <= 0.985


def test_a_mean_per_token_pools_tokens_and_not_replies() -> None:
    metric = mean_per_token([1.0, 9.0, 0.0], [1, 9, 0], ["a", "b", "c"])
    assert metric.value == pytest.approx(1.0)
    assert (metric.n, metric.more["num_responses"], metric.num_unscored) == (10, 2, 1)
    # Pooled, not the mean of the replies' means: (2 + 0) / (1 + 9), against (2 / 1 + 0 / 9) / 2.
    assert mean_per_token([2.0, 0.0], [1, 9], ["a", "b"]).value == pytest.approx(0.2)


def test_a_mean_per_token_lies_in_its_interval_and_between_the_extreme_goals() -> None:
    generator = np.random.default_rng(1)
    lengths = generator.integers(5, 40, 30).tolist()
    totals = [length * x for length, x in zip(lengths, generator.random(30), strict=True)]
    metric = mean_per_token(totals, lengths, separate_goals(30))
    assert 0 < metric.ci_low < metric.value < metric.ci_high < 1


def test_one_goal_gives_a_mean_per_token_and_no_interval() -> None:
    metric = mean_per_token([1.0, 2.0, 5.0], [2, 4, 0], ["a", "a", "b"])
    assert metric.value == 0.5 and metric.ci_low is None and metric.ci_high is None
    assert mean_per_token([1.0, 2.0], [2, 4], ["a", "b"]).ci_low is not None


def test_without_tokens_there_is_no_mean() -> None:
    metric = mean_per_token([0.0], [0], ["a"])
    assert metric.value is None and metric.n == 0 and metric.num_unscored == 1
    assert mean_per_token([], [], []).value is None
