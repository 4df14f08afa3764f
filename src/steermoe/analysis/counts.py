"""From routed experts to activation counts per response.

Counts are kept per response and never only per class: the tokens of one reply are not independent, so
every interval, permutation and bootstrap needs the response as its unit.

Shape legend: N responses, S segments (prompt, generation), T tokens, P prompt tokens, G generated
tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steermoe.errors import RoutingError
from steermoe.records import NO_EXPERT, IntArray, ResponseSums

Segment = Literal["prompt", "generation"]

SEGMENTS: tuple[Segment, Segment] = ("prompt", "generation")
"""Order of the segment axis wherever one appears."""

CHUNK_IDS = 1 << 18
"""Ids counted at a time: a chunk's 64-bit keys then stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class RoutingCounts:
    """How often each expert was active, for each response and segment.

    Attributes:
        active: `(N, 2, L, E)` tokens of the segment for which the expert is among the top-k.
        num_tokens: `(N, 2)` tokens of the segment; of a run's prompts, those that not every prompt has
            (`find_shared_tokens`).
        layer_indices: Decoder-layer index of each row of the layer axis.

    Raises:
        RoutingError: If the shapes do not belong together, or an expert is active more often than
            there are tokens.
    """

    active: IntArray
    num_tokens: IntArray
    layer_indices: tuple[int, ...]

    def __post_init__(self) -> None:
        active, num_tokens = self.active, self.num_tokens
        if active.ndim != 4 or active.shape[1] != len(SEGMENTS):
            raise RoutingError(
                f"counts have shape {active.shape}; (responses, 2, layers, experts) is needed"
            )
        if num_tokens.shape != active.shape[:2]:
            raise RoutingError(
                f"token counts have shape {num_tokens.shape}, which does not fit "
                f"{active.shape[0]} responses; give (responses, 2)"
            )
        check_layer_indices(self.layer_indices, active.shape[2])
        if active.size == 0:
            return
        if int(active.min()) < 0 or bool((active.max(axis=(2, 3)) > num_tokens).any()):
            raise RoutingError(
                "an expert is counted less than 0 times or more often than there are tokens; "
                "collect the routing again"
            )

    def __len__(self) -> int:
        return int(self.active.shape[0])

    @property
    def num_layers(self) -> int:
        """MoE layers, L."""
        return int(self.active.shape[2])

    @property
    def num_experts(self) -> int:
        """Routed experts of one layer, E."""
        return int(self.active.shape[3])

    def select(self, responses: npt.ArrayLike) -> RoutingCounts:
        """The counts of some responses, given by a boolean mask or by positions."""
        rows = np.asarray(responses)
        return RoutingCounts(self.active[rows], self.num_tokens[rows], self.layer_indices)

    def segment(self, name: Segment) -> tuple[IntArray, IntArray]:
        """Counts `(N, L, E)` and tokens `(N,)` of one segment."""
        if name not in SEGMENTS:
            raise RoutingError(f"unknown segment '{name}'; choose prompt or generation")
        position = SEGMENTS.index(name)
        return self.active[:, position], self.num_tokens[:, position]


PerResponse = RoutingCounts | ResponseSums
"""What an expert is compared by, of each response: how often it was active, or any other sum over tokens."""


