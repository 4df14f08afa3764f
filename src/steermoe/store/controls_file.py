"""`controls.json`: the hardened model beside random and lowest experts that were trained alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from steermoe.analysis.controls import ControlMeasure, Difference


@dataclass(frozen=True, slots=True)
class ControlSet:
    """One control: its variant, its experts, and how many of them were selected too."""

    variant: str
    num_experts: int
    overlap: int


@dataclass(frozen=True, slots=True)
class ControlFigures:
    """What came of the controls.

    Attributes:
        split: The prompts that were replied to.
        num_selected: Experts of the hardened model.
        sets: The controls.
        measures: By name.
    """

    split: str
    num_selected: int
    sets: tuple[ControlSet, ...]
    measures: Mapping[str, ControlMeasure]

    def as_json(self) -> Mapping[str, object]:
        """As the file holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ControlFigures:
        """Read it again. Raises what reading a damaged file raises: `KeyError`, `TypeError`, `ValueError`."""
        measures = {}
        for name, values in found["measures"].items():
            differences = {
                key: Difference(**values[key]) for key in ("beyond_random", "beyond_lowest")
            }
            measures[name] = ControlMeasure(
                **{**values, **differences, "random": tuple(values["random"])}
            )
        sets = tuple(ControlSet(**one) for one in found["sets"])
        return cls(str(found["split"]), int(found["num_selected"]), sets, measures)
