"""A forward pass while training: what is computed, what is known already, and what it gives the objectives.

Four things make a pass cheaper or other than the model's own: the expert mask, tokens that rows share and that the
experts compute once, layers below the trained ones whose output is kept, and a head that runs only where something is
predicted. Each is valid for some phases and not for others, and only this decides which are used.

Shape legend: B rows, T tokens, C completion tokens, G of them of one objective, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from steermoe.errors import TrainingError
from steermoe.moe.description import MoEDescription
from steermoe.moe.distinct_tokens import DistinctTokens, has_dropout
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import masked_experts, masks_of_samples
from steermoe.moe.partial_passes import only_positions
from steermoe.records import BoolArray
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import IGNORED, MicroBatch
from steermoe.training.lower_states import LowerStates
from steermoe.training.trainables import Trainable

MaskScope = Literal["off", "unsafe", "all"]

MASKED_OBJECTIVE = "refusal"
"""The objective whose rows may be masked: others hold the model to what it is without a mask."""


@dataclass(frozen=True, slots=True)
class ExpertMasks:
    """The expert mask that some rows are fed under.

    Attributes:
        mask: `(L, E)`, true where an expert is unsafe; or one such mask for each `batch_idx`. Rows of a batch that has
            none are not masked.
        scope: `unsafe` masks the refusals of unsafe prompts, `all` every refusal.
    """

    mask: BoolArray | Mapping[int, BoolArray]
    scope: Literal["unsafe", "all"]

    def check(self, description: MoEDescription, trainable: Trainable) -> None:
        """Refuse masks of another shape, or that hold an expert that does not train.

        Raises:
            TrainingError: It is one.
        """
        shape = (description.num_layers, description.num_experts)
        masks = list(self.mask.values()) if isinstance(self.mask, Mapping) else [self.mask]
        for mask in masks:
            if mask.shape != shape:
                raise TrainingError(f"expert_mask has shape {mask.shape}, the model needs {shape}")
            for row, expert in zip(*mask.nonzero(), strict=True):
                pair = (description.layer_indices[int(row)], int(expert))
                if trainable.slices is not None and pair not in trainable.experts:
                    raise TrainingError(
                        f"expert_mask holds expert {pair[1]} of layer {pair[0]}, which does not train; "
                        "a mask holds only trained experts"
                    )

    def applied(
        self, model: nn.Module, description: MoEDescription, batch: MicroBatch
    ) -> AbstractContextManager[None]:
        """A context in which the rows that are to be masked are."""
        rows = torch.tensor([name == MASKED_OBJECTIVE for name in batch["objective"]])
        if self.scope == "unsafe":
            rows = rows & batch["is_unsafe"].to(rows.device)
        if not rows.any():
            return nullcontext()
        mask: Any = self.mask
        if isinstance(mask, Mapping):
            # A batch without a token of one class has no selection, and a mask of none masks nothing.
            nothing = np.zeros((description.num_layers, description.num_experts), bool)
            mask = masks_of_samples(mask, batch["batch_idx"].tolist(), nothing)  # (B, L, E)
        device = batch["input_ids"].device
        return masked_experts(model, mask, rows=rows.to(device), description=description)


@dataclass(frozen=True, slots=True)
class CompletionTokens:
    """What a pass says of the completion tokens of one objective's rows, one row after the other.

    Attributes:
        logits: `(G, V)` that predict them, with gradient.
        targets: `(G,)` their ids.
        positions: `(G,)` which token of its completion each is.
    """

    logits: Tensor
    targets: Tensor
    positions: Tensor


class Forward:
    """One pass of the model that trains over a micro-batch: what the objectives read.

    Attributes:
        outputs: What the model returned; its logits are `(1, C, V)`, of positions that predict a completion token.
        batch: The micro-batch.
        plan: Which made the pass.
    """

    def __init__(self, plan: ForwardPlan, batch: MicroBatch, outputs: Any) -> None:
        self.plan, self.batch, self.outputs = plan, batch, outputs
        self._predicts: Tensor = batch["labels"] != IGNORED  # (B, T)

    @property
    def logits(self) -> Tensor:
        """`(C, V)`."""
        logits: Tensor = self.outputs.logits[0]
        return logits

    def rows(self, objective: str) -> Tensor:
        """`(B,)`: which rows belong to an objective."""
        is_mine = [name == objective for name in self.batch["objective"]]
        return torch.tensor(is_mine, device=self.batch["input_ids"].device)

    def has_tokens(self, objective: str) -> bool:
        """Whether the micro-batch has anything of an objective."""
        return bool((self.rows(objective)[:, None] & self._predicts).any())

    def tokens(self, objective: str) -> CompletionTokens:
        """The completion tokens of an objective's rows."""
        labels, logits = self.batch["labels"], self.logits
        is_mine = self.rows(objective)[:, None].expand_as(labels)[self._predicts]  # (C,)
        is_mine = is_mine.to(logits.device)
        targets = labels[self._predicts].to(logits.device)
        positions = self.batch["token_position"][self._predicts].to(logits.device)
        return CompletionTokens(logits[is_mine], targets[is_mine], positions[is_mine])

    def base_logits(self, objective: str) -> Tensor:
        """The base model's logits `(G, V)` on the same tokens, without a mask and without gradient."""
        return self.plan.base_logits(self.batch, self.rows(objective), self._predicts)


