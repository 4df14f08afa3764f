"""What a measure is given of a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from steermoe.prompts.goals import normalised_goal
from steermoe.records import IntervalArguments, Metric, Prompt, Verdict

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Intervals:
    """How intervals are made.

    Attributes:
        confidence: Their level.
        num_bootstrap: Draws of the bootstrap over goals.
        seed: Seeds them.
    """

    confidence: float
    num_bootstrap: int
    seed: int

    def arguments(self) -> IntervalArguments:
        """As `analysis.rates` takes them."""
        return {
            "confidence": self.confidence,
            "num_bootstrap": self.num_bootstrap,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Side:
    """What is known of one variant.

    Attributes:
        verdicts: Of its replies, by prompt id; empty where it has not replied.
        texts: Its replies, by prompt id.
        scored: Quantity and prompt id to a value for each token: `kl`, `reply_log_prob`, `refusal_log_prob`, in nats.
            None where the variant was fed no texts.
        graded: Its answers to the items of `builtin:capability`, a table with `capability.grading.COLUMNS`; None where
            it was not asked.
    """

    verdicts: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    scored: Mapping[tuple[str, str], Sequence[float]] | None = None
    graded: pd.DataFrame | None = None


@dataclass(frozen=True, slots=True)
class VariantEvidence:
    """A variant on one set of prompts, beside what it is compared with.

    Attributes:
        variant: Its name.
        set: The name of the set.
        prompts: The prompts of the set, in the order of the run.
        own: What is known of it.
        reference: The same of the variant that it is compared with; None for the base model.
        reference_name: Which that is; empty for the base model.
        judge: Whose verdicts these are.
        intervals: How intervals are made.
        tokens: What part of the replies was fed, in words; empty for all of them.
    """

    variant: str
    set: str
    prompts: Mapping[str, Prompt]
    own: Side
    reference: Side | None
    reference_name: str
    judge: str
    intervals: Intervals
    tokens: str = ""

    def hits(self, side: Side, chosen: Sequence[str], hit: Verdict) -> list[bool | None]:
        """Whether the verdict on each of some prompts is a certain one; None where it is unscored."""
        verdicts = [side.verdicts[i] for i in chosen]
        return [None if v == Verdict.UNSCORED else v == hit for v in verdicts]

    def goals(self, chosen: Sequence[str]) -> list[str]:
        """The goal of each of some prompts, spelt alike where it is the same."""
        return [normalised_goal(self.prompts[i].goal) for i in chosen]

    def per_token(self, totals: Mapping[str, Sequence[float]]) -> Metric:
        """The mean of a quantity over all tokens of some prompts, with its interval."""
        from steermoe.analysis import (
            rates,  # its statistics library is slow to load, and words need none
        )

        return rates.mean_per_token(
            [total(values) for values in totals.values()],
            [len(values) for values in totals.values()],
            self.goals(list(totals)),
            **self.intervals.arguments(),
        )

    def values_of(
        self, side: Side, quantity: str, chosen: Sequence[str]
    ) -> dict[str, Sequence[float]]:
        """A quantity of each token, of the prompts of which it is known."""
        scored = side.scored or {}
        return {i: scored[quantity, i] for i in chosen if (quantity, i) in scored}


def total(values: Sequence[float]) -> float:
    """The sum, from the first to the last: the same on every machine."""
    return reduce(add, values, 0.0)
