"""Stay as the base model is on harmless prompts: KL to it on its own replies.

Shape legend: C completion tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from steermoe.config import TrainSection
from steermoe.training.dataset import Example, TrainingRow, needs_refusal, retention_row
from steermoe.training.forward_plan import Forward
from steermoe.training.objectives.token_weights import EVENLY, FirstTokens

ROWS_OF_LOGITS = 512
"""Completion tokens whose full-vocabulary logits are in fp32 at a time while the loss is computed."""


def kl_to_base(base_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(base || model) of each token, in nats, over the full vocabulary in fp32.

    Args:
        base_logits: `(C, V)`.
        logits: `(C, V)`; the gradient flows here.

    Returns:
        `(C,)`, not negative but for rounding.
    """
    base = F.log_softmax(base_logits.float(), dim=-1)
    mine = F.log_softmax(logits.float(), dim=-1)
    return (base.exp() * (base - mine)).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Retention:
    """The weighted mean, over all retention tokens of a micro-batch, of KL(base || model), in nats.

    Attributes:
        weight: Its factor in the loss.
        first: The leading tokens of a reply, and their weight.
        max_tokens: Leading tokens of a reply that are trained on; None takes all.
    """

    name: ClassVar[str] = "retention"
    needs_base: ClassVar[bool] = True
    log_name: ClassVar[str] = "retention_kl"

    weight: float = 1.0
    first: FirstTokens = EVENLY
    max_tokens: int | None = None

    @classmethod
    def of(cls, settings: TrainSection) -> Retention:
        """As the settings have it."""
        first = FirstTokens(settings.first_tokens, settings.first_tokens_weight)
        return cls(settings.retention_weight, first, settings.retention_tokens)

    def row(self, example: Example, position: int) -> TrainingRow | None:
        """The base model's own reply, unless the prompt must be refused from now on."""
        if needs_refusal(example.prompt, example.verdict):
            return None
        return retention_row(
            example.prompt.prompt_id,
            example.prompt.label,
            example.batch_idx,
            example.output,
            self.max_tokens,
        )

    def row_weight(self, row: TrainingRow) -> float:
        """The weight that a row's tokens have in the mean."""
        return self.first.total(len(row.completion_token_ids))

    def loss(self, batch: Mapping[str, Any], forward: Forward) -> Tensor:
        """The mean, with its gradient."""
        tokens = forward.tokens(self.name)
        weight = self.first.weights(tokens.positions)
        base_logits = forward.base_logits(self.name)
        total = weight.new_zeros(())
        for start in range(0, len(tokens.logits), ROWS_OF_LOGITS):
            part = slice(start, start + ROWS_OF_LOGITS)
            divergence = kl_to_base(base_logits[part], tokens.logits[part])
            total = total + (divergence * weight[part]).sum()
        return total / weight.sum()
