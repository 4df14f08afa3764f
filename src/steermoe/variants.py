"""A model with something done to it, and how it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from steermoe.analysis.selection import create_expert_mask
from steermoe.loading import LoadedModel
from steermoe.moe.masking import masked_experts
from steermoe.records import Expert


@dataclass(frozen=True, slots=True)
class Variant:
    """A model with something done to it. Replies and measures belong to one.

    Attributes:
        name: As files and tables name it.
        deactivated: Experts that no token reaches; None where routers are left alone.
    """

    name: str
    deactivated: tuple[Expert, ...] | None = None

    @contextmanager
    def opened(self, loaded: LoadedModel) -> Iterator[LoadedModel]:
        """Within it, the loaded checkpoint is this variant."""
        if self.deactivated is None:
            yield loaded
            return
        description = loaded.description
        allowed = ~create_expert_mask(
            description.num_layers,
            description.num_experts,
            self.deactivated,
            description.layer_indices,
        )
        with masked_experts(loaded.model, allowed, description=description):
            yield loaded
