"""What another tool found of a model, and how two models differ by it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scipy import stats

from steermoe.analysis import rates
from steermoe.metrics import IntervalArguments, MeasureRow, Metric

Values = Mapping[str, float | None]
"""What one metric is of each sample, by the sample's id; None where it could not be scored."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one task of one model.

    Attributes:
        task: As its tool names it.
        metric: The same.
        value: What the tool reports; None where it reports nothing.
        stderr: Its standard error, where the tool gives one.
        n: Samples that are scored.
        num_unscored: Samples that are not, and are in no mean.
        values: Of each sample, where the value is their mean and the log has them; else empty.
    """

    task: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    num_unscored: int = 0
    values: Values = field(default_factory=dict)

    @property
    def scored(self) -> dict[str, float]:
        """The samples that have a value."""
        return {name: value for name, value in self.values.items() if value is not None}


def figure_rows(
    variant: str, figures: Iterable[Figure], source: str, confidence: float = 0.95
) -> list[MeasureRow]:
    """The figures of one variant.

    The interval is Wilson's where every sample is 0 or 1, and a normal one from the tool's standard error elsewhere;
    there is none where the tool gives no error.

    Args:
        variant: Which model.
        figures: Its figures.
        source: The tool and its version.
        confidence: Level of the intervals.
    """
    return [
        MeasureRow(variant, figure.task, figure.metric, _metric(figure, confidence), source)
        for figure in figures
    ]


def change_rows(
    variant: str,
    figures: Sequence[Figure],
    base: str,
    base_figures: Sequence[Figure],
    source: str,
    confidence: float = 0.95,
    num_bootstrap: int = 10_000,
    seed: int = 0,
) -> list[MeasureRow]:
    """How a variant differs from the base, by every metric that both have.

    Where both logs have the same samples the change is paired: exact McNemar for samples that are 0 or 1, a bootstrap
    over samples for others. Elsewhere it is the difference of two independent figures. `more["paired"]` says which.

    Args:
        variant: The changed model.
        figures: Its figures.
        base: What it is compared with.
        base_figures: The figures of that.
        source: The tool and its version.
        confidence: Level of the intervals.
        num_bootstrap: Draws.
        seed: Seeds them.
    """
    before = {(figure.task, figure.metric): figure for figure in base_figures}
    rows = []
    for after in figures:
        if (after.task, after.metric) not in before:
            continue
        first = before[after.task, after.metric]
        if first.values and set(first.values) == set(after.values):
            metric = _paired(first, after, confidence, num_bootstrap, seed)
        else:
            metric = _unpaired(first, after, confidence)
        rows.append(MeasureRow(variant, after.task, after.metric, metric, source, base))
    return rows


def _metric(figure: Figure, confidence: float) -> Metric:
    more = {"stderr": figure.stderr}
    scored = figure.scored
    if scored and _are_binary(scored.values()):
        found = rates.rate(
            [None if value is None else bool(value) for value in figure.values.values()],
            list(figure.values),
            worse=False,
            confidence=confidence,
        )
        return replace(found, more=more)
    low, high = _normal(figure.value, figure.stderr, confidence)
    return Metric(figure.value, low, high, figure.n, figure.num_unscored, more)


def _paired(
    before: Figure, after: Figure, confidence: float, num_bootstrap: int, seed: int
) -> Metric:
    names = list(before.values)
    pairs = [(before.values[name], after.values[name]) for name in names]
    how = IntervalArguments(confidence=confidence, num_bootstrap=num_bootstrap, seed=seed)
    if _are_binary([*before.scored.values(), *after.scored.values()]):
        found = rates.change(
            [None if one is None else bool(one) for one, _ in pairs],
            [None if other is None else bool(other) for _, other in pairs],
            names,
            **how,
        )
    else:
        differences = [
            (name, other - one)
            for name, (one, other) in zip(names, pairs, strict=True)
            if one is not None and other is not None
        ]
        found = rates.mean_per_token(
            [difference for _, difference in differences],
            [1] * len(differences),
            [name for name, _ in differences],
            **how,
        )
        found = replace(found, num_unscored=len(names) - len(differences), more={})
    return replace(found, more={**found.more, "paired": 1})


def _unpaired(before: Figure, after: Figure, confidence: float) -> Metric:
    """The difference of two figures, with the root of the sum of their squared standard errors."""
    value = stderr = None
    if before.value is not None and after.value is not None:
        value = after.value - before.value
    if before.stderr is not None and after.stderr is not None:
        stderr = math.hypot(before.stderr, after.stderr)
    low, high = _normal(value, stderr, confidence)
    num_unscored = before.num_unscored + after.num_unscored
    return Metric(
        value, low, high, min(before.n, after.n), num_unscored, {"stderr": stderr, "paired": 0}
    )


def _are_binary(values: Iterable[float]) -> bool:
    return all(value in (0.0, 1.0) for value in values)


def _normal(
    value: float | None, stderr: float | None, confidence: float
) -> tuple[float | None, float | None]:
    if value is None or stderr is None:
        return None, None
    margin = float(stats.norm.ppf((1 + confidence) / 2)) * stderr
    return value - margin, value + margin
