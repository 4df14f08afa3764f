"""What training hands on to transformers: what is passed, and what is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steermoe.config import TrainSection, validate
from steermoe.errors import ConfigError, TrainingError
from steermoe.training.arguments import CHECKPOINTING, check_names, training_arguments


def section(**arguments: Any) -> TrainSection:
    return validate({"train": {"epochs": 3, "arguments": arguments}}).train


def made(settings: TrainSection, num_steps: int = 100) -> Any:
    (phase,) = settings.all_phases()
    return training_arguments(settings, phase, 7, Path("nowhere"), num_steps, use_cpu=True)


def test_without_any_they_are_what_a_resumable_run_needs() -> None:
    arguments = made(section())
    assert (arguments.num_train_epochs, arguments.learning_rate) == (3, 2e-4)
    assert (arguments.seed, arguments.data_seed, arguments.save_steps) == (7, 7, 10)
    assert (arguments.per_device_train_batch_size, arguments.warmup_steps) == (1, 10)
    assert (arguments.adam_epsilon, arguments.weight_decay, arguments.max_grad_norm) == (1e-8, 0, 1)
    assert (arguments.lr_scheduler_type.value, arguments.report_to) == ("linear", [])
    assert getattr(arguments, CHECKPOINTING) is False


def test_what_is_given_is_passed_on() -> None:
    arguments = made(
        section(
            adam_epsilon=1e-5,
            weight_decay=1,  # a whole number will do
            adam_beta2=0.95,
            optim="sgd",
            lr_scheduler_type="polynomial",
            lr_scheduler_kwargs={"power": 2.0},
            warmup_steps=4,
            gradient_checkpointing=True,
            gradient_accumulation_steps=2,
        )
    )
    assert (arguments.adam_epsilon, arguments.weight_decay, arguments.adam_beta2) == (1e-5, 1, 0.95)
    assert (arguments.optim, arguments.lr_scheduler_type.value) == ("sgd", "polynomial")
    assert (arguments.lr_scheduler_kwargs, arguments.warmup_steps) == ({"power": 2.0}, 4)
    assert getattr(arguments, CHECKPOINTING) and arguments.gradient_accumulation_steps == 2
    assert getattr(arguments, f"{CHECKPOINTING}_kwargs") == {"use_reentrant": False}


@pytest.mark.parametrize(("given", "steps"), [({}, 2), ({"warmup_ratio": 0.5}, 14)])
def test_a_ratio_is_of_the_phases_steps_rounded_down(given: dict[str, Any], steps: int) -> None:
    assert made(section(**given), num_steps=29).warmup_steps == steps


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"adam_eps": 1e-5}, ["unknown setting train.arguments.adam_eps", "adam_epsilon"]),
        ({"zzzz": 1}, ["unknown setting train.arguments.zzzz"]),
        ({"adam_epsilon": "small"}, ["train.arguments.adam_epsilon = 'small'", "float"]),
        ({"adam_epsilon": 0.0}, ["train.arguments.adam_epsilon = 0.0", "above 0"]),
        (
            {"adam_epsilon": float("nan")},
            ["train.arguments", "adam_epsilon = nan is not finite"],
        ),
        ({"max_grad_norm": -1.0}, ["train.arguments.max_grad_norm = -1.0", "above 0"]),
        ({"weight_decay": -0.1}, ["train.arguments", "weight_decay"]),
        ({"adam_beta1": 1.5}, ["train.arguments", "beta"]),
        ({"torch_empty_cache_steps": 1.5}, ["torch_empty_cache_steps = 1.5"]),
        ({"lr_scheduler_type": "sideways"}, ["lr_scheduler_type = 'sideways'", "cosine"]),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ["evaluations while training"]),
        ({"lr_scheduler_kwargs": {"power": 2.0}}, ["lr_scheduler_kwargs", "'linear'", "power"]),
        ({"report_to": ["a_tracker_that_is_not_there"]}, ["train.arguments.report_to"]),
        ({"optim": "no_such_optimizer"}, ["transformers refuses", "no_such_optimizer"]),
        ({"num_train_epochs": 3}, ["set train.epochs"]),
        ({"learning_rate": 3.0}, ["set train.learning_rate"]),
        ({"output_dir": "here"}, ["checkpoints are kept in the run"]),
        ({"eval_steps": 3}, ["steermoe evaluate"]),
        ({"neftune_noise_alpha": 5.0}, ["noise"]),
    ],
    ids=str,
)
def test_what_cannot_hold_is_refused_in_one_line(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_names(section(**given))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_warm_up_as_long_as_the_phase_is_refused() -> None:
    with pytest.raises(TrainingError, match="warm-up of 6 steps is the whole run of 6"):
        made(section(warmup_steps=6), num_steps=6)
