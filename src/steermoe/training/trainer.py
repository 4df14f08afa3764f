"""Training with expert masking, on the transformers Trainer.

The loss of one micro-batch, whose rows are of one mixed batch:

    refusal_weight * weighted mean over refusal tokens of the cross entropy
    + retention_weight * weighted mean over retention tokens of KL(base || model)

Both means weigh the leading tokens of a completion more, where that is asked for: a refusal is decided there.

The KL is over the full vocabulary, in fp32 and in nats. The base model's logits come from the same module with
the trained stacks switched off, or were kept from a pass before (`base_replies.py`). Only positions that predict
a completion token reach the language-model head.

Shape legend: B rows, T tokens, C completion tokens of the micro-batch, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from steermoe.errors import TrainingError
from steermoe.moe.distinct_tokens import DistinctTokens, has_dropout
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import masked_experts, masks_of_samples, router_noise_off
from steermoe.moe.partial_passes import only_positions
from steermoe.moe.slices import ExpertSlices
from steermoe.records import BoolArray
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import IGNORED
from steermoe.training.lower_states import LowerStates

MaskScope = Literal["off", "unsafe", "all"]
TRAINED_WEIGHTS = "trained.safetensors"
"""The trainable parameters in a trainer checkpoint: the frozen ones are the base model's, and are not saved."""

ROWS_OF_LOGITS = 512
"""Completion tokens whose full-vocabulary logits are in fp32 at a time while the loss is computed."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How the two objectives are weighed.

    Attributes:
        refusal: Weight of the cross entropy on refusals.
        retention: Weight of the KL to the base model.
        first_tokens: Leading completion tokens whose loss is weighted by `first_tokens_weight`.
        first_tokens_weight: Their weight; later tokens have weight 1.
        retention_first_tokens_weight: Their weight in the retention loss, if it is another.
    """

    refusal: float = 1.0
    retention: float = 1.0
    first_tokens: int = 0
    first_tokens_weight: float = 1.0
    retention_first_tokens_weight: float | None = None


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


