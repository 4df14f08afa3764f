"""Whether a variant can still do what it could: the share of tasks with one right answer that it solves."""

from __future__ import annotations

from dataclasses import dataclass

from steermoe.measures.evidence import VariantEvidence
from steermoe.metrics import MeasureRow


@dataclass(frozen=True, slots=True)
class Capability:
    """The share of right answers to the items of `builtin:capability`, over all of them and by category.

    Attributes:
        name: As in `measures.parquet`.
        title: A few words.
        meaning: One sentence.
        unit: A share.
        better: Higher.
    """

    name: str = "capability"
    title: str = "Tasks solved"
    meaning: str = (
        "capability: share of short tasks with one right answer (builtin:capability: sums, spelling, facts, language, "
        "instructions, code) that are solved; higher is better"
    )
    unit: str = "share"
    better: str = "higher"

    def of(self, evidence: VariantEvidence) -> list[MeasureRow]:
        """The shares, and their changes against the reference item by item; none of a variant that was not asked."""
        if evidence.own.graded is None:
            return []
        from steermoe.capability.grading import (
            accuracy_rows,  # its tables are slow to load, and words need none
            change_rows,
        )

        rows = accuracy_rows(evidence.variant, evidence.own.graded, evidence.intervals.confidence)
        if evidence.reference is not None and evidence.reference.graded is not None:
            rows += change_rows(
                evidence.variant,
                evidence.own.graded,
                evidence.reference_name,
                evidence.reference.graded,
                **evidence.intervals.arguments(),
            )
        return rows


CAPABILITY = Capability()
