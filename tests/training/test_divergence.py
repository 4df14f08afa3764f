"""Training that goes astray stops in one line, and leaves no model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TinyCheckpoint
from ready_run import Ready, ready_run
from steermoe.errors import TrainingError
from steermoe.store.names import CHECKPOINTS, MODEL, SFT_DATASET
from steermoe.training import trainer


@pytest.fixture
def ready(tmp_path: Path, tiny_checkpoint: TinyCheckpoint, small_prompts: Path) -> Ready:
    return ready_run(tiny_checkpoint("mixtral"), small_prompts, tmp_path / "run")


def diverges(ready: Ready, **settings: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        ready.train(**settings)
    message = str(caught.value)
    assert message.startswith("training diverged: ") and "\n" not in message
    assert "train.learning_rate" in message
    assert not ready.run.has(MODEL) and not ready.run.has(SFT_DATASET)
    return message


def test_a_loss_that_is_no_number_names_its_step(ready: Ready) -> None:
    assert "the loss of step 2 is nan" in diverges(ready, learning_rate=1e30)
    kept = list((ready.run.file(CHECKPOINTS) / "phase-0").glob("checkpoint-*"))
    assert all(path.name == "checkpoint-1" for path in kept)


def test_weights_that_only_the_last_step_spoils_are_found_before_anything_is_saved(
    ready: Ready,
) -> None:
    # One epoch of one accumulated step: no later loss tells.
    message = diverges(ready, learning_rate=1e30, epochs=1, gradient_accumulation_steps=3)
    assert "after the last step" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    step = trainer.ExpertMaskingTrainer.training_step

    def spoiling(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        loss = step(self, model, inputs, *more)
        if self.state.global_step == 1:
            parameter = next(p for p in model.parameters() if p.grad is not None)
            parameter.grad.view(-1)[0] = value
        return loss

    monkeypatch.setattr(trainer.ExpertMaskingTrainer, "training_step", spoiling)
    assert "is not finite in step 2" in diverges(ready)


def test_a_checkpoint_never_holds_weights_that_are_not_finite(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.ExpertMaskingTrainer.training_step

    def spoiling(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        loss = step(self, model, inputs, *more)
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = math.nan
        return loss

    monkeypatch.setattr(trainer.ExpertMaskingTrainer, "training_step", spoiling)
    assert "is not finite after step 1" in diverges(ready)
    assert not list(ready.run.file(CHECKPOINTS).rglob("trained.safetensors"))