class ExpertMaskingTrainer(Trainer):
    """A transformers Trainer that trains unsafe experts, under an expert mask where one is asked for.

    The training set is a `MicroBatches`, so `per_device_train_batch_size` is 1: one item is one micro-batch.

    Args:
        model: A model whose trainable parameters are chosen already (`freeze_model_except_unsafe_experts`).
        args: `transformers.TrainingArguments`.
        expert_mask: `(L, E)`, true where an expert is unsafe; or one such mask for each `batch_idx`, which every row
            of that batch is masked by, and rows of a batch that has none are not masked.
        mask_scope: `off`; `unsafe` masks the rows of unsafe prompts; `all` masks every row that learns a refusal.
            Rows that are held to the base model, and the base model's own pass, are never masked.
        slices: The trained experts, which switched off give the base model. None where something else trains:
            then there is no base model to be held to, and `weights.retention` must be 0 unless `base_model` is given.
        base_model: Another copy of the model to be held to, for the baselines that train in place.
        base_replies: What the base model predicts on the retention rows, if that was computed before; it spares a
            pass of the base model in every step.
        lower_states: What leaves the layers below the lowest trained one, if that was computed before; it spares
            those layers in every step.
        weights: How the objectives are weighed.
        **kwargs: For `transformers.Trainer`.

    Raises:
        TrainingError: A mask is asked for and not given, holds an expert that does not train, or there is
            no base model to be held to.
    """

    def __init__(
        self,
        *,
        expert_mask: BoolArray | Mapping[int, BoolArray] | None = None,
        mask_scope: MaskScope = "off",
        slices: ExpertSlices | None = None,
        base_model: nn.Module | None = None,
        base_replies: BaseReplies | None = None,
        lower_states: LowerStates | None = None,
        weights: LossWeights | None = None,
        **kwargs: Any,
    ) -> None:
        args = kwargs.get("args")
        if args is not None and args.n_gpu > 1:
            # Otherwise transformers splits each micro-batch over all GPUs that it sees, and merges two of them.
            args._n_gpu = 1
        super().__init__(**kwargs)
        self.weights = weights if weights is not None else LossWeights()
        self.mask_scope = mask_scope
        self.expert_mask = expert_mask
        self.slices = (
            slices if slices is not None else getattr(kwargs["model"], "expert_slices", None)
        )
        self.base_model = base_model
        self.base_replies = base_replies
        self.lower_states = lower_states
        # The loss is a mean over the micro-batch's own tokens, so accumulation has to divide it by its steps.
        self.model_accepts_loss_kwargs = False
        self.description = find_moe_layers(self._plain_model)
        if mask_scope != "off":
            self._check_mask()
        self._begin_alike = not has_dropout(self._plain_model)
        if self.weights.retention > 0 and self.slices is None and base_model is None:
            raise TrainingError(
                "a retention loss needs the base model: train expert slices, pass base_model, or set its weight to 0"
            )
        self.add_callback(_EpochCallback())

    @property
    def _plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does; routers add no noise meanwhile."""
        with router_noise_off(self._plain_model, self.description):
            return super().train(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One forward and backward pass, in which the experts compute what rows share once, and no padding."""
        with self._computing_distinct(inputs):
            return super().training_step(model, inputs, num_items_in_batch)

    def _computing_distinct(self, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        # A mask sends the tokens of some rows to other experts than those of the rest.
        if self.slices is None or self.mask_scope != "off":
            return nullcontext()
        return self.slices.computing(
            DistinctTokens.of(inputs["input_ids"], inputs["attention_mask"], self._begin_alike)
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one micro-batch; see the module's formula."""
        labels = inputs["labels"]
        predicts = labels != IGNORED  # (B, T)
        fed = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        skipping = self._without_lower_layers(inputs["prompt_id"])
        with self._masked(inputs), skipping, only_positions(self._plain_model, predicts):
            outputs = model(**fed)
        logits = outputs.logits[0]  # (C, V)
        is_refusal = (
            inputs["is_refusal"][:, None].expand_as(labels)[predicts].to(logits.device)
        )  # (C,)
        targets = labels[predicts].to(logits.device)
        positions = inputs["token_position"][predicts].to(logits.device)
        weight = self._token_weights(positions, is_refusal)  # (C,)
        # Zero, and differentiable where no row has a loss; a sum over all logits overflows in float16.
        loss = logits[:0].float().sum()
        if is_refusal.any() and self.weights.refusal:
            per_token = F.cross_entropy(
                logits[is_refusal].float(), targets[is_refusal], reduction="none"
            )
            cross_entropy = (per_token * weight[is_refusal]).sum() / weight[is_refusal].sum()
            loss = loss + self.weights.refusal * cross_entropy
            self._remember("refusal_loss", cross_entropy)
        if not is_refusal.all() and self.weights.retention:
            divergence = self._retention(inputs, predicts, logits[~is_refusal], weight[~is_refusal])
            loss = loss + self.weights.retention * divergence
            self._remember("retention_kl", divergence)
        return (loss, outputs) if return_outputs else loss

    def _retention(
        self, inputs: dict[str, Any], predicts: Tensor, logits: Tensor, weight: Tensor
    ) -> Tensor:
        """Weighted mean of the KL to the base model over retention tokens."""
        base_logits = self._base_logits(inputs, predicts)
        total = logits.new_zeros((), dtype=torch.float32)
        for start in range(0, len(logits), ROWS_OF_LOGITS):
            part = slice(start, start + ROWS_OF_LOGITS)
            total = total + (kl_to_base(base_logits[part], logits[part]) * weight[part]).sum()
        return total / weight.sum()

    @torch.no_grad()
    def _base_logits(self, inputs: dict[str, Any], predicts: Tensor) -> Tensor:
        """Logits `(C, V)` of the base model on the retention rows of a micro-batch."""
        rows = ~inputs["is_refusal"].to(inputs["input_ids"].device)
        if self.base_replies is not None:
            kept = zip(inputs["prompt_id"], rows.tolist(), strict=True)
            return self.base_replies.logits([prompt_id for prompt_id, keep in kept if keep])
        base = self.base_model if self.base_model is not None else self._plain_model
        off: AbstractContextManager[None] = nullcontext()
        if self.base_model is None and self.slices is not None:
            off = self.slices.switched_off()
        with off, only_positions(base, predicts[rows]):
            fed = {name: inputs[name][rows] for name in ("input_ids", "attention_mask")}
            logits: Tensor = base(**fed, use_cache=False).logits[0]
        return logits

    def _without_lower_layers(self, prompt_ids: Sequence[str]) -> AbstractContextManager[None]:
        """A context in which the lower layers do not run, where what leaves them is known."""
        if self.lower_states is None:
            return nullcontext()
        return self.lower_states.in_place(prompt_ids, self.args.device)

    def _token_weights(self, positions: Tensor, is_refusal: Tensor) -> Tensor:
        weight = torch.ones_like(positions, dtype=torch.float32)
        is_first = positions < self.weights.first_tokens
        weight[is_first] = self.weights.first_tokens_weight
        if self.weights.retention_first_tokens_weight is not None:
            weight[is_first & ~is_refusal] = self.weights.retention_first_tokens_weight
        return weight

    def _masked(self, inputs: dict[str, Any]) -> Any:
        """The expert mask of this micro-batch's trained pass."""
        if self.mask_scope == "off" or self.expert_mask is None:
            return nullcontext()
        rows = inputs["is_refusal"]
        if self.mask_scope == "unsafe":
            rows = rows & inputs["is_unsafe"]
        if not rows.any():
            return nullcontext()
        mask = self.expert_mask
        if isinstance(mask, Mapping):
            # A batch without a token of one class has no selection, and a mask of none masks nothing.
            nothing = np.zeros((self.description.num_layers, self.description.num_experts), bool)
            mask = masks_of_samples(mask, inputs["batch_idx"].tolist(), nothing)  # (B, L, E)
        return masked_experts(self._plain_model, mask, rows=rows, description=self.description)

    def _check_mask(self) -> None:
        if self.expert_mask is None:
            raise TrainingError(f"mask_scope is {self.mask_scope!r} but no expert_mask is given")
        shape = (self.description.num_layers, self.description.num_experts)
        masks = (
            list(self.expert_mask.values())
            if isinstance(self.expert_mask, Mapping)
            else [self.expert_mask]
        )
        for mask in masks:
            if mask.shape != shape:
                raise TrainingError(f"expert_mask has shape {mask.shape}, the model needs {shape}")
        if self.slices is None:
            return
        trained = set(self.slices.experts)
        for mask in masks:
            for row, expert in zip(*mask.nonzero(), strict=True):
                pair = (self.description.layer_indices[int(row)], int(expert))
                if pair not in trained:
                    raise TrainingError(
                        f"expert_mask holds expert {pair[1]} of layer {pair[0]}, which does not train; "
                        "a mask holds only trained experts"
                    )

    # ---- figures beside the loss --------------------------------------------------------------------

    def _remember(self, name: str, value: Tensor) -> None:
        sums = self.__dict__.setdefault("_sums", {})
        total, count = sums.get(name, (0.0, 0))
        sums[name] = (total + float(value.detach()), count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the two objectives beside their sum."""
        if "loss" in logs:
            sums = self.__dict__.pop("_sums", {})
            logs |= {name: round(total / count, 5) for name, (total, count) in sums.items()}
        super().log(logs, start_time)

    # ---- checkpoints: only what trains ------------------------------------------------------------------

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write the trainable parameters; the frozen ones are the base model's."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        trained = trainable_parameters(self._plain_model)
        save_file(trained, folder / TRAINED_WEIGHTS, self._experts_metadata())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read what `_save` wrote."""
        path = Path(resume_from_checkpoint) / TRAINED_WEIGHTS
        if not path.is_file():
            raise TrainingError(
                f"checkpoint {resume_from_checkpoint} has no {TRAINED_WEIGHTS}; delete it"
            )
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        saved = load_file(path)
        mine = trainable_parameters(self._plain_model)
        # Stacks of other experts can have the same names and shapes.
        if metadata != self._experts_metadata() or saved.keys() != mine.keys():
            raise TrainingError(
                f"checkpoint {resume_from_checkpoint} holds other parameters; delete it"
            )
        with torch.no_grad():
            for name, parameter in self._plain_model.named_parameters():
                if name in saved:
                    parameter.copy_(saved[name])

    def _experts_metadata(self) -> dict[str, str]:
        return {"experts": json.dumps(self.slices.experts if self.slices is not None else None)}


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by name.

    Raises:
        TrainingError: It is sharded: gathering takes all processes, and the trainer saves from one.
    """
    found = {
        name: parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if any(isinstance(parameter, DTensor) for parameter in found.values()):
        raise TrainingError(
            "the trainer's checkpoints cannot hold sharded parameters; set save_strategy='no' and save "
            "ExpertSlices.state_dict() in every process"
        )
    return found


class _EpochCallback(TrainerCallback):
    """Tells the training set which epoch it is, after a resume too."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if dataset is not None and hasattr(dataset, "set_epoch"):
            # On a resume the epoch is a fraction, and never just below the next whole number.
            dataset.set_epoch(int((state.epoch or 0.0) + 1e-6))
