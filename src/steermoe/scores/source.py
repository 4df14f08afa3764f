"""What a score is computed from.

Shape legend: N responses of the run, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from steermoe.analysis.counts import RoutingCounts
from steermoe.errors import RoutingError
from steermoe.records import RECORDED_SUMS, IntArray, Output, Prompt, ResponseSums


@dataclass(frozen=True, slots=True)
class Source:
    """All responses of a run, in the order of `responses.parquet`.

    Attributes:
        prompts: `(N,)` what was asked.
        counts: How often each expert was active.
        recorded: The sums that collecting has recorded, by score; None where it has not.
        outputs: Replies with their tokens and routed experts, one after the other, in order.
        unsafe: Which responses are the unsafe ones that are compared, by place.
        safe: Which are the safe ones.
        loaded: The model, `loading.LoadedModel`, for a score that needs it.
    """

    prompts: Sequence[Prompt]
    counts: RoutingCounts
    recorded: Callable[[str], ResponseSums | None]
    outputs: Callable[[], Iterator[Output]]
    unsafe: IntArray
    safe: IntArray
    loaded: Any = None

    def recorded_sums(self, score: str) -> ResponseSums:
        """The sums of a score that collecting records.

        Raises:
            RoutingError: The run was collected without them.
        """
        sums = self.recorded(score)
        if sums is None:
            raise RoutingError(
                f"the run has no sums of the score {score}: it was collected by an engine or a steermoe that does not "
                "record them; collect it again, or rank by risk_diff"
                if score in RECORDED_SUMS
                else f"the run has no sums of the pass {score!r}; name a score that needs it in identify.scores"
            )
        return sums
