"""Counting routed experts: hand-worked cases, an independent count, and malformed input."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.analysis import counts as counts_module
from steermoe.analysis.counts import (
    RoutingCounts,
    count_active,
    count_response,
    separate_prompt_and_generation_routings,
)
from steermoe.errors import RoutingError
from steermoe.records import Output


def test_counts_worked_by_hand() -> None:
    routed = np.array([[[0, 1], [2, 0]], [[1, 2], [2, 1]]])  # 2 tokens, 2 layers, top-2 of 3
    assert count_active(routed, 3).tolist() == [[1, 2, 1], [1, 1, 2]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_counts_equal_a_loop_over_tokens_across_chunk_borders(
    dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts_module, "CHUNK_IDS", 40)
    generator = np.random.default_rng(1)
    routed = np.array(
        [[generator.permutation(200)[:3] for _ in range(4)] for _ in range(37)], dtype=dtype
    )
    expected = np.zeros((4, 200), dtype=int)
    for token in routed.tolist():
        for layer, chosen in enumerate(token):
            for expert in chosen:
                expected[layer, expert] += 1
    assert (count_active(routed, 200) == expected).all()


@given(st.integers(0, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32))
def test_a_layers_counts_sum_to_tokens_times_top_k(
    num_tokens: int, num_layers: int, top_k: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    routed = generator.permuted(np.tile(np.arange(6), (num_tokens, num_layers, 1)), axis=2)
    active = count_active(routed[..., :top_k], 6)
    assert active.shape == (num_layers, 6)
    assert (active.sum(axis=1) == num_tokens * top_k).all()


def test_spare_slots_are_counted_for_no_expert() -> None:
    # Two tokens, two layers, top-2 of 3; the second layer leaves one slot of each token spare.
    routed = np.array([[[0, 1], [2, -1]], [[1, 2], [-1, 0]]])
    assert count_active(routed, 3).tolist() == [[1, 2, 1], [1, 0, 1]]
    assert count_active(np.full((2, 1, 2), -1), 3).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("bad_id", [-2, 4, 255])
def test_an_id_outside_the_layer_is_refused_not_counted_elsewhere(bad_id: int) -> None:
    routed = np.array([[[0], [bad_id]], [[1], [2]]])
    with pytest.raises(RoutingError, match=rf"id {bad_id}, but the layers have 4 experts"):
        count_active(routed, 4)


def test_an_expert_chosen_twice_by_every_token_is_refused() -> None:
    with pytest.raises(RoutingError, match="chosen 4 times for 2 tokens"):
        count_active(np.zeros((2, 1, 2), dtype=int), 3)


@pytest.mark.parametrize("routed", [np.zeros((2, 2), dtype=int), np.zeros((2, 1, 1))])
def test_routed_experts_of_wrong_shape_or_type_are_refused(routed: np.ndarray) -> None:
    with pytest.raises(RoutingError, match=r"an integer array \(tokens, layers, top_k\) is needed"):
        count_active(routed, 3)


def test_prompt_and_generation_are_counted_apart() -> None:
    routed = np.array([[[0]], [[1]], [[1]], [[2]]])
    active, num_tokens = count_response(routed, num_prompt_tokens=3, num_experts=3)
    assert active.tolist() == [[[1, 2, 0]], [[0, 0, 1]]]
    assert num_tokens.tolist() == [3, 1]


def test_a_response_without_generated_rows_has_no_generated_tokens() -> None:
    active, num_tokens = count_response(np.zeros((3, 2, 1), dtype=np.uint8), 3, 5)
    assert num_tokens.tolist() == [3, 0]
    assert active[1].sum() == 0


def test_fewer_rows_than_prompt_tokens_are_refused() -> None:
    with pytest.raises(RoutingError, match="cover 3 tokens, but the prompt has 4"):
        count_response(np.zeros((3, 1, 1), dtype=int), 4, 2)


@dataclasses.dataclass
class VllmLike:
    prompt_token_ids: list[int]
    routed_experts: np.ndarray


def test_segments_separate_for_records_mappings_and_objects() -> None:
    routed = np.arange(5).reshape(5, 1, 1)
    record = Output("p", (), "text", (7, 8), (1, 2, 3, 4), routed)
    mapping = {"prompt_token_ids": [7, 8], "routed_experts": routed}
    for output in (record, mapping, VllmLike([7, 8], routed)):
        prompt, generation = separate_prompt_and_generation_routings(output)
        assert prompt.ravel().tolist() == [0, 1]
        assert generation.ravel().tolist() == [2, 3, 4]


def test_an_output_without_routing_is_refused_by_name() -> None:
    with pytest.raises(RoutingError, match="without 'routed_experts'"):
        separate_prompt_and_generation_routings({"prompt_token_ids": [1]})


def test_counts_that_do_not_belong_together_are_refused() -> None:
    active = np.ones((3, 2, 2, 4), dtype=np.int32)
    tokens = np.ones((3, 2), dtype=np.int32)
    assert len(RoutingCounts(active, tokens, (1, 2))) == 3
    with pytest.raises(RoutingError, match="1 layer indices were given for 2"):
        RoutingCounts(active, tokens, (1,))
    with pytest.raises(RoutingError, match="ascend"):
        RoutingCounts(active, tokens, (2, 1))
    with pytest.raises(RoutingError, match="does not fit"):
        RoutingCounts(active, tokens[:2], (1, 2))
    with pytest.raises(RoutingError, match="more often than there are tokens"):
        RoutingCounts(active, tokens * 0, (1, 2))
    with pytest.raises(RoutingError, match=r"\(responses, 2, layers, experts\)"):
        RoutingCounts(active[:, 0], tokens, (1, 2))


def test_selecting_responses_keeps_rows_together() -> None:
    active = np.arange(3 * 2 * 2).reshape(3, 2, 1, 2)
    counts = RoutingCounts(active, np.full((3, 2), 99), (4,))
    chosen = counts.select(np.array([True, False, True]))
    assert chosen.active[:, 0, 0, 0].tolist() == [0, 8]
    assert chosen.layer_indices == (4,)
    assert counts.segment("generation")[0][0].tolist() == [[2, 3]]
    with pytest.raises(RoutingError, match="unknown segment"):
        counts.segment("both")
