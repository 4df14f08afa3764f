"""What the statistics promise, counted over simulated runs: quickly here, thoroughly under `slow`."""

import numpy as np
import pandas as pd
import pytest
from benchmarks.validity.calibration import (
    TAILS,
    NullCalibration,
    NullSetting,
    calibrate,
    calibration_table,
    null_settings,
    share_of,
    unequal_length_settings,
)
from benchmarks.validity.simulate import RoutingModel, SimulatedRun, simulate_run

from steermoe.analysis.estimators import ESTIMATORS
from steermoe.analysis.power import prompts_needed
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.selection import resolve_rule
from steermoe.analysis.uncertainty import estimate_uncertainty
from steermoe.records import Expert

OLMOE = RoutingModel(num_layers=16, num_experts=64, top_k=8)
QWEN3 = RoutingModel(num_layers=48, num_experts=128, top_k=8)


def check(result: NullCalibration) -> None:
    """The promises, each with three Monte Carlo errors to spare."""
    bands = result.flagged_by_band[1:]  # Below 1 % counts are too few: shown, not promised.
    for share in (result.flagged, *(band for band in bands if band is not None)):
        assert 0.03 - 3 * share.error <= share.value <= 0.07 + 3 * share.error, str(share)
    assert result.any_discovery.value <= 0.07 + 3 * result.any_discovery.error
    assert 0.93 - 3 * result.covered.error <= result.covered.value
    assert result.covered.value <= 0.97 + 3 * result.covered.error


# The simulation itself


def test_simulated_routing_is_routing() -> None:
    run = simulate_run(RoutingModel(), 20, 0)
    active, tokens = run.counts.segment("generation")
    assert (active.sum(axis=2) == tokens[:, None] * 8).all()
    assert (active <= tokens[:, None, None]).all()
    assert run.is_unsafe.sum() == 20
    assert sorted(run.goals[:20]) == sorted(run.goals[20:])
    again = simulate_run(RoutingModel(), 20, 0)
    assert (again.counts.active == run.counts.active).all()


def test_a_planted_expert_has_the_risk_difference_asked_for_and_routing_stays_routing() -> None:
    found = []
    for seed in range(20):
        run = simulate_run(RoutingModel(), 100, seed, planted=[(2, 5)], risk_diff=0.15)
        active, tokens = run.counts.segment("generation")
        assert (active.sum(axis=2) == tokens[:, None] * 8).all()
        assert (active <= tokens[:, None, None]).all()
        table = risk_tables(run.counts, run.is_unsafe, run.batch_idx).aggregated
        row = table[(table["layer"] == 2) & (table["expert"] == 5)].iloc[0]
        found.append(row["risk_diff_pooled"])
    assert np.mean(found) == pytest.approx(0.15, abs=0.01)


def test_goals_are_paired_alone_or_clustered() -> None:
    sizes = {}
    for design in ("paired", "unpaired", "clustered"):
        run = simulate_run(RoutingModel(num_layers=1), 40, 1, design=design)
        sizes[design] = pd.Series(run.goals).value_counts()
        classes = pd.Series(run.is_unsafe).groupby(run.goals).nunique()
        assert set(classes) == ({2} if design == "paired" else {1})
    assert set(sizes["paired"]) == {2} and set(sizes["unpaired"]) == {1}
    assert sizes["clustered"].max() == 10 and sizes["clustered"].min() == 1


def test_tokens_are_not_independent_so_that_a_token_level_test_is_worthless() -> None:
    """What makes all this necessary: it calls about four innocent experts in ten unsafe."""
    flagged, large = [], []
    for seed in range(10):
        run = simulate_run(RoutingModel(), 200, seed, design="unpaired")
        table = risk_tables(run.counts, run.is_unsafe, run.batch_idx)
        whole = table.aggregated
        rate = (whole["a_safe"] + whole["a_unsafe"]) / (whole["n_safe"] + whole["n_unsafe"])
        error = np.sqrt(rate * (1 - rate) * (1 / whole["n_safe"] + 1 / whole["n_unsafe"]))
        flagged.append((whole["risk_diff_pooled"].abs() > 1.96 * error).mean())
        large.append((table.per_batch["risk_diff"] > 0.05).mean())
    assert 0.3 < np.mean(flagged) < 0.5
    assert 0.1 < np.mean(large) < 0.25


# Counting


def test_shares_and_their_monte_carlo_error_worked_by_hand() -> None:
    share = share_of([np.array([True, False]), np.array([True, True]), np.array([False, False])])
    assert share.value == 0.5 and share.num_experts == 6
    # Deviations of the sums 1, 2, 0 from 1: variance 1, times 3 runs, over 6 experts.
    assert share.error == pytest.approx(np.sqrt(1 * 3) / 6)
    assert str(share) == "50.00 ± 28.87 %"


