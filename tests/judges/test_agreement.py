"""Agreement, sensitivity, specificity, and rates corrected by them, against hand-worked numbers and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steermoe.judges.agreement import (
    Share,
    accuracy,
    agreement,
    compare_all,
    corrected_rate,
    share,
)
from steermoe.records import Verdict

R, A, U = Verdict.REFUSED, Verdict.ANSWERED, Verdict.UNSCORED


def pairs(yes: int, only_first: int, only_second: int, no: int) -> tuple[dict, dict]:
    """Verdicts of two judges with that table."""
    table = [(R, R)] * yes + [(R, A)] * only_first + [(A, R)] * only_second + [(A, A)] * no
    return {i: a for i, (a, _) in enumerate(table)}, {i: b for i, (_, b) in enumerate(table)}


def test_cohens_kappa_of_a_table_worked_by_hand() -> None:
    # 35 of 50 agree; by chance .5 * .6 + .5 * .4 = .5 would; (.7 - .5) / (1 - .5) = .4.
    found = agreement(*pairs(20, 5, 10, 15))
    assert found.agree.value == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert (found.both_refused, found.only_first, found.only_second) == (20, 5, 10)
    assert found.both_answered == 15
    assert found.disagreements == tuple(range(20, 35))


def delta_method_error(cells: tuple[int, int, int, int]) -> float:
    """Standard error of kappa from its numerical gradient and the multinomial covariance: no formula of kappa's own."""
    n = sum(cells)
    p = np.array(cells) / n

    def kappa(p: np.ndarray) -> float:
        rows, columns = (p[0] + p[1], p[2] + p[3]), (p[0] + p[2], p[1] + p[3])
        chance = rows[0] * columns[0] + rows[1] * columns[1]
        return float((p[0] + p[3] - chance) / (1 - chance))

    step = 1e-6
    gradient = np.array([(kappa(p + e) - kappa(p - e)) / (2 * step) for e in np.eye(4) * step])
    covariance = (np.diag(p) - np.outer(p, p)) / n
    return math.sqrt(gradient @ covariance @ gradient)


@pytest.mark.parametrize(
    "cells", [(20, 5, 10, 15), (80, 3, 9, 308), (40, 1, 2, 7), (10, 20, 15, 5)]
)
def test_the_interval_of_kappa_is_that_of_the_delta_method(
    cells: tuple[int, int, int, int],
) -> None:
    found = agreement(*pairs(*cells))
    assert found.kappa is not None and found.kappa_low is not None and found.kappa_high is not None
    reach = 1.959964 * delta_method_error(cells)
    assert found.kappa_low == pytest.approx(max(-1, found.kappa - reach), abs=1e-5)
    assert found.kappa_high == pytest.approx(min(1, found.kappa + reach), abs=1e-5)


def test_kappa_is_unknown_where_there_is_nothing_to_tell_apart() -> None:
    assert agreement(*pairs(5, 0, 0, 0)).kappa is None
    nothing = agreement({}, {})
    assert nothing.kappa is None and nothing.agree.value is None and nothing.agree.n == 0


def test_what_one_judge_could_not_score_is_counted_and_in_no_figure() -> None:
    found = agreement({1: R, 2: U, 3: A, 4: R, 5: U}, {1: R, 2: R, 3: U, 4: A, 5: U, 6: R})
    assert (found.agree.count, found.agree.n, found.num_unscored) == (1, 2, 3)
    assert found.disagreements == (4,)


def test_sensitivity_and_specificity_against_labels() -> None:
    labels = {1: R, 2: R, 3: R, 4: A, 5: A, 6: U, 7: R}
    verdicts = {1: R, 2: A, 3: R, 4: A, 5: R, 6: R, 7: U, 8: R}
    found = accuracy(verdicts, labels)
    assert (found.sensitivity.count, found.sensitivity.n) == (2, 3)
    assert (found.specificity.count, found.specificity.n) == (1, 2)
    assert found.agree.value == pytest.approx(3 / 5)
    assert found.num_unscored == 1
    assert found.mistakes == (2, 5)


