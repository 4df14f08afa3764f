"""The risk difference of tokens at equal positions in their replies.

Refusals are short, and openings route in a way of their own, so that an expert of openings looks safe where the safe
replies are refusals. Here the first tokens of the replies are compared with first tokens, the second with second ones,
and so on; later positions are taken together, those of one bin differing by less than a factor of 1.25. With U_b and
S_b tokens of the two classes in bin b,

    D = sum_b w_b (active share of the unsafe tokens of b - that of the safe ones),   w_b ~ U_b S_b / (U_b + S_b)

Counts per response do not tell positions, so the routed experts themselves are read, one response at a time.

Shape legend: N responses, B bins, T tokens of a reply, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steermoe.analysis.estimators import column_chunks
from steermoe.analysis.grouping import Grouping
from steermoe.analysis.linear import corrected_for_few
from steermoe.errors import RoutingError
from steermoe.records import NO_EXPERT, BoolArray, FloatArray, IntArray

EXACT_POSITIONS = 4
"""The first positions of a reply have a bin each."""

BIN_RATIO = 1.25
"""Positions of one later bin differ by less than this factor."""


@dataclass(frozen=True, slots=True)
class AtEqualPosition:
    """The estimate, with what is needed for its error. A `linear.Linear`.

    Attributes:
        weighted: `(N, L * E)` activations of each response, each with the weight of its position and class.
        per_bin: `(2, B, L * E)` share of the safe and of the unsafe tokens of a bin that are active.
        weight: `(N, B)` weight of each response's tokens of a bin, all together.
        is_unsafe: `(N,)`.
        owner_of: `(N,)` number of each response's cluster.
    """

    weighted: npt.NDArray[np.float32]
    per_bin: FloatArray
    weight: FloatArray
    is_unsafe: BoolArray
    owner_of: IntArray

    @property
    def owners(self) -> IntArray:
        """`(C,)`."""
        return np.unique(self.owner_of)

    @property
    def least_clusters(self) -> int:
        """Clusters of the rarest kind."""
        return min(map(len, self._groups()))

    def difference(self) -> FloatArray:
        """D of every expert, `(L * E,)`."""
        sign = np.where(self.is_unsafe, 1.0, -1.0)
        total = np.empty(self.weighted.shape[1])
        for columns in column_chunks(len(total)):
            total[columns] = sign @ self.weighted[:, columns]
        return total

    def influences(self, columns: IntArray | slice) -> FloatArray:
        """`(C, M)`: what the tokens of a cluster have above the rate of their class at their positions."""
        sign = np.where(self.is_unsafe, 1.0, -1.0)
        weighted = self.weighted[:, columns]
        usual = np.empty(weighted.shape)
        for unsafe in (False, True):
            rows = self.is_unsafe == unsafe
            usual[rows] = self.weight[rows] @ self.per_bin[int(unsafe)][:, columns]
        cluster = np.unique(self.owner_of, return_inverse=True)[1]
        parts = Grouping.of(cluster).sums(weighted - usual, sign)
        return corrected_for_few(parts, self._groups())

    def _groups(self) -> list[IntArray]:
        """Clusters of one kind: of both classes, unsafe only, safe only."""
        cluster = np.unique(self.owner_of, return_inverse=True)[1]
        has = [np.bincount(cluster, self.is_unsafe == unsafe) > 0 for unsafe in (False, True)]
        kinds = (has[0] & has[1], has[1] & ~has[0], has[0] & ~has[1])
        return [np.flatnonzero(kind) for kind in kinds if kind.any()]


def position_bins(num_tokens: int) -> IntArray:
    """The bin of each position of a reply, `(T,)`, ascending without gaps."""
    edge, edges = float(EXACT_POSITIONS), []
    while edge < num_tokens:
        edges.append(int(np.ceil(edge)))
        edge = max(edge * BIN_RATIO, edge + 1)
    later = np.searchsorted(edges, np.arange(EXACT_POSITIONS, num_tokens), side="right")
    first = np.arange(min(num_tokens, EXACT_POSITIONS))
    return np.concatenate([first, EXACT_POSITIONS - 1 + later]).astype(np.int64)


def at_equal_position(
    routings: Iterable[IntArray],
    num_tokens: IntArray,
    is_unsafe: BoolArray,
    owner_of: IntArray,
    num_experts: int,
) -> AtEqualPosition:
    """Compare the tokens of two classes of replies at equal positions.

    Args:
        routings: Routed experts `(T, L, K)` of each reply's tokens, in the order of the other arguments; read once.
        num_tokens: `(N,)` T of each reply.
        is_unsafe: `(N,)`.
        owner_of: `(N,)` number of each reply's cluster.
        num_experts: Experts of one layer, E.

    Raises:
        RoutingError: If no position has tokens of both classes, or a routing has another number of tokens than is said.
    """
    bins = position_bins(int(num_tokens.max(initial=0)))
    num_bins = int(bins[-1]) + 1 if len(bins) else 0
    of_bin = np.stack([np.bincount(bins[:t], minlength=num_bins) for t in num_tokens])  # (N, B)
    totals = np.stack([of_bin[is_unsafe == unsafe].sum(axis=0) for unsafe in (False, True)])
    shared = totals.prod(axis=0) / np.maximum(totals.sum(axis=0), 1)
    if shared.sum() == 0:
        raise RoutingError(
            "no position in a reply has tokens of both classes, so they cannot be compared at equal positions"
        )
    # (2, B): the weight of one token of a class, at the positions of a bin.
    a_token = shared / shared.sum() / np.maximum(totals, 1)
    weighted: npt.NDArray[np.float32] | None = None
    active: FloatArray | None = None  # (2, B, L * E)
    number = 0
    for place, routed in enumerate(routings):
        number = place + 1
        if number > len(num_tokens) or len(routed) != num_tokens[place]:
            raise RoutingError(
                f"reply {place} has {len(routed)} routed tokens, not as many as were counted; collect it again"
            )
        side = int(is_unsafe[place])
        num_keys = routed.shape[1] * num_experts
        if weighted is None or active is None:
            weighted = np.zeros((len(num_tokens), num_keys), dtype=np.float32)
            active = np.zeros((2, num_bins, num_keys))
        keys, at = _keys(routed, num_experts, bins)
        counted = np.bincount(at * num_keys + keys, minlength=num_bins * num_keys)
        active[side] += counted.reshape(num_bins, num_keys)
        weighted[place] = np.bincount(keys, a_token[side][at], minlength=num_keys)
    if weighted is None or active is None or number != len(num_tokens):
        raise RoutingError(f"{number} routings were given for {len(num_tokens)} replies")
    return AtEqualPosition(
        weighted,
        active / np.maximum(totals, 1)[:, :, None],
        of_bin * a_token[is_unsafe.astype(np.int64)],
        is_unsafe,
        owner_of,
    )


def _keys(routed: IntArray, num_experts: int, bins: IntArray) -> tuple[IntArray, IntArray]:
    """Place among all experts of every choice, and the bin of its token; spare slots left out."""
    num_tokens, num_layers, _ = routed.shape
    keys = routed + (np.arange(num_layers) * num_experts)[:, None]
    used = routed != NO_EXPERT
    at = np.broadcast_to(bins[:num_tokens, None, None], routed.shape)
    return keys[used], at[used]
