"""Which tokens of a padded micro-batch the experts have to compute.

Training rows begin alike: the chat template, and with it a system turn, comes first in all of them. What a token of a
causal model becomes depends on itself and the tokens before it, so a beginning that all rows share has the same hidden
states in every row, and its experts need to run for one row only. Padding needs no experts at all: no other token sees
it. The rest of a decoder layer, which is much cheaper, runs for every position as it always does.

Shape legend: B rows, T tokens, U tokens that are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class DistinctTokens:
    """Tokens that are computed, and what stands in for the others; positions count through the rows, `r * T + t`.

    Attributes:
        computed: `(U,)` ascending positions of the tokens that are computed.
        source: `(B * T,)` for each position, which of the computed tokens gives its output.
    """

    computed: Tensor
    source: Tensor

    @classmethod
    def of(
        cls, input_ids: Tensor, attention_mask: Tensor, begin_alike: bool = True
    ) -> DistinctTokens:
        """The distinct tokens of rows that are padded on the right.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 where there is padding.
            begin_alike: Whether what all rows begin with is computed for the first row alone.
        """
        is_real = attention_mask.bool()
        is_computed = is_real.clone()
        # Of a shared beginning only: a token that is alike after one that differs has another past.
        is_alike = (input_ids == input_ids[:1]) & is_real & begin_alike
        is_shared = is_alike.all(dim=0).cumprod(dim=0).bool()
        is_computed[1:, is_shared] = False
        source = (is_computed.flatten().cumsum(dim=0) - 1).view_as(input_ids)
        source[:, is_shared] = source[:1, is_shared]
        # Nothing reads what padding becomes, so any output will do.
        source[~is_real] = 0
        return cls(is_computed.flatten().nonzero().squeeze(1), source.flatten())

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`computed` and `source` on a layer's device."""
        return self.computed.to(device), self.source.to(device)


def has_dropout(model: Any) -> bool:
    """Whether training drops something out: then rows that begin alike do not have the same hidden states."""
    settings: dict[str, Any] = model.config.get_text_config().to_dict()
    in_config = any(
        value
        for name, value in settings.items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, int | float)
    )
    in_modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return in_config or in_modules