def test_wilsons_interval_of_9_of_10() -> None:
    # (9 + 1.92073) / (10 + 3.84146) = .78898, plus and minus .19323.
    found = share(9, 10)
    assert found.ci_low == pytest.approx(0.5958, abs=1e-4)
    assert found.ci_high == pytest.approx(0.9821, abs=1e-4)
    assert share(0, 0) == Share(None, None, None, 0, 0)


def test_rogan_and_gladen_by_hand() -> None:
    # (.30 + .95 - 1) / (.90 + .95 - 1) = .25 / .85
    found = corrected_rate(30, 100, (45, 50), (95, 100))
    assert found.value == pytest.approx(0.25 / 0.85)


def test_lang_and_reiczigel_by_hand() -> None:
    # n' = 103.84146, p' = 31.92073 / 103.84146 = .307399; se' = 46 / 52 = .884615, sp' = 96 / 102 = .941176;
    # estimate (.307399 + .941176 - 1) / .825792 = .301014;
    # errors .307399 * .692601 / 103.84146 = .00205029; .301014^2 * .884615 * .115385 / 52 = .000177858;
    # .698986^2 * .941176 * .0588235 / 102 = .000265193; root of the sum .0499334, over .825792: .0604673;
    # moved by 7.68292 * (.301014 * .00196291 - .698986 * .000542782) = .00162465.
    found = corrected_rate(30, 100, (45, 50), (95, 100))
    middle, reach = 0.301014 + 0.001625, 1.959964 * 0.060467
    assert found.ci_low == pytest.approx(middle - reach, abs=2e-5)
    assert found.ci_high == pytest.approx(middle + reach, abs=2e-5)


def test_a_perfect_judge_leaves_the_rate_as_it_is_and_widens_its_interval() -> None:
    found = corrected_rate(30, 100, (500, 500), (500, 500))
    assert found.value == pytest.approx(0.3)
    raw = share(30, 100)
    assert found.ci_low is not None and found.ci_high is not None
    assert raw.ci_low is not None and raw.ci_high is not None
    assert found.ci_high - found.ci_low > raw.ci_high - raw.ci_low


def test_rates_stay_between_nought_and_one_and_unknown_is_a_value() -> None:
    assert corrected_rate(0, 50, (45, 50), (40, 50)).value == 0
    assert corrected_rate(50, 50, (45, 50), (40, 50)).value == 1
    for senseless in (
        (0, 0, (9, 10), (9, 10)),
        (5, 10, (0, 0), (9, 10)),
        (5, 10, (5, 10), (5, 10)),
    ):
        found = corrected_rate(*senseless)
        assert (found.value, found.ci_low, found.ci_high) == (None, None, None)


@pytest.mark.parametrize(
    ("rate", "n", "se", "n_se", "sp", "n_sp"),
    [(0.8, 144, 0.9, 60, 0.95, 60), (0.05, 144, 0.85, 40, 0.97, 100), (0.5, 48, 0.8, 30, 0.9, 30)],
)
def test_the_corrected_interval_holds_the_true_rate_as_often_as_it_says(
    rate: float, n: int, se: float, n_se: int, sp: float, n_sp: int
) -> None:
    rng = np.random.default_rng(7)
    draws = 4000
    positive = rng.binomial(n, rate * se + (1 - rate) * (1 - sp), draws)
    hits, rejections = rng.binomial(n_se, se, draws), rng.binomial(n_sp, sp, draws)
    inside = 0
    for count, hit, rejection in zip(positive, hits, rejections, strict=True):
        found = corrected_rate(int(count), n, (int(hit), n_se), (int(rejection), n_sp))
        assert found.ci_low is not None and found.ci_high is not None
        inside += found.ci_low <= rate <= found.ci_high
    # Monte Carlo error of a share of .95 in 4,000 draws: .0034. The interval is somewhat conservative.
    assert 0.95 - 3 * 0.0034 <= inside / draws <= 0.99


def test_every_pair_of_judges_is_compared_once() -> None:
    verdicts = {1: R, 2: A}
    found = compare_all({"a": verdicts, "b": verdicts, "c": {1: A, 2: A}})
    assert [(a, b, g.agree.count) for a, b, g in found] == [
        ("a", "b", 2),
        ("a", "c", 1),
        ("b", "c", 1),
    ]