class ForwardPlan:
    """How the passes of a phase are made.

    Args:
        model: The model, not wrapped.
        trained: All that is trained, in this phase or before it: switched off, it gives the base model.
        masks: The expert masks, if rows are fed under any.
        base_model: Another copy of the model to be held to, where what is trained cannot be switched off.
        base_replies: What the base model predicts on the rows that are held to it, if that was computed before.
        lower_states: What leaves the layers below the lowest trained one, if that was computed before.
        description: The model's MoE layers, if known.

    Raises:
        TrainingError: A mask is of another shape, or holds an expert that does not train.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Trainable,
        *,
        masks: ExpertMasks | None = None,
        base_model: nn.Module | None = None,
        base_replies: BaseReplies | None = None,
        lower_states: LowerStates | None = None,
        description: MoEDescription | None = None,
    ) -> None:
        self.model, self.trained = model, trained
        self.description = description if description is not None else find_moe_layers(model)
        self.masks = masks
        self.base_model, self.base_replies = base_model, base_replies
        self.lower_states = lower_states
        if masks is not None:
            masks.check(self.description, trained)
        self._begin_alike = not has_dropout(model)

    @property
    def has_base(self) -> bool:
        """Whether there is a base model to be held to."""
        return self.base_model is not None or self.trained.can_be_off

    def step(self, batch: MicroBatch) -> AbstractContextManager[None]:
        """Around a forward pass and its backward pass: the experts compute what rows share once, and no padding."""
        # A mask sends the tokens of some rows to other experts than those of the rest.
        if self.trained.slices is None or self.masks is not None:
            return nullcontext()
        return self.trained.slices.computing(
            DistinctTokens.of(batch["input_ids"], batch["attention_mask"], self._begin_alike)
        )

    def run(self, model: Any, batch: MicroBatch) -> Forward:
        """The pass that is differentiated.

        Args:
            model: The model, wrapped as the trainer has it.
            batch: What `collate` gives.
        """
        masked: AbstractContextManager[None] = nullcontext()
        if self.masks is not None:
            masked = self.masks.applied(self.model, self.description, batch)
        skipping: AbstractContextManager[None] = nullcontext()
        if self.lower_states is not None:
            skipping = self.lower_states.in_place(batch["prompt_id"], batch["input_ids"].device)
        predicts = batch["labels"] != IGNORED
        with masked, skipping, only_positions(self.model, predicts):
            outputs = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            )
        return Forward(self, batch, outputs)

    @torch.no_grad()
    def base_logits(self, batch: MicroBatch, rows: Tensor, predicts: Tensor) -> Tensor:
        """The base model's logits on the completions of some rows, one after the other.

        Args:
            batch: The micro-batch.
            rows: `(B,)`, true for those rows.
            predicts: `(B, T)`, true where a completion token is predicted.

        Raises:
            TrainingError: There is no base model.
        """
        if self.base_replies is not None:
            kept = zip(batch["prompt_id"], rows.tolist(), strict=True)
            return self.base_replies.logits([prompt_id for prompt_id, keep in kept if keep])
        base = self.model if self.base_model is None else self.base_model
        off = self.trained.off() if self.base_model is None else nullcontext()
        with off, _evaluating(base), only_positions(base, predicts[rows]):
            fed = {name: batch[name][rows] for name in ("input_ids", "attention_mask")}
            logits: Tensor = base(**fed, use_cache=False).logits[0]
        return logits


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, the model drops nothing out."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
