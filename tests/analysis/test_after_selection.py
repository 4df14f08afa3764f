"""What is said of selected experts: local false discovery rates, shrinkage, intervals after selection."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from steermoe.analysis.after_selection import expected_false_share, with_false_coverage_intervals
from steermoe.analysis.shrinkage import shrink
from steermoe.errors import SelectionError


def table_of(**columns: object) -> pd.DataFrame:
    number = len(next(iter(columns.values())))  # type: ignore[arg-type]
    return pd.DataFrame({"layer": 3, "expert": range(number), **columns})


def test_the_false_share_is_the_mean_of_the_selected() -> None:
    table = table_of(local_fdr=[0.1, 0.3, 0.8, 1.0])
    assert expected_false_share(table, [(3, 0), (3, 2)]) == pytest.approx(0.45)
    assert expected_false_share(table, []) is None
    assert expected_false_share(table.drop(columns="local_fdr"), [(3, 0)]) is None
    with pytest.raises(SelectionError, match=r"no expert \(3, 9\)"):
        expected_false_share(table, [(3, 9)])


def test_intervals_after_selection_worked_by_hand() -> None:
    # Two of eight selected: each interval has the level 1 - 0.05 * 2 / 8 = 98.75 %; t of ten degrees is 3.03829.
    table = table_of(
        estimate=[0.2] * 7 + [0.99], risk_diff_se=[0.01] * 8, degrees_of_freedom=[10.0] * 8
    )
    found = with_false_coverage_intervals(table, [(3, 0), (3, 1)])
    assert stats.t.cdf(3.03829, 10) == pytest.approx(1 - 0.0125 / 2, abs=1e-6)
    assert found["fcr_low"][0] == pytest.approx(0.2 - 0.0303829, abs=1e-6)
    assert found["fcr_high"].tolist()[6:] == pytest.approx([0.2303829, 1.0], abs=1e-6)
    # All selected: the ordinary level. None selected: that of one.
    every = with_false_coverage_intervals(table, [(3, e) for e in range(8)])
    assert every["fcr_high"][0] == pytest.approx(0.2 + 0.01 * 2.228139, abs=1e-6)
    none, one = (with_false_coverage_intervals(table, e)["fcr_low"][0] for e in ([], [(3, 0)]))
    assert none == one


def test_without_degrees_of_freedom_an_interval_rules_nothing_out() -> None:
    table = table_of(estimate=[0.4], risk_diff_se=[1.0], degrees_of_freedom=[0.0])
    found = with_false_coverage_intervals(table, [(3, 0)])
    assert (found["fcr_low"][0], found["fcr_high"][0]) == (-1, 1)
    plain = table_of(risk_diff=[0.1])
    assert list(with_false_coverage_intervals(plain, []).columns) == list(plain.columns)


def test_local_rates_and_shrinkage_are_those_of_the_truth_behind_many_scores() -> None:
    """20,000 scores of 0, +3 and -3: the reference knows the shares, the fit does not."""
    generator = np.random.default_rng(0)
    truth = generator.choice([0.0, 3.0, -3.0], p=[0.7, 0.1, 0.2], size=20_000)
    z = truth + generator.standard_normal(20_000)
    found = shrink(stats.norm.sf(z))
    for at in (1.5, 2.5, 3.5):
        near = np.argmin(np.abs(z - at))
        parts = {0.0: 0.7, 3.0: 0.1, -3.0: 0.2}
        density = {v: share * stats.norm.pdf(z[near] - v) for v, share in parts.items()}
        total = sum(density.values())
        assert found.local_fdr[near] == pytest.approx(1 - density[3.0] / total, abs=0.05)
        expected = sum(v * d for v, d in density.items()) / total / z[near]
        assert found.left[near] == pytest.approx(expected, abs=0.05)


def test_the_expected_false_share_is_the_share_that_is_false() -> None:
    """60 % truly lower, 5 % higher by sizes that the grid does not hold; any set of large ones."""
    generator = np.random.default_rng(1)
    kind = generator.choice(3, p=[0.35, 0.05, 0.6], size=6_000)
    truth = np.select([kind == 1, kind == 2], [1.0, -1.0]) * generator.gamma(4, 0.8, 6_000)
    z = truth + generator.standard_normal(6_000)
    rates = shrink(stats.norm.sf(z)).local_fdr
    for number in (150, 400, 1000):
        largest = np.argsort(-z)[:number]
        assert rates[largest].mean() == pytest.approx((truth[largest] <= 0).mean(), abs=0.08)


@pytest.mark.parametrize("number", [64, 1024])
def test_where_nothing_is_true_nearly_all_is_expected_to_be_false(number: int) -> None:
    shares = []
    for seed in range(20):
        p = np.random.default_rng(seed).random(number)
        shares.append(shrink(p).local_fdr[np.argsort(p)[: number // 5]].mean())
    assert np.mean(shares) > 0.85 and min(shares) > 0.25


def test_unknown_p_values_say_nothing_and_all_is_finite() -> None:
    unknown = shrink(np.ones(5))
    assert unknown.local_fdr.tolist() == [1] * 5 and unknown.left.tolist() == [0] * 5
    assert shrink(np.array([])).local_fdr.shape == (0,)
    extreme = shrink(np.array([0.0, 1e-300, 0.5, 1.0, 1 - 1e-16]))
    for values in (extreme.local_fdr, extreme.left):
        assert ((values >= 0) & (values <= 1)).all()


def test_shrinkage_of_a_normal_prior_is_near_its_posterior_mean() -> None:
    """Scores of a normal truth of scale 3 keep 9 / 10 of their size, whatever the grid; by integration too."""
    z = 3.0
    weight = lambda theta: stats.norm.pdf(z - theta) * stats.norm.pdf(theta, scale=3)  # noqa: E731
    mean = integrate.quad(lambda t: t * weight(t), -20, 20)[0] / integrate.quad(weight, -20, 20)[0]
    assert mean == pytest.approx(0.9 * z)
    generator = np.random.default_rng(2)
    scores = generator.normal(0, 3, 20_000) + generator.standard_normal(20_000)
    near = np.abs(scores - z) < 0.1
    assert shrink(stats.norm.sf(scores)).left[near].mean() == pytest.approx(0.9, abs=0.06)