def count_active(routed_experts: IntArray, num_experts: int) -> IntArray:
    """Count, for each layer and expert, the tokens that were routed to it.

    Args:
        routed_experts: `(T, L, K)` expert ids, of any integer type, or `NO_EXPERT` in spare slots; T may
            be 0.
        num_experts: Experts of one layer, E.

    Returns:
        `(L, E)` int64 counts. A layer's row sums to T * K, less its spare slots.

    Raises:
        RoutingError: If the array has another shape or type, an id is neither `NO_EXPERT` nor in
            0 .. E-1, or an expert appears twice among the choices of a token (seen where it makes a
            count exceed T).
    """
    routed = np.asarray(routed_experts)
    if routed.ndim != 3 or not np.issubdtype(routed.dtype, np.integer):
        raise RoutingError(
            f"routed experts are {routed.dtype} {routed.shape}; "
            "an integer array (tokens, layers, top_k) is needed"
        )
    num_tokens, num_layers, top_k = routed.shape
    counts = np.zeros(num_layers * num_experts, dtype=np.int64)
    if routed.size == 0:
        return counts.reshape(num_layers, num_experts)
    tokens_at_a_time = max(1, CHUNK_IDS // (num_layers * top_k))
    first_key = (np.arange(num_layers, dtype=np.intp) * num_experts)[:, None]  # (L, 1)
    keys = np.empty((min(tokens_at_a_time, num_tokens), num_layers, top_k), dtype=np.intp)
    for start in range(0, num_tokens, tokens_at_a_time):
        chunk = routed[start : start + tokens_at_a_time]
        lowest = int(chunk.min())
        # An id past the end would silently count for the next layer.
        if int(chunk.max()) >= num_experts or lowest < NO_EXPERT:
            raise RoutingError(
                f"routed experts hold the id {_first_bad_id(chunk, num_experts)}, but the layers have "
                f"{num_experts} experts (0 .. {num_experts - 1}); check the number of experts"
            )
        np.add(chunk, first_key, out=keys[: len(chunk)], casting="unsafe")
        counted = keys[: len(chunk)].ravel()
        if lowest == NO_EXPERT:
            counted = counted[chunk.ravel() != NO_EXPERT]
        counts += np.bincount(counted, minlength=counts.size)
    if int(counts.max()) > num_tokens:
        raise RoutingError(
            f"an expert was chosen {int(counts.max())} times for {num_tokens} tokens, so some token "
            "chose it twice; check that the rows are top-k expert ids"
        )
    return counts.reshape(num_layers, num_experts)


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """How many tokens all prompts of a run begin with, and how many they end with.

    Attributes:
        leading: The chat template's beginning, a system turn.
        trailing: The end of the user's turn, and what begins the model's.
    """

    leading: int = 0
    trailing: int = 0


def find_shared_tokens(prompts: Iterable[Sequence[int]]) -> SharedTokens:
    """Find the tokens that all prompts of a run share at either end.

    They are the same on both sides of every contrast, so they are no part of the segment `prompt`. Equal ids count:
    a model that looks back routes shared trailing tokens by what comes before them, but they are the template's all
    the same.

    Args:
        prompts: Token ids of each prompt, in any order; read once.

    Returns:
        The two numbers. Leading tokens are found first, and no token counts for both. Nothing is shared where all
        prompts are the same, one prompt only among them: what is template and what is content cannot be told there.
        A prompt may hold nothing but shared tokens; then it has no token of its own.

    Example:
        >>> find_shared_tokens([[1, 2, 7, 8, 9], [1, 2, 9], [1, 2, 5, 9]])
        SharedTokens(leading=2, trailing=1)
    """
    first: npt.NDArray[np.int64] | None = None
    leading = trailing = shortest = 0
    differ = False
    for ids in prompts:
        prompt = np.asarray(ids, dtype=np.int64)
        if first is None:
            first = prompt
            leading = trailing = shortest = len(prompt)
            continue
        differ = differ or not np.array_equal(prompt, first)
        shortest = min(shortest, len(prompt))
        leading = _num_equal(first[:leading], prompt)
        trailing = _num_equal(first[len(first) - trailing :][::-1], prompt[::-1])
    if not differ:
        return SharedTokens()
    return SharedTokens(leading, min(trailing, shortest - leading))


def _num_equal(first: IntArray, second: IntArray) -> int:
    """How many elements two arrays have in common at their beginning."""
    number = min(len(first), len(second))
    unequal = np.flatnonzero(first[:number] != second[:number])
    return int(unequal[0]) if len(unequal) else number


def count_response(
    routed_experts: IntArray,
    num_prompt_tokens: int,
    num_experts: int,
    shared: SharedTokens | None = None,
) -> tuple[IntArray, IntArray]:
    """Count one response, its prompt and its generated tokens apart.

    Args:
        routed_experts: `(P + G - 1, L, K)` ids: the prompt's rows come first, and the last generated
            token has none. `(P, L, K)` when nothing was generated.
        num_prompt_tokens: P.
        num_experts: E.
        shared: Tokens at the prompt's ends that are left out, because every prompt has them (`find_shared_tokens`).

    Returns:
        Counts `(2, L, E)` int32 and tokens counted `(2,)` int32; segments as in `SEGMENTS`.

    Raises:
        RoutingError: As `count_active`, or if there are fewer rows than prompt tokens, or fewer prompt tokens than
            shared ones.
    """
    prompt, generation = _split(np.asarray(routed_experts), num_prompt_tokens)
    ends = shared or SharedTokens()
    if ends.leading + ends.trailing > num_prompt_tokens:
        raise RoutingError(
            f"a prompt has {num_prompt_tokens} tokens, but {ends.leading} + {ends.trailing} are said to be shared by "
            "all; find the shared tokens of all prompts that are counted"
        )
    prompt = prompt[ends.leading : num_prompt_tokens - ends.trailing]
    active = np.stack([count_active(part, num_experts) for part in (prompt, generation)])
    num_tokens = np.array([len(prompt), len(generation)], dtype=np.int32)
    return active.astype(np.int32), num_tokens


def separate_prompt_and_generation_routings(output: object) -> tuple[IntArray, IntArray]:
    """The routed experts of one response, its prompt and its generated tokens apart.

    Args:
        output: Anything that has, as attributes or as keys, `routed_experts` `(P + G - 1, L, K)` and
            `prompt_token_ids` (P of them).

    Returns:
        `(P, L, K)` for the prompt and `(max(G - 1, 0), L, K)` for the reply.

    Raises:
        RoutingError: If one of the two is missing, or there are fewer rows than prompt tokens.

    Example:
        >>> output = {"prompt_token_ids": [5, 6], "routed_experts": np.zeros((3, 1, 1), dtype=int)}
        >>> [part.shape for part in separate_prompt_and_generation_routings(output)]
        [(2, 1, 1), (1, 1, 1)]
    """
    routed_experts = read(output, "routed_experts")
    prompt_token_ids = read(output, "prompt_token_ids")
    return _split(np.asarray(routed_experts), len(prompt_token_ids))


def read(record: object, name: str) -> Any:
    """One value of a record, whether it is kept under a key or as an attribute.

    Raises:
        RoutingError: If there is none.
    """
    value = read_or_none(record, name)
    if value is None:
        raise RoutingError(
            f"a {type(record).__name__} without '{name}' was given; pass what collecting returned"
        )
    return value


def read_or_none(record: object, name: str) -> Any:
    """As `read`, but None where the record has no such value."""
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)


