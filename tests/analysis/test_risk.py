"""Risk difference: hand-worked numbers, agreement of the two routes, and odd cases."""

import numpy as np
import pandas as pd
import pytest

from steermoe.analysis.counts import RoutingCounts, count_active
from steermoe.analysis.risk import (
    PER_BATCH_COLUMNS,
    RISK_COLUMNS,
    aggregate_batch_risk_diffs,
    calculate_risk_diff,
    calculate_risk_diff_per_batch,
    risk_tables,
)
from steermoe.errors import RoutingError
from steermoe.records import MixedBatch


def one_layer(*experts: int) -> np.ndarray:
    """Routing of one layer, top-1, one token each."""
    return np.array(experts, dtype=np.int64).reshape(-1, 1, 1)


def batch_of(batch_idx: int, safe: list[np.ndarray], unsafe: list[np.ndarray]) -> MixedBatch:
    return MixedBatch(batch_idx, [], [], [], safe, unsafe)


def random_routings(seed: int, lengths: list[int], experts: int = 5) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [
        np.array([[generator.permutation(experts)[:2] for _ in range(3)] for _ in range(length)])
        if length
        else np.zeros((0, 3, 2), dtype=int)
        for length in lengths
    ]


def test_a_batch_worked_by_hand() -> None:
    # Safe: 4 tokens, expert 0 in 3, expert 1 in 1. Unsafe: 2 tokens, both on expert 1.
    batch = batch_of(3, [one_layer(0, 0, 0), one_layer(1)], [one_layer(1, 1)])
    table = calculate_risk_diff_per_batch(batch, num_experts=3)
    assert list(table.columns) == PER_BATCH_COLUMNS
    assert table["batch_idx"].tolist() == [3, 3, 3]
    assert table["a_safe"].tolist() == [3, 1, 0]
    assert table["a_unsafe"].tolist() == [0, 2, 0]
    assert set(table["n_safe"]) == {4} and set(table["n_unsafe"]) == {2}
    assert table["a_safe_n"].tolist() == [0.75, 0.25, 0.0]
    assert table["risk_diff"].tolist() == [-0.75, 0.75, 0.0]


def test_a_mapping_is_as_good_as_a_record_and_keeps_its_layer_indices() -> None:
    batch = {
        "batch_idx": 0,
        "safe_routings": [one_layer(0)],
        "unsafe_routings": [one_layer(1)],
        "layer_indices": (5,),
    }
    assert calculate_risk_diff_per_batch(batch, 2)["layer"].tolist() == [5, 5]
    assert calculate_risk_diff_per_batch(batch, 2, layer_indices=[9])["layer"].tolist() == [9, 9]


def test_aggregation_worked_by_hand() -> None:
    # Expert 1: batch 0 has 1/1 - 0/1 = 1; batch 1 has 0/3 - 1/2 = -0.5. Mean 0.25.
    # Pooled: 1 of 4 unsafe tokens, 1 of 3 safe tokens: 1/4 - 1/3.
    tables = [
        calculate_risk_diff_per_batch(batch_of(0, [one_layer(0)], [one_layer(1)]), 2),
        calculate_risk_diff_per_batch(batch_of(1, [one_layer(0, 1)], [one_layer(0, 0, 0)]), 2),
    ]
    table = aggregate_batch_risk_diffs(tables)
    assert list(table.columns) == RISK_COLUMNS
    assert table["Layer_Expert"].tolist() == ["L00_E01", "L00_E00"]
    assert table["risk_diff"].tolist() == [0.25, -0.25]
    assert table["risk_diff_pooled"].tolist() == pytest.approx([1 / 4 - 1 / 3, 1 / 3 - 1 / 4])
    top = table.iloc[0]
    assert (top["a_safe"], top["a_unsafe"], top["n_safe"], top["n_unsafe"]) == (1, 1, 3, 4)
    assert (top["a_safe_n"], top["a_unsafe_n"]) == (0.25, 0.5)


def test_mean_equals_the_plain_mean_of_the_batches_and_ignores_their_order() -> None:
    tables = [
        calculate_risk_diff_per_batch(
            batch_of(i, random_routings(i, [3, 5]), random_routings(100 + i, [4, 0, 7])), 5
        )
        for i in range(6)
    ]
    table = aggregate_batch_risk_diffs(tables)
    for row in table.itertuples():
        differences = [
            float(t.loc[(t.layer == row.layer) & (t.expert == row.expert), "risk_diff"].iloc[0])
            for t in tables
        ]
        assert row.risk_diff == pytest.approx(sum(differences) / 6, abs=1e-15)
    assert table["risk_diff"].is_monotonic_decreasing
    pd.testing.assert_frame_equal(table, aggregate_batch_risk_diffs(tables[::-1]), check_exact=True)


def test_ties_are_ordered_by_layer_and_expert() -> None:
    table = calculate_risk_diff([one_layer(0)], [one_layer(0)], 4)
    assert table["expert"].tolist() == [0, 1, 2, 3]
    assert (table["risk_diff"] == 0).all()


def test_global_counting_pools_the_tokens() -> None:
    table = calculate_risk_diff([one_layer(0, 0, 1), one_layer(0)], [one_layer(1, 1)], 2)
    assert table["risk_diff"].tolist() == [0.75, -0.75]
    assert table["risk_diff_pooled"].tolist() == table["risk_diff"].tolist()


