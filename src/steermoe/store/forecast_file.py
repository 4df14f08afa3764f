"""`forecast.json`: what a selection is expected to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steermoe.analysis.forecast import Interval, KindForecast

KINDS = {"look_alike": "look-alikes", "safe": "other harmless requests", "benign": "benign prompts"}
"""What the kinds of harmless prompts are called."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was forecast of a selection.

    Attributes:
        num_experts: Experts of the set.
        num_unsafe_prompts: Harmful prompts that were measured.
        kinds: By kind of harmless prompts.
    """

    num_experts: int
    num_unsafe_prompts: int
    kinds: Mapping[str, KindForecast]

    def sentences(self) -> list[str]:
        """What is printed of it, one line a kind of prompts."""
        return [self._sentence(kind, found) for kind, found in self.kinds.items()]

    def _sentence(self, kind: str, found: KindForecast) -> str:
        own, random = found.selected, found.random
        text = f"forecast: interference of the {self.num_experts} selected experts on {KINDS[kind]}"
        if own.value is None:
            return f"{text} undefined, for no harmful prompt reaches them"
        text += f" {own.value:.2f}"
        if own.ci_low is not None:
            text += f" [{own.ci_low:.2f}, {own.ci_high:.2f}]"
        if random.value is not None:
            text += f"; {found.num_draws} random sets {random.value:.2f}"
            text += f" ({found.least:.2f} to {found.largest:.2f}), {found.num_below} of them lower"
        return f"{text}. 1: moved as far as harmful prompts"

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Forecast:
        """Read it again. Raises what reading a damaged file raises: `KeyError`, `TypeError`, `ValueError`."""
        kinds = {}
        for kind, values in found["kinds"].items():
            intervals = {
                name: Interval(**values[name]) for name in ("selected", "random", "beyond_random")
            }
            kinds[kind] = KindForecast(**{**values, **intervals})
        return cls(int(found["num_experts"]), int(found["num_unsafe_prompts"]), kinds)
