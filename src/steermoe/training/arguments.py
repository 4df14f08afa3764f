"""A run's settings, in the terms of the transformers Trainer, and refused in one line where it would fail later."""

from __future__ import annotations

import difflib
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from steermoe.config import ArgumentsSection, PhaseSettings, TrainSection, Values
from steermoe.errors import ConfigError, TrainingError, on_one_line
from steermoe.training.objectives import objectives_of
from steermoe.training.phases import Phase

STEPPED_BY_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that wait for figures of an evaluation, which training here does not make."""

KNOWN = frozenset(field.name for field in fields(TrainingArguments) if field.init)
"""What the installed transformers takes."""

CHECKPOINTING = (
    "activation_checkpointing" if "activation_checkpointing" in KNOWN else "gradient_checkpointing"
)
"""Recomputation of activations, by the name that the installed transformers has for it."""

DECIDED_HERE = {
    "num_train_epochs": "set train.epochs",
    "max_steps": "set train.epochs",
    "learning_rate": "set train.learning_rate",
    "seed": "set seed",
    "data_seed": "set seed",
    "use_cpu": "set model.device",
    CHECKPOINTING: "set train.arguments.gradient_checkpointing",
    "per_device_train_batch_size": "one item of the training set is one micro-batch; set train.batch_size",
    "output_dir": "checkpoints are kept in the run",
    "save_strategy": "a run is resumed from its checkpoints; set train.arguments.save_steps",
    "save_total_limit": "a run is resumed from its checkpoints",
    "save_only_model": "a run is resumed from its checkpoints",
    "resume_from_checkpoint": "an interrupted run goes on by itself",
    "logging_steps": "every step is in the history",
    "logging_strategy": "every step is in the history",
    "remove_unused_columns": "micro-batches have no columns",
    "group_by_length": "micro-batches keep the mix of the analysis",
    "train_sampling_strategy": "micro-batches keep the mix of the analysis",
    "auto_find_batch_size": "micro-batches keep the mix of the analysis; set train.batch_size",
    "ignore_data_skip": "a run is resumed where it stopped",
    "fp16": "set model.dtype",
    "bf16": "set model.dtype",
    "neftune_noise_alpha": "what rows share is computed once, and noise would tell them apart",
    "do_eval": "training makes no evaluation; steermoe evaluate does",
    "load_best_model_at_end": "training makes no evaluation; steermoe evaluate does",
    "push_to_hub": "nothing is uploaded",
    "disable_tqdm": "the run has a bar of its own",
    "dataloader_pin_memory": "micro-batches are small",
    "label_smoothing_factor": "the loss is made of train.objectives",
}
"""Arguments that the run decides on, and what to do instead of setting them."""

POSITIVE = ("adam_epsilon", "max_grad_norm")
"""Arguments of which transformers would take 0 or less for something else, or divide by it."""


def training_arguments(
    settings: TrainSection,
    phase: Phase | PhaseSettings,
    seed: int,
    folder: Path,
    num_steps: int,
    use_cpu: bool,
    leads: bool = True,
) -> TrainingArguments:
    """What the trainer is told of one phase.

    Args:
        settings: Of training.
        phase: Of the phase.
        seed: Seeds the order of the micro-batches.
        folder: Where checkpoints go.
        num_steps: Optimizer steps of the whole phase.
        use_cpu: Whether the model is on the processor.
        leads: Whether this process is the one of several that reports.

    Raises:
        TrainingError: The warm-up is as long as the phase.
        ConfigError: `train.arguments` names what transformers does not know or the run decides on, or a value does
            not fit.
    """
    given = settings.arguments
    warmup = given.warmup_steps
    if warmup is None:
        warmup = math.floor(given.warmup_ratio * num_steps)
    if warmup >= num_steps:
        raise TrainingError(
            f"warm-up of {warmup} steps is the whole run of {num_steps}: lower train.arguments.warmup_steps or "
            "warmup_ratio"
        )
    check_arguments(given, phase.learning_rate)
    checkpointing = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}
    return _made(
        {
            "num_train_epochs": phase.epochs,
            "per_device_train_batch_size": 1,  # one item of the training set is one micro-batch
            "learning_rate": phase.learning_rate,
            "gradient_accumulation_steps": given.gradient_accumulation_steps,
            **(checkpointing if given.gradient_checkpointing else {}),
            "warmup_steps": warmup,
            "output_dir": str(folder),
            "seed": seed,
            "data_seed": seed,
            "save_strategy": "steps",
            "save_steps": given.save_steps,
            "save_total_limit": 2,
            "logging_steps": 1,
            "logging_strategy": "steps",
            "report_to": (list(given.report_to) if leads else []) or "none",
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "use_cpu": use_cpu,
            **_passed_on(given),
        }
    )


def check_names(settings: TrainSection) -> None:
    """Refuse objectives that there are not and arguments that transformers does not take, before anything is computed.

    Raises:
        ConfigError: An objective is none; an argument is unknown, decided on by the run, or of another type; a
            schedule, a setting of it or a tracker is unknown, or the tracker's package is not installed.
    """
    for phase in settings.all_phases():
        objectives_of(settings, phase.objectives)
        check_arguments(settings.arguments, phase.learning_rate)


def check_arguments(given: ArgumentsSection, learning_rate: float) -> None:
    """The same of one phase."""
    passed_on = _passed_on(given)
    for name, value in passed_on.items():
        _check_argument(name, value)
    _check_schedule_name(passed_on.get("lr_scheduler_type", "linear"))
    arguments = _made({"report_to": "none", "use_cpu": True, **passed_on})
    _check_optimizer_and_schedule(arguments, learning_rate)
    try:
        callbacks = get_reporting_integration_callbacks(list(given.report_to))  # type: ignore[no-untyped-call]
        for callback in callbacks:
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"train.arguments.report_to = {given.report_to} cannot be used: {on_one_line(error)}"
        ) from None


def _passed_on(given: ArgumentsSection) -> Values:
    """What is not read here, as it was given."""
    return dict(given.model_extra or {})


def _check_argument(name: str, value: Any) -> None:
    """Refuse an argument that transformers does not know, or not with such a value."""
    instead = DECIDED_HERE.get(name)
    if name.startswith("eval_"):
        instead = DECIDED_HERE["do_eval"]
    if instead is not None:
        raise ConfigError(f"train.arguments.{name} is decided on by the run: {instead}")
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN | ArgumentsSection.model_fields.keys(), n=1)
        hint = f"did you mean {near[0]}?" if near else "see transformers.TrainingArguments"
        raise ConfigError(f"unknown setting train.arguments.{name}: {hint}")
    wanted = get_type_hints(TrainingArguments)[name]
    try:
        # Strict: a text is no number, but a whole number will do for a fraction.
        TypeAdapter(wanted).validate_python(value, strict=True)
    except ValidationError:
        shown = wanted.__name__ if isinstance(wanted, type) else str(wanted)
        raise ConfigError(
            f"setting train.arguments.{name} = {value!r}: transformers takes {shown}"
        ) from None
    if name in POSITIVE and not 0 < value < math.inf:
        raise ConfigError(f"setting train.arguments.{name} = {value!r}: give a number above 0")


def _made(given: Values) -> TrainingArguments:
    try:
        return TrainingArguments(**given)
    except Exception as error:  # whatever transformers says of values that do not go together
        raise ConfigError(
            f"transformers refuses train.arguments ({type(error).__name__}): {on_one_line(error)}"
        ) from error


def _check_schedule_name(name: str) -> None:
    known = [str(schedule.value) for schedule in SchedulerType]
    schedules = [known_name for known_name in known if known_name not in STEPPED_BY_EVALUATIONS]
    if name not in schedules:
        why = "needs evaluations while training" if name in known else "is not known"
        raise ConfigError(
            f"train.arguments.lr_scheduler_type = {name!r} {why}: use one of {', '.join(schedules)}"
        )


def _check_optimizer_and_schedule(arguments: TrainingArguments, learning_rate: float) -> None:
    given = arguments.lr_scheduler_kwargs or {}
    schedule = SchedulerType(arguments.lr_scheduler_type).value
    try:
        optimizer = torch.optim.AdamW(
            [torch.zeros(1)],
            lr=learning_rate,
            eps=arguments.adam_epsilon,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            weight_decay=arguments.weight_decay,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"train.arguments: AdamW refuses a setting of it: {on_one_line(error)}"
        ) from None
    try:
        get_scheduler(schedule, optimizer, 0, 1, scheduler_specific_kwargs=dict(given))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"train.arguments.lr_scheduler_kwargs = {given} does not fit the schedule {schedule!r}: "
            f"{on_one_line(error)}"
        ) from None
