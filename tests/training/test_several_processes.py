"""Training in two processes: the weights of one, whichever of them wrote the checkpoint that is gone on from.

Weights are compared to 1e-5, in fp32, where training changes them by up to .02: sums are made in another order (6e-8
was seen). Adam divides by the gradient's size and makes whole steps of the rounding of a gradient that is nearly 0, so
its epsilon is large here.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steermoe.store.names import MODEL
from steermoe.store.run import load_run
from tiny import copy_of, tiny_config
from torchrun import (
    alone,
    finished,
    here,
    started,
    stored,
    together,
    torchrun,
    wait_for,
    worker_of,
)

SETTINGS: dict[str, Any] = {
    "train": {"arguments": {"adam_epsilon": 1e-2, "gradient_accumulation_steps": 2}, "epochs": 4}
}
"""Eight steps of up to two micro-batches."""

LAST_BUT_FOUR = Path("checkpoints") / "phase-0" / "checkpoint-2" / "trainer_state.json"


def settings_of(sharding: str) -> list[str]:
    return ["--set", f"train.sharding={sharding}"]


@pytest.fixture(scope="module")
def identified(
    checkpoint: Path, small_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that is ready to be trained."""
    run = tmp_path_factory.mktemp("one") / "run"
    config = tiny_config(checkpoint, run, small_prompts, **SETTINGS)
    here("collect", config)
    here("identify", config)
    return run


@pytest.fixture(scope="module")
def trained(identified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained by one process."""
    run = copy_of(identified, tmp_path_factory.mktemp("trained") / "run")
    here("train", stored(run))
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def check_same(run: Path, trained: Path, checkpoint: Path) -> None:
    """Check that two runs have the same weights, and that these were trained."""
    found, expected, base = weights(run / MODEL), weights(trained / MODEL), weights(checkpoint)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    change = max(float((expected[name] - base[name]).abs().max()) for name in base)
    assert change > 1e-3
    steps, expected_steps = (
        load_run(folder).state.figures_of("train")["history"] for folder in (run, trained)
    )
    for step, expected_step in zip(steps, expected_steps, strict=True):
        assert step.keys() == expected_step.keys()
        for figure in ("loss", "refusal_loss", "retention_kl", "grad_norm", "learning_rate"):
            assert step[figure] == pytest.approx(expected_step[figure], rel=1e-3, abs=2e-5)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_does(
    sharding: str, identified: Path, trained: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run = copy_of(identified, tmp_path / "run")
    together("train", "--set", f"run={run}", *settings_of(sharding))
    check_same(run, trained, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("first", "then"), [("ddp", "one"), ("fsdp2", "one"), ("fsdp2", "ddp")])
def test_a_killed_training_goes_on_with_another_number_of_processes(
    first: str,
    then: str,
    rank: int,
    identified: Path,
    trained: Path,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    run = copy_of(identified, tmp_path / "run")
    process = torchrun("train", "--set", f"run={run}", *settings_of(first))
    wait_for((run / LAST_BUT_FOUR).exists, process)
    os.kill(worker_of(process, rank), signal.SIGKILL)
    assert finished(process)[0] != 0
    assert not (run / MODEL).exists()
    if then == "one":
        alone("train", "--set", f"run={run}", *settings_of("ddp"))
    else:
        together("train", "--set", f"run={run}", *settings_of(then))
    check_same(run, trained, checkpoint)


@pytest.mark.slow
def test_one_process_begins_and_two_go_on_with_shards(
    identified: Path, trained: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run = copy_of(identified, tmp_path / "run")
    process = started(["steermoe", "train", "--set", f"run={run}"])
    wait_for((run / LAST_BUT_FOUR).exists, process)
    process.kill()
    finished(process)
    together("train", "--set", f"run={run}", *settings_of("fsdp2"))
    check_same(run, trained, checkpoint)
