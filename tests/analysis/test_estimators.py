"""The four estimators against plain loops, and their coefficients under resampling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statistics_references import Responses, difference
from steermoe.analysis.clusters import find_clusters
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import ESTIMATORS, Contrast, build_contrast
from steermoe.analysis.risk import risk_tables
from steermoe.analysis.uncertainty import estimate_risk_diff
from steermoe.errors import RoutingError


def random_counts(
    seed: int, num_responses: int = 24
) -> tuple[RoutingCounts, np.ndarray, np.ndarray]:
    """Counts of 2 layers x 3 experts, classes and batches; some responses are empty or in no batch."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 30, (num_responses, 2))
    active = generator.binomial(tokens[:, :, None, None], generator.random((2, 3)))
    batch_idx = np.concatenate([np.repeat(np.arange(4), 5), np.full(num_responses - 20, -1)])
    return RoutingCounts(active, tokens, (1, 4)), generator.random(num_responses) < 0.5, batch_idx


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("segment", ["prompt", "generation"])
def test_estimators_equal_the_definitions(name: str, segment: str) -> None:
    for seed in range(10):
        counts, unsafe, batches = random_counts(seed)
        table = estimate_risk_diff(counts, unsafe, batches, estimator=name, segment=segment)
        active, tokens = counts.segment(segment)
        expected = [
            difference(name, Responses(active[:, layer, expert], tokens, unsafe, batches, ()))
            for layer in range(2)
            for expert in range(3)
        ]
        assert table["risk_diff"].to_numpy() == pytest.approx(expected, abs=1e-12)
        assert table["layer"].tolist() == [1, 1, 1, 4, 4, 4]
        assert set(table["estimator"]) == {name}


def test_estimators_worked_by_hand() -> None:
    # One expert. Safe: 1 of 2 tokens, 0 of 8. Unsafe: 2 of 2, 4 of 8. Batches: short ones, long ones.
    active = np.array([1, 0, 2, 4]).reshape(4, 1, 1, 1).repeat(2, axis=1)
    tokens = np.array([2, 8, 2, 8]).reshape(4, 1).repeat(2, axis=1)
    counts = RoutingCounts(active, tokens, (0,))
    unsafe, batches = [False, False, True, True], [0, 1, 0, 1]
    expected = {
        "pooled": 6 / 10 - 1 / 10,
        "mean_over_batches": ((1 - 1 / 2) + (1 / 2 - 0)) / 2,
        "mean_over_responses": (1 + 1 / 2) / 2 - (1 / 2 + 0) / 2,
        "equal_length": ((1 - 1 / 2) + (1 / 2 - 0)) / 2,
    }
    for name, value in expected.items():
        table = estimate_risk_diff(counts, unsafe, batches, estimator=name)
        assert table["risk_diff"].tolist() == pytest.approx([value])


def test_two_of_them_are_the_risk_tables_own_columns() -> None:
    counts, unsafe, batches = random_counts(3)
    table = risk_tables(counts, unsafe, batches).aggregated.sort_values(["layer", "expert"])
    for name, column in (("mean_over_batches", "risk_diff"), ("pooled", "risk_diff_pooled")):
        own = estimate_risk_diff(counts, unsafe, batches, estimator=name)["risk_diff"]
        assert table[column].to_numpy() == pytest.approx(own.to_numpy(), abs=1e-12)


def test_equal_length_ignores_a_difference_that_length_alone_makes() -> None:
    """Expert fires in the first 2 tokens of every reply; unsafe replies are mostly longer."""
    tokens = np.array([4] * 9 + [40] + [4] + [40] * 9)
    active = np.full((20, 2, 1, 1), 2)
    counts = RoutingCounts(active, np.stack([tokens, tokens], axis=1), (0,))
    unsafe = np.arange(20) >= 10
    pooled = estimate_risk_diff(counts, unsafe, np.zeros(20), estimator="pooled")
    matched = estimate_risk_diff(counts, unsafe, np.zeros(20), estimator="equal_length")
    assert pooled["risk_diff"][0] < -0.15
    assert matched["risk_diff"][0] == pytest.approx(0, abs=1e-12)


def contrast_of(seed: int, name: str) -> Contrast:
    counts, unsafe, batches = random_counts(seed)
    return build_contrast(counts, unsafe, batches, np.arange(len(counts)), name, "generation")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_drawing_a_response_twice_equals_having_it_twice(name: str) -> None:
    counts, unsafe, batches = random_counts(5)
    weight = np.random.default_rng(0).integers(0, 3, len(counts))
    twice = np.repeat(np.arange(len(counts)), weight)
    expected = estimate_risk_diff(
        counts.select(twice), unsafe[twice], batches[twice], estimator=name
    )
    contrast = build_contrast(counts, unsafe, batches, np.arange(len(counts)), name, "generation")
    drawn = weight[contrast.rows].astype(float)
    value = contrast.weighted_sum(contrast.coefficients(weight=drawn)[0])
    assert value == pytest.approx(expected["risk_diff"].to_numpy(), abs=1e-12)


@given(st.integers(0, 50), st.sampled_from(ESTIMATORS))
@settings(max_examples=30, deadline=None)
def test_each_class_has_weight_one(seed: int, name: str) -> None:
    contrast = contrast_of(seed, name)
    total = contrast.coefficients()[0] * contrast.size
    assert total[contrast.is_unsafe].sum() == pytest.approx(1)
    assert total[~contrast.is_unsafe].sum() == pytest.approx(-1)


@given(st.integers(0, 50), st.sampled_from(ESTIMATORS))
@settings(max_examples=20, deadline=None)
def test_exchanging_the_classes_turns_the_sign(seed: int, name: str) -> None:
    counts, unsafe, batches = random_counts(seed)
    there = estimate_risk_diff(counts, unsafe, batches, estimator=name)["risk_diff"]
    back = estimate_risk_diff(counts, ~unsafe, batches, estimator=name)["risk_diff"]
    assert there.to_numpy() == pytest.approx(-back.to_numpy(), abs=1e-12)


def test_a_resample_without_one_class_counts_for_nothing() -> None:
    contrast = contrast_of(1, "pooled")
    assert (contrast.coefficients(weight=contrast.is_unsafe.astype(float)) == 0).all()


def test_input_that_no_estimator_can_use_is_refused() -> None:
    counts, unsafe, batches = random_counts(0)
    with pytest.raises(RoutingError, match="unknown estimator 'median'; choose one of mean_over_b"):
        estimate_risk_diff(counts, unsafe, batches, estimator="median")
    with pytest.raises(RoutingError, match="no mixed batch has tokens of both classes"):
        estimate_risk_diff(counts, unsafe, np.full(len(counts), -1))
    with pytest.raises(RoutingError, match="no stratum of responses has tokens of both classes"):
        estimate_risk_diff(counts, np.ones(len(counts)), batches, estimator="pooled")
    with pytest.raises(RoutingError, match="2 clusters were given for 24 responses"):
        build_contrast(counts, unsafe, batches, [0, 1], "pooled", "generation")


def test_clusters_worked_by_hand() -> None:
    goals = ["a", "b", "a", "", "c", "", "d"]
    pairs = ["", "p", "q", "", "q", "p", ""]
    # a-a by goal; a(q)-c(q) by pair; b(p)-""(p) by pair; the other empty one and d stay alone.
    assert find_clusters(goals, pairs).tolist() == [0, 1, 0, 2, 0, 1, 3]
    assert find_clusters(goals).tolist() == [0, 1, 0, 2, 3, 4, 5]
    with pytest.raises(RoutingError, match="7 goals but 1 pair ids"):
        find_clusters(goals, ["p"])
