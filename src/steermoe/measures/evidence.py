"""What a measure is given of a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from steermoe.metrics import IntervalArguments, MeasureRow, Metric
from steermoe.prompts.goals import normalised_goal
from steermoe.records import Prompt, Verdict

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
        answers: What of them is meant for the user, by prompt id; None where a reply ended before that.
        num_tokens: How many tokens each has, reasoning and the end of turn included.
        token_ids: Those tokens, of the replies of which they were kept.
        scored: Quantity and prompt id to a value for each token: `kl`, `reply_log_prob`, `refusal_log_prob`, in nats.
            None where the variant was fed no texts.
        graded: Its answers to the items of `builtin:capability`, a table with `capability.grading.COLUMNS`; None where
            it was not asked.
        text: Log-probability of each token of the user's text, in nats, window by window; empty where it read none.
    """

    verdicts: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, str | None] = field(default_factory=dict)
    num_tokens: Mapping[str, int] = field(default_factory=dict)
    token_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    scored: Mapping[tuple[str, str], Sequence[float]] | None = None
    text: Sequence[Sequence[float]] = ()
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

    def replied(self, chosen: Sequence[str]) -> list[str]:
        """Those of some prompts to which this variant, and the one that it is compared with, have replied."""
        sides = [self.own] if not self.is_compared else [self.own, self.reference]
        return [i for i in chosen if all(side is not None and i in side.texts for side in sides)]

    @property
    def is_compared(self) -> bool:
        """Whether there are judged replies of another variant to compare with."""
        return self.reference is not None and bool(self.reference.verdicts)

    def shares(
        self,
        measure: str,
        source: str,
        chosen: Sequence[str],
        hits: Callable[[Side], Sequence[bool | None]],
        worse: bool,
    ) -> list[MeasureRow]:
        """The rows of a share: its own, and its change against the reference with exact McNemar.

        Args:
            measure: What it is called.
            source: Where it comes from.
            chosen: The prompts that count.
            hits: Of one side, whether each of them is a hit; None where that cannot be told.
            worse: What one that cannot be told counts as in the worst case.
        """
        from steermoe.analysis import (
            rates,  # its statistics library is slow to load, and words need none
        )

        goals, arguments = self.goals(chosen), self.intervals.arguments()
        own = hits(self.own)
        rows = [self.row(measure, source, rates.rate(own, goals, worse=worse, **arguments))]
        if self.reference is not None and self.is_compared:
            changed = rates.change(hits(self.reference), own, goals, **arguments)
            rows.append(self.row(measure, source, changed, self.reference_name))
        return rows

    def means(
        self,
        measure: str,
        source: str,
        chosen: Sequence[str],
        values: Callable[[Side], Sequence[float]],
    ) -> list[MeasureRow]:
        """The rows of a mean over replies: its own, and its change, with intervals from a bootstrap over goals."""
        own = values(self.own)
        rows = [self.row(measure, source, self._mean(chosen, own))]
        if self.reference is not None and self.is_compared:
            before = values(self.reference)
            changes = [mine - theirs for mine, theirs in zip(own, before, strict=True)]
            rows.append(self.row(measure, source, self._mean(chosen, changes), self.reference_name))
        return rows

    def row(self, measure: str, source: str, metric: Metric, compared_with: str = "") -> MeasureRow:
        """A figure of this variant on this set."""
        return MeasureRow(self.variant, self.set, measure, metric, source, compared_with)

    def _mean(self, chosen: Sequence[str], values: Sequence[float]) -> Metric:
        """A mean over replies: a reply is the one token that counts."""
        metric = self.per_token({i: [value] for i, value in zip(chosen, values, strict=True)})
        return replace(metric, more={k: v for k, v in metric.more.items() if k != "num_responses"})

    def values_of(
        self, side: Side, quantity: str, chosen: Sequence[str]
    ) -> dict[str, Sequence[float]]:
        """A quantity of each token, of the prompts of which it is known."""
        scored = side.scored or {}
        return {i: scored[quantity, i] for i in chosen if (quantity, i) in scored}


def total(values: Sequence[float]) -> float:
    """The sum, from the first to the last: the same on every machine."""
    return reduce(add, values, 0.0)
