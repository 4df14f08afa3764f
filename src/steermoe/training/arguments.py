"""A run's settings, in the terms of the transformers Trainer, and refused in one line where it would fail later."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from steermoe.config import TrainSection
from steermoe.errors import ConfigError, TrainingError

STEPPED_BY_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that wait for figures of an evaluation, which training here does not make."""


def training_arguments(
    settings: TrainSection, seed: int, folder: Path, num_steps: int, use_cpu: bool
) -> TrainingArguments:
    """What the trainer is told.

    Args:
        settings: Of training.
        seed: Seeds the order of the micro-batches.
        folder: Where checkpoints go.
        num_steps: Optimizer steps of the whole run.
        use_cpu: Whether the model is on the processor.

    Raises:
        TrainingError: The warm-up is as long as the run.
        ConfigError: A name is not known to transformers, or a setting does not fit it.
    """
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = math.floor(settings.warmup_ratio * num_steps)
    if warmup >= num_steps:
        raise TrainingError(
            f"warm-up of {warmup} steps is the whole run of {num_steps}: lower train.warmup_steps or warmup_ratio"
        )
    check_names(settings)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=1,  # one item of the training set is one micro-batch
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        **_checkpointing_arguments(settings.gradient_checkpointing),
        learning_rate=settings.learning_rate,
        adam_epsilon=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.lr_scheduler,
        lr_scheduler_kwargs=dict(settings.lr_scheduler_kwargs),
        warmup_steps=warmup,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_strategy="steps",
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=use_cpu,
    )


def check_names(settings: TrainSection) -> None:
    """Refuse names that transformers does not know, before anything is computed.

    Raises:
        ConfigError: A schedule, a setting of it or a tracker is unknown, or the tracker's package is not installed.
    """
    known = [str(schedule.value) for schedule in SchedulerType]
    schedules = [name for name in known if name not in STEPPED_BY_EVALUATIONS]
    if settings.lr_scheduler not in schedules:
        why = (
            "needs evaluations while training" if settings.lr_scheduler in known else "is not known"
        )
        raise ConfigError(
            f"train.lr_scheduler = {settings.lr_scheduler!r} {why}: use one of {', '.join(schedules)}"
        )
    given = dict(settings.lr_scheduler_kwargs)
    try:
        optimizer = torch.optim.AdamW([torch.zeros(1)], lr=settings.learning_rate)
        get_scheduler(settings.lr_scheduler, optimizer, 0, 1, scheduler_specific_kwargs=given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"train.lr_scheduler_kwargs = {given} does not fit the schedule {settings.lr_scheduler!r}: {error}"
        ) from None
    try:
        names = list(settings.report_to)
        callbacks = get_reporting_integration_callbacks(names)  # type: ignore[no-untyped-call]  # transformers
        for callback in callbacks:
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"train.report_to = {settings.report_to} cannot be used: {error}"
        ) from None


def _checkpointing_arguments(enabled: bool) -> dict[str, Any]:
    """Recomputation of activations, under the name that the installed transformers calls it by."""
    known = {field.name for field in fields(TrainingArguments)}
    name = (
        "activation_checkpointing"
        if "activation_checkpointing" in known
        else "gradient_checkpointing"
    )
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if enabled else {}
