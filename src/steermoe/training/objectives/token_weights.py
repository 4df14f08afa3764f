"""How much each token of a completion counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The leading tokens of a completion, which may weigh more: a refusal is decided there.

    Attributes:
        count: How many tokens lead.
        weight: Their weight; later tokens have weight 1.
    """

    count: int = 0
    weight: float = 1.0

    def weights(self, positions: Tensor) -> Tensor:
        """The weight of each token, fp32, from its position in its completion."""
        weight = torch.ones_like(positions, dtype=torch.float32)
        weight[positions < self.count] = self.weight
        return weight

    def total(self, count: int) -> float:
        """The weights of a completion of so many tokens, added up."""
        return count + min(self.count, count) * (self.weight - 1)


EVENLY = FirstTokens()
"""All tokens weigh the same."""
