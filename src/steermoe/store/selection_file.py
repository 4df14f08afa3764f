"""`unsafe_experts.json`: the selected experts, and what selected them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steermoe.records import Expert


@dataclass(frozen=True, slots=True)
class ExpertSet:
    """The experts that were selected.

    Attributes:
        rule: The rule with its settings, and what it was applied to.
        layer_indices: The model's MoE layers.
        num_experts: Routed experts of one of them.
        overall: The global selection with the risk difference of each, in the order of the rule.
        per_batch: What the rule selects in each mixed batch's own table.
        largest: The expert that leads the table, and its risk difference.
        more: Whatever else is said of the selection.
    """

    rule: Mapping[str, Any]
    layer_indices: tuple[int, ...]
    num_experts: int
    overall: tuple[tuple[Expert, float], ...]
    per_batch: Mapping[int, tuple[Expert, ...]]
    largest: tuple[Expert, float]
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def union(self) -> list[Expert]:
        """What any batch selects, by layer and expert."""
        return sorted({expert for chosen in self.per_batch.values() for expert in chosen})

    def chosen(self, which: str) -> list[Expert]:
        """The experts to train: the `global` selection, or the `union` of the batches' own."""
        return self.union if which == "union" else [expert for expert, _ in self.overall]

    def as_json(self) -> dict[str, object]:
        """As the file holds it."""
        return {
            "rule": dict(self.rule),
            "layer_indices": list(self.layer_indices),
            "num_experts": self.num_experts,
            "num_unsafe_experts": len(self.overall),
            "unsafe_experts": [
                {
                    "layer": expert.layer,
                    "expert": expert.expert,
                    "Layer_Expert": expert.label,
                    "risk_diff": risk_diff,
                }
                for expert, risk_diff in self.overall
            ],
            "per_batch": [
                {"batch_idx": batch_idx, "unsafe_experts": _pairs(chosen)}
                for batch_idx, chosen in sorted(self.per_batch.items())
            ],
            "union": _pairs(self.union),
            "largest_risk_diff": {
                "Layer_Expert": self.largest[0].label,
                "risk_diff": self.largest[1],
            },
            **self.more,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ExpertSet:
        """Read it again. Raises what reading a damaged file raises: `KeyError`, `TypeError`, `ValueError`."""
        leader, largest = (
            str(found["largest_risk_diff"]["Layer_Expert"]),
            found["largest_risk_diff"],
        )
        layer, expert = leader.removeprefix("L").split("_E")
        known = {f for f in cls.__dataclass_fields__} | {
            "num_unsafe_experts",
            "unsafe_experts",
            "union",
            "largest_risk_diff",
        }
        return cls(
            rule=found["rule"],
            layer_indices=tuple(found["layer_indices"]),
            num_experts=int(found["num_experts"]),
            overall=tuple(
                (Expert(int(row["layer"]), int(row["expert"])), float(row["risk_diff"]))
                for row in found["unsafe_experts"]
            ),
            per_batch={
                int(entry["batch_idx"]): tuple(
                    Expert(int(layer), int(expert)) for layer, expert in entry["unsafe_experts"]
                )
                for entry in found["per_batch"]
            },
            largest=(Expert(int(layer), int(expert)), float(largest["risk_diff"])),
            more={key: value for key, value in found.items() if key not in known},
        )


def _pairs(experts: Sequence[Expert]) -> list[list[int]]:
    return [list(expert) for expert in experts]
