"""How likely a model finds a text: the logits that predict the tokens of a continuation.

Shape legend: B continuations of one pass, T tokens of the longest, C completion tokens of all, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steermoe.moe.description import MoEDescription
from steermoe.moe.distinct_tokens import computing_distinct
from steermoe.moe.finite import check_logits
from steermoe.moe.partial_passes import only_positions
from steermoe.moe.routing import RoutingRecorder
from steermoe.records import Continuation

TOGETHER = 16
"""Continuations that go through the model in one pass."""


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Some continuations as one pass is fed them: padded on the right, without the last token, which predicts nothing.

    Attributes:
        input_ids: `(B, T)`.
        attention_mask: `(B, T)`, 0 where there is padding.
        predicts: `(B, T)`, true for tokens that predict one of the completion.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor

    @classmethod
    def of(cls, continuations: Sequence[Continuation], pad_token_id: int) -> PaddedRows:
        """Lay out continuations of at least one completion token."""
        lengths = [len(c.prompt_token_ids) + len(c.completion_token_ids) for c in continuations]
        width = max(lengths) - 1
        input_ids = torch.full((len(continuations), width), pad_token_id)
        attention_mask = torch.zeros((len(continuations), width), dtype=torch.long)
        predicts = torch.zeros((len(continuations), width), dtype=torch.bool)
        for i, (continuation, length) in enumerate(zip(continuations, lengths, strict=True)):
            ids = torch.tensor(continuation.prompt_token_ids + continuation.completion_token_ids)
            input_ids[i, : length - 1] = ids[:-1]
            attention_mask[i, : length - 1] = 1
            predicts[i, len(continuation.prompt_token_ids) - 1 : length - 1] = True
        return cls(input_ids, attention_mask, predicts)

    def through(self, model: Any) -> Any:
        """What the model puts out; `logits` are `(1, C, V)`, those that predict the completion tokens alone."""
        with only_positions(model, self.predicts):
            return model(
                input_ids=self.input_ids.to(model.device),
                attention_mask=self.attention_mask.to(model.device),
                use_cache=False,
            )


@torch.inference_mode()
def completion_logits(
    model: Any,
    description: MoEDescription,
    pad_token_id: int,
    continuations: Sequence[Continuation],
) -> Tensor:
    """One pass over some continuations, padded on the right.

    Args:
        model: A causal language model with fused experts.
        description: Its MoE layers.
        pad_token_id: Fills up the shorter ones.
        continuations: B of them, each with at least one completion token.

    Returns:
        `(C, V)`: the logits that predict each completion token, one continuation after the other.

    Raises:
        ModelError: They are not finite.
    """
    with computing_distinct(model, description):
        logits: Tensor = PaddedRows.of(continuations, pad_token_id).through(model).logits[0]
    check_logits(logits, model)
    return logits


@torch.inference_mode()
def completion_routes(
    model: Any,
    description: MoEDescription,
    pad_token_id: int,
    continuations: Sequence[Continuation],
    with_logits: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """What the routers choose while some continuations are fed in one pass.

    Args:
        model: A causal language model with fused experts.
        description: Its MoE layers.
        pad_token_id: Fills up the shorter ones.
        continuations: B of them, each with at least one completion token.
        with_logits: Whether the logits are wanted too: the head is as dear as some layers.

    Returns:
        Of each `(P + C - 1, L, K)` expert ids; and the logits `(C, V)` of all, or None.

    Raises:
        ModelError: Logits are not finite.
    """
    rows = PaddedRows.of(continuations, pad_token_id)
    if not with_logits:
        rows = replace(rows, predicts=torch.zeros_like(rows.predicts))
        rows.predicts[:, 0] = True  # the head wants something
    with (
        computing_distinct(model, description),
        RoutingRecorder(model, description) as recorder,
    ):
        logits = rows.through(model).logits[0]
        (routes,) = recorder.take()
    check_logits(logits, model)
    by_row = routes.reshape(len(continuations), -1, *routes.shape[1:])
    lengths = rows.attention_mask.sum(dim=1).tolist()
    kept = [row[:length] for row, length in zip(by_row, lengths, strict=True)]
    return kept, logits if with_logits else None


def passes(continuations: Sequence[Continuation]) -> Iterator[Sequence[Continuation]]:
    """The continuations that have anything to predict, as many at a time as go through a model together."""
    kept = [c for c in continuations if c.completion_token_ids]
    for start in range(0, len(kept), TOGETHER):
        yield kept[start : start + TOGETHER]


def by_continuation(logits: Tensor, continuations: Sequence[Continuation]) -> tuple[Tensor, ...]:
    """The logits of each continuation of one pass, apart."""
    return torch.split(logits, [len(c.completion_token_ids) for c in continuations])


def kl_per_token(base_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(base || model) of each token, in nats, over the full vocabulary in fp32.

    Args:
        base_logits: `(C, V)`.
        logits: `(C, V)`.

    Returns:
        `(C,)` in float64, on the processor; not negative but for rounding.
    """
    base = torch.log_softmax(base_logits.float(), dim=-1)
    mine = torch.log_softmax(logits.float(), dim=-1)
    return (base.exp() * (base - mine)).sum(dim=-1).double().cpu()


def log_prob_per_token(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Log-probability of each of C tokens under logits `(C, V)`, in fp32; `(C,)` in float64, on the processor."""
    targets = torch.tensor(token_ids, device=logits.device).unsqueeze(-1)
    chosen = torch.log_softmax(logits.float(), dim=-1).gather(-1, targets)
    return chosen.squeeze(-1).double().cpu()