def check_layer_indices(layer_indices: Sequence[int], num_layers: int) -> None:
    """Refuse layer indices that do not name each of the L layers once, in ascending order.

    Raises:
        RoutingError: With the number found and the number needed.
    """
    if len(layer_indices) != num_layers:
        raise RoutingError(
            f"{len(layer_indices)} layer indices were given for {num_layers} MoE layers; give one a layer"
        )
    if any(a >= b for a, b in pairwise(layer_indices)):
        raise RoutingError(f"layer indices must ascend without repeats, got {list(layer_indices)}")


def _split(routed_experts: IntArray, num_prompt_tokens: int) -> tuple[IntArray, IntArray]:
    if routed_experts.ndim != 3:
        raise RoutingError(
            f"routed experts have shape {routed_experts.shape}; (tokens, layers, top_k) is needed"
        )
    if not 0 <= num_prompt_tokens <= len(routed_experts):
        raise RoutingError(
            f"routed experts cover {len(routed_experts)} tokens, but the prompt has "
            f"{num_prompt_tokens}; collect the response again"
        )
    return routed_experts[:num_prompt_tokens], routed_experts[num_prompt_tokens:]


def _first_bad_id(chunk: IntArray, num_experts: int) -> int:
    wrong = (chunk < NO_EXPERT) | (chunk >= num_experts)
    return int(chunk[wrong][0])
