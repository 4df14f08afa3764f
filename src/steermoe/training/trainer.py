"""Training with expert masking, on the transformers Trainer.

The loss of one micro-batch, whose rows are of one mixed batch, is the sum of its objectives (`objectives/`), each a
mean over the completion tokens of its own rows:

    refusal_weight * weighted mean over refusal tokens of the cross entropy
    + retention_weight * weighted mean over retention tokens of KL(base || model)

How the model is run for it is a `ForwardPlan`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from steermoe.contracts import Objective
from steermoe.errors import TrainingError
from steermoe.moe.finite import is_finite
from steermoe.moe.masking import router_noise_off
from steermoe.records import BoolArray
from steermoe.training.forward_plan import ExpertMasks, ForwardPlan, MaskScope
from steermoe.training.objectives.refusal import Refusal
from steermoe.training.objectives.retention import Retention
from steermoe.training.trainables import Trainable, trainable_of

TRAINED_WEIGHTS = "trained.safetensors"
"""The trainable parameters in a trainer checkpoint: the frozen ones are the base model's, and are not saved."""


class ExpertMaskingTrainer(Trainer):
    """A transformers Trainer that trains unsafe experts, under an expert mask where one is asked for.

    The training set is a `MicroBatches`, so `per_device_train_batch_size` is 1: one item is one micro-batch.

    Args:
        model: A model whose trainable parameters are chosen already (`freeze_model_except_unsafe_experts`).
        args: `transformers.TrainingArguments`.
        objectives: The terms of the loss; by default refusal and retention, with weight 1 each.
        plan: How the model is run; by default every pass is computed whole, under the mask below.
        expert_mask: `(L, E)`, true where an expert is unsafe; or one such mask for each `batch_idx`, which every row
            of that batch is masked by, and rows of a batch that has none are not masked.
        mask_scope: `off`; `unsafe` masks the rows of unsafe prompts; `all` masks every row that learns a refusal.
            Rows that are held to the base model, and the base model's own pass, are never masked.
        phase: Which phase of a training this is, counted from 0; its checkpoints say so.
        **kwargs: For `transformers.Trainer`.

    Raises:
        TrainingError: A mask is asked for and not given, or given beside a plan; it holds an expert that does not
            train; or an objective needs the base model and there is none.
    """

    def __init__(
        self,
        *,
        objectives: Sequence[Objective] | None = None,
        plan: ForwardPlan | None = None,
        expert_mask: BoolArray | Mapping[int, BoolArray] | None = None,
        mask_scope: MaskScope = "off",
        phase: int = 0,
        **kwargs: Any,
    ) -> None:
        args = kwargs.get("args")
        if args is not None and args.n_gpu > 1:
            # Otherwise transformers splits each micro-batch over all GPUs that it sees, and merges two of them.
            args._n_gpu = 1
        super().__init__(**kwargs)
        self.objectives = tuple(objectives) if objectives is not None else (Refusal(), Retention())
        # The loss is a mean over the micro-batch's own tokens, so accumulation has to divide it by its steps.
        self.model_accepts_loss_kwargs = False
        masks = _masks(expert_mask, mask_scope)
        if plan is None:
            model = self._plain_model
            plan = ForwardPlan(model, trainable_of(model), masks=masks)
        elif masks is not None:
            raise TrainingError("a plan is given, which has the masks: give expert_mask to it")
        self.plan = plan
        self.phase = phase
        for objective in self.objectives:
            needs_base = objective.weight and getattr(objective, "needs_base", False)
            if needs_base and not self.plan.has_base:
                raise TrainingError(
                    f"the objective {objective.name!r} needs the base model: train expert slices, give the plan a "
                    "base_model, or set the objective's weight to 0"
                )
        self.add_callback(_EpochCallback())
        self.add_callback(_GradientCallback())

    @property
    def _plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does; routers add no noise meanwhile."""
        with router_noise_off(self._plain_model, self.plan.description):
            return super().train(*args, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One forward and backward pass, in which the experts compute what rows share once, and no padding."""
        with self.plan.step(inputs):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(float(loss)):
            raise diverged(f"the loss of step {self.state.global_step + 1} is {float(loss)}")
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one micro-batch; see the module's formula."""
        forward = self.plan.run(model, inputs)
        # Zero, and differentiable where no row has a loss; a sum over all logits overflows in float16.
        loss = forward.logits[:0].float().sum()
        for objective in self.objectives:
            if objective.weight and forward.has_tokens(objective.name):
                term = objective.loss(inputs, forward)
                loss = loss + objective.weight * term
                self._remember(getattr(objective, "log_name", f"{objective.name}_loss"), term)
        return (loss, forward.outputs) if return_outputs else loss

    # ---- figures beside the loss --------------------------------------------------------------------

    def _remember(self, name: str, value: Tensor) -> None:
        sums = self.__dict__.setdefault("_sums", {})
        total, count = sums.get(name, (0.0, 0))
        sums[name] = (total + float(value.detach()), count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the objectives beside their sum."""
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
        trained = trainable_parameters(self._plain_model)
        for name, parameter in trained.items():
            if not is_finite(parameter):
                raise diverged(f"{name} is not finite after step {self.state.global_step}")
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINED_WEIGHTS, self._metadata())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Read what `_save` wrote."""
        load_trained(resume_from_checkpoint, self._plain_model, self._metadata())

    def _metadata(self) -> dict[str, str]:
        return checkpoint_metadata(self.plan.trained, self.phase)


def checkpoint_metadata(trained: Trainable, phase: int) -> dict[str, str]:
    """What a checkpoint says of itself: its phase and, as stacks of others can look alike, its experts."""
    experts = trained.experts if trained.slices is not None else None
    return {"experts": json.dumps(experts), "phase": str(phase)}


def load_trained(checkpoint: str | Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Read the trainable parameters of a checkpoint into a model.

    Raises:
        TrainingError: It has none, or those of another phase or of other experts.
    """
    path = Path(checkpoint) / TRAINED_WEIGHTS
    if not path.is_file():
        raise TrainingError(f"checkpoint {checkpoint} has no {TRAINED_WEIGHTS}; delete it")
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    saved = load_file(path)
    if found != dict(metadata) or saved.keys() != trainable_parameters(model).keys():
        raise TrainingError(f"checkpoint {checkpoint} holds other parameters; delete it")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in saved:
                parameter.copy_(saved[name])


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


def _masks(
    expert_mask: BoolArray | Mapping[int, BoolArray] | None, scope: MaskScope
) -> ExpertMasks | None:
    if scope == "off":
        return None
    if expert_mask is None:
        raise TrainingError(f"mask_scope is {scope!r} but no expert_mask is given")
    return ExpertMasks(expert_mask, scope)


def diverged(what: str) -> TrainingError:
    """The error of a training that went astray: what shows it, and what to do."""
    return TrainingError(
        f"training diverged: {what}; nothing of it is saved: lower train.learning_rate, or warm up for longer "
        "(train.arguments.warmup_ratio)"
    )


class _GradientCallback(TrainerCallback):
    """Looks at every gradient before it is applied: clipping makes zeros of most when one is infinite."""

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not is_finite(parameter.grad):
                raise diverged(
                    f"the gradient of {name} is not finite in step {state.global_step + 1}"
                )


class _EpochCallback(TrainerCallback):
    """Tells the training set which epoch it is, after a resume too."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if dataset is not None and hasattr(dataset, "set_epoch"):
            # On a resume the epoch is a fraction, and never just below the next whole number.
            dataset.set_epoch(int((state.epoch or 0.0) + 1e-6))