def test_layer_indices_name_decoder_layers_and_can_be_chosen() -> None:
    batch = batch_of(0, random_routings(0, [4]), random_routings(1, [4]))
    table = calculate_risk_diff_per_batch(batch, 5, layer_indices=[1, 2, 7])
    assert sorted(set(table["layer"])) == [1, 2, 7]
    assert set(aggregate_batch_risk_diffs([table], layer_indices=[7])["layer"]) == {7}
    with pytest.raises(RoutingError, match=r"no layers \[3\]"):
        aggregate_batch_risk_diffs([table], layer_indices=[3])
    with pytest.raises(RoutingError, match="2 layer indices were given for 3"):
        calculate_risk_diff_per_batch(batch, 5, layer_indices=[1, 2])


def counts_of(routings: list[np.ndarray], experts: int) -> RoutingCounts:
    """Counts whose prompt segment is empty."""
    generated = np.array([count_active(routed, experts) for routed in routings])
    active = np.stack([np.zeros_like(generated), generated], axis=1)
    tokens = np.array([[0, len(routed)] for routed in routings])
    return RoutingCounts(active, tokens, tuple(range(active.shape[2])))


def test_counts_and_routings_give_the_same_tables() -> None:
    batches = [
        batch_of(i, random_routings(i, [3, 5]), random_routings(50 + i, [6, 2])) for i in range(3)
    ]
    tables = [calculate_risk_diff_per_batch(batch, 5) for batch in batches]
    routings = [r for b in batches for r in (*b.safe_routings, *b.unsafe_routings)]
    result = risk_tables(
        counts_of(routings, 5), [False, False, True, True] * 3, np.repeat([0, 1, 2], 4)
    )
    pd.testing.assert_frame_equal(result.per_batch, pd.concat(tables, ignore_index=True))
    pd.testing.assert_frame_equal(
        result.aggregated, aggregate_batch_risk_diffs(tables), check_exact=True
    )
    assert result.notes == ()


def test_leftover_responses_enter_only_the_pooled_figures() -> None:
    routings = [one_layer(0), one_layer(1), one_layer(1, 1), one_layer(0)]
    result = risk_tables(counts_of(routings, 2), [False, True, False, True], [0, 0, -1, -1])
    top = result.aggregated.iloc[0]
    assert (top["expert"], top["risk_diff"]) == (1, 1.0)
    # Unsafe: 1 of 2 tokens on expert 1. Safe: 2 of 3.
    assert top["risk_diff_pooled"] == pytest.approx(1 / 2 - 2 / 3)
    assert (top["a_safe"], top["n_safe"], top["a_unsafe"], top["n_unsafe"]) == (2, 3, 1, 2)
    assert result.notes == ("2 responses are in no mixed batch and enter only the pooled figures",)


def test_a_batch_without_tokens_of_a_class_is_left_out_of_the_mean_and_counted() -> None:
    routings = [one_layer(0), one_layer(1), one_layer(1), np.zeros((0, 1, 1), dtype=int)]
    result = risk_tables(counts_of(routings, 2), [False, True, False, True], [0, 0, 4, 4])
    assert set(result.per_batch["batch_idx"]) == {0}
    assert result.aggregated.iloc[0]["risk_diff"] == 1.0
    assert result.aggregated.iloc[0]["risk_diff_pooled"] == 1 - 1 / 2
    assert "1 of 2 batches have no tokens of one class" in result.notes[0]
    assert not result.aggregated.isna().any().any()


def test_without_batches_the_mean_is_the_pooled_figure() -> None:
    result = risk_tables(counts_of([one_layer(0), one_layer(1)], 2), [False, True], [-1, -1])
    assert result.per_batch.empty and list(result.per_batch.columns) == PER_BATCH_COLUMNS
    assert result.aggregated["risk_diff"].tolist() == [1.0, -1.0]


def test_a_class_without_tokens_is_an_error_that_names_it() -> None:
    empty = np.zeros((0, 1, 1), dtype=int)
    with pytest.raises(RoutingError, match="no unsafe tokens recorded in batch 2"):
        calculate_risk_diff_per_batch(batch_of(2, [one_layer(0)], [empty]), 2)
    with pytest.raises(RoutingError, match="no safe tokens recorded,"):
        calculate_risk_diff([empty], [one_layer(0)], 2)
    with pytest.raises(RoutingError, match="no unsafe response was given"):
        calculate_risk_diff([one_layer(0)], [], 2)
    with pytest.raises(RoutingError, match="no safe tokens recorded in the segment 'prompt'"):
        risk_tables(
            RoutingCounts(np.eye(2, dtype=int).reshape(2, 2, 1, 1), np.eye(2, dtype=int), (0,)),
            [True, False],
            [0, 0],
            segment="prompt",
        )
    with pytest.raises(RoutingError, match="none of 2 batches has tokens of both classes"):
        risk_tables(counts_of([one_layer(0), one_layer(1)], 2), [False, True], [0, 1])


def test_malformed_input_is_refused() -> None:
    with pytest.raises(RoutingError, match="no batch to aggregate"):
        aggregate_batch_risk_diffs([])
    with pytest.raises(RoutingError, match="lacks the columns"):
        aggregate_batch_risk_diffs([pd.DataFrame({"layer": [0]})])
    small = calculate_risk_diff_per_batch(batch_of(0, [one_layer(0)], [one_layer(1)]), 2)
    large = calculate_risk_diff_per_batch(batch_of(1, [one_layer(0)], [one_layer(1)]), 3)
    with pytest.raises(RoutingError, match="do not hold the same experts"):
        aggregate_batch_risk_diffs([small, large])
    with pytest.raises(RoutingError, match="do not hold the same experts"):
        aggregate_batch_risk_diffs([small, small])
    with pytest.raises(RoutingError, match="routings of different"):
        calculate_risk_diff([one_layer(0)], [np.zeros((1, 2, 1), dtype=int)], 2)
    with pytest.raises(RoutingError, match="one value a response"):
        risk_tables(counts_of([one_layer(0)], 2), [True, False], [0])
