"""Rates as they would be without the judge's errors, beside those that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from steermoe.measures.rates import RATES
from steermoe.metrics import MeasureRow
from steermoe.records import Verdict

if TYPE_CHECKING:
    from steermoe.judges.agreement import Accuracy

_HITS = {rate.name: rate.hit for rate in RATES}


def with_corrections(
    rows: Sequence[MeasureRow], judge: str, accuracy: Accuracy, confidence: float
) -> list[MeasureRow]:
    """Put the corrected rate beside every rate of verdicts of a judge whose errors are known.

    Rogan and Gladen's estimate with Lang and Reiczigel's interval. Of replies that are answered the roles of
    sensitivity and specificity change.

    Args:
        rows: Figures.
        judge: Name of the judge.
        accuracy: Its sensitivity and specificity for refusals, by labels.
        confidence: Level of the intervals.

    Returns:
        The rows; in `more`, rates have `corrected`, `corrected_ci_low` and `corrected_ci_high` (none where the judge is
        no better than chance), and how many labelled refusals and answers they hang on: `num_labels_refused`,
        `num_labels_answered`. Changes are left as they are.
    """
    return [
        _corrected(row, _HITS[row.measure], accuracy, confidence)
        if row.measure in _HITS and row.source == judge and not row.compared_with
        else row
        for row in rows
    ]


def _corrected(row: MeasureRow, hit: Verdict, accuracy: Accuracy, confidence: float) -> MeasureRow:
    from steermoe.judges.agreement import corrected_rate  # its statistics library is slow to load

    metric = row.metric
    if metric.value is None:
        return row
    refusals = (accuracy.sensitivity.count, accuracy.sensitivity.n)
    answers = (accuracy.specificity.count, accuracy.specificity.n)
    right = (refusals, answers) if hit is Verdict.REFUSED else (answers, refusals)
    found = corrected_rate(round(metric.value * metric.n), metric.n, *right, confidence)
    more: dict[str, float | int | None] = {
        "num_labels_refused": refusals[1],
        "num_labels_answered": answers[1],
    }
    if found.value is not None:
        more["corrected"] = found.value
        more["corrected_ci_low"], more["corrected_ci_high"] = found.ci_low, found.ci_high
    return replace(row, metric=replace(metric, more={**metric.more, **more}))
