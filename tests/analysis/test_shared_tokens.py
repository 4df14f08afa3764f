"""Tokens that every prompt of a run shares: found at both ends, and no part of the segment `prompt`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.analysis.counts import SharedTokens, count_response, find_shared_tokens
from steermoe.errors import RoutingError
from steermoe.records import Label, Output, Prompt, Split
from steermoe.store.directory import RunDirectory
from steermoe.store.response_tables import shard_row


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[1, 2, 7, 8, 9], [1, 2, 9], [1, 2, 5, 9]], (2, 1)),
        ([[1, 3], [2, 3]], (0, 1)),
        ([[1, 3], [1, 2]], (1, 0)),
        ([[1, 2], [3, 4]], (0, 0)),
        ([[1, 1], [1, 1, 1]], (2, 0)),  # no token counts for both ends
        ([[1, 1, 1], [1, 1]], (2, 0)),
        ([[1, 9], [1, 5, 9]], (1, 1)),  # the first prompt is nothing but shared tokens
        ([[4, 5, 6]], (0, 0)),  # what is template, what is content?
        ([[4, 5, 6], [4, 5, 6]], (0, 0)),
        ([[], [1]], (0, 0)),
        ([], (0, 0)),
    ],
    ids=str,
)
def test_shared_tokens_worked_by_hand(
    prompts: Sequence[Sequence[int]], expected: tuple[int, int]
) -> None:
    assert find_shared_tokens(iter(prompts)) == SharedTokens(*expected)


prompt_lists = st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=2, max_size=5)


@given(prompt_lists)
def test_shared_tokens_are_those_of_a_loop_and_their_order_does_not_matter(
    prompts: list[list[int]],
) -> None:
    shortest = min(map(len, prompts))
    leading = 0
    while leading < shortest and len({p[leading] for p in prompts}) == 1:
        leading += 1
    trailing = 0
    while trailing < shortest - leading and len({p[-1 - trailing] for p in prompts}) == 1:
        trailing += 1
    if len({tuple(p) for p in prompts}) == 1:
        leading = trailing = 0
    for order in (prompts, prompts[::-1]):
        assert find_shared_tokens(order) == SharedTokens(leading, trailing)


def test_shared_tokens_are_counted_for_no_segment() -> None:
    routed = np.array([0, 1, 1, 2, 0, 2])[:, None, None]  # four prompt tokens, two of the reply
    active, tokens = count_response(routed, 4, 3, SharedTokens(1, 2))
    assert active.tolist() == [[[0, 1, 0]], [[1, 0, 1]]]
    assert tokens.tolist() == [1, 2]
    nothing, none = count_response(routed, 4, 3, SharedTokens(3, 1))
    assert (nothing[0].sum(), none.tolist()) == (0, [0, 2])
    with pytest.raises(RoutingError, match=r"4 tokens, but 3 \+ 2 are said to be shared"):
        count_response(routed, 4, 3, SharedTokens(3, 2))


def test_a_run_leaves_the_shared_tokens_of_all_shards_out_and_says_how_many(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.create()
    # Template tokens 90 91 .. 92 go to expert 0; what is asked to expert 1; replies to expert 2.
    for index, asked in enumerate(([5], [6, 7, 8])):
        ids = (90, 91, *asked, 92)
        routed = np.array([0, 0, *[1] * len(asked), 0, 2], np.uint8).reshape(-1, 1, 1)
        messages = ({"role": "user", "content": "?"},)
        prompt = Prompt(f"p{index}", Label.BENIGN, messages, f"goal {index}", split=Split.TRAIN)
        output = Output("text", messages, "reply", ids, (1, 2), routed, (7,))
        run.write_shard("responses", index, [shard_row(prompt, output, -1, -1)])
    run.merge_shards("responses", 2, (1, 3), {"layer_indices": "[7]", "top_k": "1"})
    counts = run.read_counts()
    assert counts.num_tokens.tolist() == [[1, 1], [3, 1]]
    assert counts.active[:, 0, 0].tolist() == [[0, 1, 0], [0, 3, 0]]
    assert counts.active[:, 1, 0].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert json.loads(run.routing_metadata()["shared_prompt_tokens"]) == [2, 1]
    assert run.read_replies()["num_prompt_tokens"].tolist() == [4, 6]