def test_the_table_has_a_row_a_setting() -> None:
    setting = NullSetting("plain", RoutingModel(num_layers=1, num_experts=16, top_k=2), 8, "paired")
    table = calibration_table([calibrate(setting, 2, num_permutations=20, num_bootstrap=20)])
    assert table["data"].tolist() == ["plain"] and table["responses"].tolist() == ["8 + 8"]
    assert not table.isna().any().any()


# The promises


@pytest.mark.parametrize("design", ["paired", "unpaired", "clustered"])
def test_false_alarms_and_coverage_in_a_few_runs(design: str) -> None:
    setting = NullSetting("plain", RoutingModel(), 40, design)
    check(calibrate(setting, 40, num_permutations=300, num_bootstrap=300))


def test_equal_length_keeps_the_promises_where_length_alone_makes_differences() -> None:
    setting = unequal_length_settings(80)[0]
    check(calibrate(setting, 30, num_permutations=300, num_bootstrap=300))
    blind = unequal_length_settings(80, "mean_over_responses")[0]
    misled = calibrate(blind, 10, num_permutations=300, num_bootstrap=300)
    assert misled.flagged.value > 0.1, "else the setting would test nothing"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("estimator", ["mean_over_batches", "pooled"])
def test_false_alarms_and_coverage_in_1000_runs_of_40(number: int, estimator: str) -> None:
    check(calibrate(null_settings(40, estimator)[number], 1000))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(9))
def test_false_alarms_and_coverage_in_200_runs_of_400(number: int) -> None:
    """`python -m benchmarks.statistics calibration` simulates 1,000."""
    check(calibrate(null_settings(400, "mean_over_batches")[number], 200))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_equal_length_keeps_the_promises_in_500_runs(number: int) -> None:
    check(calibrate(unequal_length_settings(80)[number], 500))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_keeps_the_promises(estimator: str) -> None:
    check(calibrate(NullSetting("plain", RoutingModel(), 80, "paired", estimator), 300))


@pytest.mark.slow
@pytest.mark.parametrize("design", ["paired", "unpaired"])
def test_small_p_values_are_as_rare_as_they_say(design: str) -> None:
    setting = NullSetting("plain", OLMOE, 40, design)
    result = calibrate(setting, 1000, num_permutations=2000, num_bootstrap=2)
    for tail, share in zip(TAILS, result.tails, strict=True):
        assert share.value <= 1.5 * tail + 3 * share.error
        assert share.value >= 0.5 * tail - 3 * share.error


def fdr_selection(run: SimulatedRun, seed: int) -> list[Expert]:
    """What the rule `fdr` selects with the default settings."""
    table = risk_tables(run.counts, run.is_unsafe, run.batch_idx).aggregated
    uncertainty = estimate_uncertainty(
        run.counts, run.is_unsafe, run.goals, run.batch_idx, num_bootstrap=50, seed=seed
    )
    return resolve_rule("fdr")(table.merge(uncertainty, on=["layer", "expert"]))


def planted_in(model: RoutingModel, number: int, seed: int) -> list[Expert]:
    """Random experts, the last layer's last one among them."""
    total = model.num_layers * model.num_experts
    drawn = np.random.default_rng(seed).choice(total - 1, number - 1, replace=False)
    return [divmod(int(place), model.num_experts) for place in [*drawn, total - 1]]


@pytest.mark.slow
@pytest.mark.parametrize("model", [OLMOE, QWEN3], ids=["16 x 64", "48 x 128"])
@pytest.mark.parametrize("design", ["paired", "unpaired"])
def test_ten_planted_experts_are_found(model: RoutingModel, design: str) -> None:
    found = chosen = 0
    for seed in range(5):
        planted = planted_in(model, 10, seed)
        run = simulate_run(model, 400, seed, planted=planted, risk_diff=0.1, design=design)
        selected = fdr_selection(run, seed)
        found += len(set(selected) & set(planted))
        chosen += len(selected)
    assert found / 50 >= 0.95
    assert found / chosen >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("design", ["paired", "unpaired"])
@pytest.mark.parametrize("risk_diff", [0.08, 0.12])
def test_the_named_number_of_prompts_has_the_power_asked_for(design: str, risk_diff: float) -> None:
    pilot_run = simulate_run(OLMOE, 80, 1000, design=design)
    arguments = (pilot_run.counts, pilot_run.is_unsafe)
    pilot = risk_tables(*arguments, pilot_run.batch_idx).aggregated.merge(
        estimate_uncertainty(*arguments, pilot_run.goals, pilot_run.batch_idx),
        on=["layer", "expert"],
    )
    needed = prompts_needed(
        pilot, 80, risk_diff=risk_diff, num_unsafe=10, paired=design == "paired"
    )
    shares = []
    for seed in range(60):
        planted = planted_in(OLMOE, 10, seed)
        run = simulate_run(
            OLMOE, needed.num_prompts, seed, planted=planted, risk_diff=risk_diff, design=design
        )
        shares.append(len(set(fdr_selection(run, seed)) & set(planted)) / 10)
    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert 0.85 - 2 * error <= np.mean(shares) <= 0.95 + 2 * error
