"""Figures with their intervals: one of them, and what an evaluation holds of many.

Nothing here knows how a figure is computed (`analysis/`) or what it means (`measures/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict, cast


class IntervalArguments(TypedDict):
    """How the intervals of every figure are made: level, bootstrap draws over goals, and their seed."""

    confidence: float
    num_bootstrap: int
    seed: int


class MetricJson(TypedDict):
    """A `Metric` as JSON files hold it, what else is known of it beside the rest."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    num_unscored: int
    worst_case: NotRequired[float | None]
    worst_case_ci_low: NotRequired[float | None]
    worst_case_ci_high: NotRequired[float | None]
    worst_case_p_value: NotRequired[float | None]
    p_value: NotRequired[float | None]
    source: NotRequired[str]


SidesOfSet = dict[str, dict[str, MetricJson]]
"""The figures of one set of prompts: by measure, then `base`, `hardened` and `paired`."""


class Comparison(TypedDict):
    """Two models' own figures on a set of prompts, and the changes between them, by measure."""

    base: dict[str, MetricJson]
    hardened: dict[str, MetricJson]
    paired: dict[str, MetricJson]


class Evaluation(TypedDict):
    """What `evaluation.json` holds: the two models' own figures, and the changes between them, by measure."""

    split: str
    base: dict[str, MetricJson]
    hardened: dict[str, MetricJson]
    paired: dict[str, MetricJson]
    benchmarks: NotRequired[dict[str, SidesOfSet]]
    sets: NotRequired[dict[str, Comparison]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with its interval. Unknown is a value: `value` is None where nothing could be scored.

    Attributes:
        value: The figure.
        ci_low: Lower end of its interval.
        ci_high: Upper end.
        n: What it is a mean of: prompts, or tokens.
        num_unscored: Answers that could not be scored, and are in neither.
        more: What else is known of it: `worst_case` (of a change also `worst_case_ci_low` and so on), `p_value`,
            `only_before`, `only_after`, `num_responses`.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    num_unscored: int
    more: Mapping[str, float | int | None] = field(default_factory=dict)

    def as_json(self) -> MetricJson:
        """As `evaluation.json` holds it."""
        own: MetricJson = {
            "value": self.value,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "n": self.n,
            "num_unscored": self.num_unscored,
        }
        return cast("MetricJson", own | dict(self.more))


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One row of `measures.parquet`.

    Attributes:
        variant: Which model.
        set: Which prompts: a split, or a set that the run names.
        measure: What was measured.
        metric: The figure.
        source: Where it comes from: the judge, `teacher_forced`, or a tool.
        compared_with: Empty for the variant's own figure; the other variant where the figure is a change.
    """

    variant: str
    set: str
    measure: str
    metric: Metric
    source: str
    compared_with: str = ""
