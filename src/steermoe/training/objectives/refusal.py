"""Learn a refusal: cross entropy of the target's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from steermoe.config import DEFAULT_REFUSALS, TrainSection
from steermoe.records import Prompt
from steermoe.training.dataset import Example, TrainingRow, needs_refusal, refusal_row
from steermoe.training.forward_plan import Forward
from steermoe.training.objectives.token_weights import EVENLY, FirstTokens
from steermoe.training.targets import resolve_target


@dataclass(frozen=True, slots=True)
class Refusal:
    """The weighted mean, over all refusal tokens of a micro-batch, of the cross entropy, in nats.

    Attributes:
        weight: Its factor in the loss.
        first: The leading tokens of a refusal, and their weight.
        target: The text that a prompt is answered with, given the prompt and how many refusals were made before it.
    """

    name: ClassVar[str] = "refusal"
    needs_base: ClassVar[bool] = False
    log_name: ClassVar[str] = "refusal_loss"

    weight: float = 1.0
    first: FirstTokens = EVENLY
    target: Callable[[Prompt, int], str] = field(default=resolve_target(DEFAULT_REFUSALS))

    @classmethod
    def of(cls, settings: TrainSection) -> Refusal:
        """As the settings have it."""
        return cls(
            settings.refusal_weight,
            FirstTokens(settings.first_tokens, settings.first_tokens_weight),
            resolve_target(settings.target_response),
        )

    def row(self, example: Example, position: int) -> TrainingRow | None:
        """The prompt with the target as its reply, if it must be refused from now on."""
        if not needs_refusal(example.prompt, example.verdict):
            return None
        return refusal_row(
            example.prompt,
            example.output,
            example.batch_idx,
            self.target(example.prompt, position),
            example.tokenizer,
            example.template_kwargs,
            example.stop_token_ids,
        )

    def row_weight(self, row: TrainingRow) -> float:
        """The weight that a row's tokens have in the mean."""
        return self.first.total(len(row.completion_token_ids))

    def loss(self, batch: Mapping[str, Any], forward: Forward) -> Tensor:
        """The mean, with its gradient."""
        tokens = forward.tokens(self.name)
        weight = self.first.weights(tokens.positions)
        per_token = F.cross_entropy(tokens.logits.float(), tokens.targets, reduction="none")
        return (per_token * weight).sum() / weight.sum()
