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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME

from steermoe.contracts import Objective
from steermoe.errors import TrainingError
from steermoe.moe.finite import is_finite
from steermoe.moe.masking import router_noise_off
from steermoe.moe.sharded import assign, local_part
from steermoe.records import BoolArray
from steermoe.training.dataset import MicroBatch
from steermoe.training.forward_plan import ExpertMasks, ForwardPlan, MaskScope
from steermoe.training.objectives.refusal import Refusal
from steermoe.training.objectives.retention import Retention
from steermoe.training.sharded_checkpoints import (
    has_shards,
    load_optimizer,
    load_weights,
    save_shards,
    shard_state,
)
from steermoe.training.shares import factor_of
from steermoe.training.spread import Spread
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
        spread: How the training is spread over several processes, if it is: each collates its own share of every
            micro-batch (`shares.own_share`), and a sharded model is sharded already.
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
        spread: Spread | None = None,
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
        self.spread = spread
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
        with self.plan.step(cast("MicroBatch", inputs)), self._gathering(model):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.spread is not None:
            loss = self.spread.mean(loss)
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
        batch = cast("MicroBatch", inputs)
        forward = self.plan.run(model, batch)
        # Zero, and differentiable where no row has a loss; a sum over all logits overflows in float16.
        loss = forward.logits[:0].float().sum()
        for objective in self.objectives:
            if objective.weight and forward.has_tokens(objective.name):
                term = objective.loss(batch, forward)
                factor = factor_of(batch, objective.name)
                if factor is not None:
                    term = factor * term
                loss = loss + objective.weight * term
                self._remember(getattr(objective, "log_name", f"{objective.name}_loss"), term)
        return (loss, forward.outputs) if return_outputs else loss

    # ---- several processes --------------------------------------------------------------------------

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """The model as every step calls it."""
        if self.spread is None or not training:
            return super()._wrap_model(model, training, dataloader)
        if self.model is None or model is not self.model:
            return model  # it is wrapped already
        return self.spread.wrapped(model, may_be_unused=self.plan.trained.slices is None)

    def _clip_grad_norm(self, model: Any) -> Any:
        """The norm of the whole gradient, which is clipped, in every process."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]  # transformers left it untyped
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @contextmanager
    def _gathering(self, model: Any) -> Iterator[None]:
        """Within it, gradients are gathered only where a step of the optimizer follows."""
        is_last = self.accelerator.sync_gradients
        with nullcontext() if is_last or not hasattr(model, "no_sync") else model.no_sync():
            yield

    # ---- figures beside the loss --------------------------------------------------------------------

    def _remember(self, name: str, value: Tensor) -> None:
        sums = self.__dict__.setdefault("_sums", {})
        total, count = sums.get(name, (0.0, 0))
        sums[name] = (total + float(value.detach()), count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the objectives beside their sum."""
        if "loss" in logs:
            sums = self.__dict__.pop("_sums", {})
            means = {name: total / count for name, (total, count) in sums.items()}
            if self.spread is not None:
                means = self.spread.means(means)
            logs |= {name: round(mean, 5) for name, mean in means.items()}
        super().log(logs, start_time)

    # ---- checkpoints: only what trains ------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint; of several processes the first one does, once all have written their shards."""
        if self.spread is not None and self.spread.is_sharded:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            self._check_finite(dict(self.plan.trained.named_parameters()))
            save_shards(folder, model, self.optimizer, self._metadata())
        if self.spread is None or self.spread.processes.is_first:
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write both; of a sharded training the optimizer's state is written already."""
        if self.spread is None or not self.spread.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Read both, however many processes wrote them."""
        if checkpoint is None or not has_shards(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            shard_state(self.optimizer)
            return
        assert self.model is not None
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        load_optimizer(checkpoint, self.model, self.optimizer)
        state = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(state)
        rates = self.lr_scheduler.get_last_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write the trainable parameters; the frozen ones are the base model's."""
        if not self.args.should_save or (self.spread is not None and self.spread.is_sharded):
            return
        trained = trainable_parameters(self._plain_model)
        self._check_finite(trained)
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained, folder / TRAINED_WEIGHTS, self._metadata())

    def _check_finite(self, trained: Mapping[str, Tensor]) -> None:
        for name, parameter in trained.items():
            if not is_finite(local_part(parameter.detach())):
                raise diverged(f"{name} is not finite after step {self.state.global_step}")

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
    if has_shards(checkpoint):
        load_weights(checkpoint, model, metadata)
        return
    path = Path(checkpoint) / TRAINED_WEIGHTS
    if not path.is_file():
        raise TrainingError(f"checkpoint {checkpoint} has no {TRAINED_WEIGHTS}; delete it")
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    saved = load_file(path)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if found != dict(metadata) or saved.keys() != wanted:
        raise TrainingError(f"checkpoint {checkpoint} holds other parameters; delete it")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in saved:
                assign(parameter, saved[name])


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
            if parameter.grad is not None and not is_finite(local_part(parameter.grad)):
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
