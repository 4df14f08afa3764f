"""A finished tiny run that is ready to train again, under settings of its own, and what that changed on disk."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steermoe.config import Config, TrainSection
from steermoe.records import Expert
from steermoe.stages.train import train
from steermoe.store.directory import RunDirectory
from steermoe.store.names import CHECKPOINTS, MODEL, SFT_DATASET
from tiny import Listener, copy_of, finished_run, tiny_config

EXPERT = re.compile(r"layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.")


OWN = frozenset(TrainSection.model_fields)


class Ready:
    """A run that is ready to train, on Mixtral."""

    def __init__(self, folder: Path, checkpoint: Path, prompts: Path) -> None:
        self.checkpoint, self.prompts = checkpoint, prompts
        self.run = RunDirectory(folder)
        self.listener = Listener()
        shutil.rmtree(self.run.file(MODEL))
        self.run.remove(SFT_DATASET)

    def config(self, **settings: Any) -> Config:
        """Of a run; what transformers is handed may be among the settings of training."""
        arguments = {name: settings.pop(name) for name in [*settings] if name not in OWN}
        if arguments:
            settings["arguments"] = arguments
        return tiny_config(self.checkpoint, self.run.path, self.prompts, train=settings)

    def train(self, **settings: Any) -> dict[str, Any]:
        figures = train(self.run, self.config(**settings), self.listener)
        self.run.remove_unfinished(CHECKPOINTS)  # as the pipeline does when the stage is done
        return figures

    def select(self, *experts: tuple[int, int], **per_batch: list[list[int]]) -> None:
        """Write another selection."""
        selection = self.run.read_selection()
        batches = {
            int(name.removeprefix("b")): tuple(Expert(*pair) for pair in chosen)
            for name, chosen in per_batch.items()
        }
        self.run.write_selection(
            dataclasses.replace(
                selection,
                overall=tuple((Expert(*pair), 0.1) for pair in experts),
                per_batch=batches or selection.per_batch,
            )
        )

    def changed(self) -> set[tuple[int, int]]:
        return changed_experts(self.checkpoint, self.run.file(MODEL))


def ready_run(checkpoint: Path, prompts: Path, folder: Path) -> Ready:
    """A copy of the finished run on a checkpoint."""
    return Ready(copy_of(finished_run(checkpoint, prompts), folder), checkpoint, prompts)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def changed_experts(base: Path, hardened: Path) -> set[tuple[int, int]]:
    """The experts that differ; anything else that differs fails here."""
    before, after = tensors(base), tensors(hardened)
    assert before.keys() == after.keys()
    changed = set()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape)
        if not torch.equal(tensor, after[name]):
            place = EXPERT.search(name)
            assert place is not None, f"{name} changed"
            changed.add((int(place[1]), int(place[2])))
    return changed


class Died(Exception):
    pass


def die_after(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, step: int, phase: int = 0, **settings: Any
) -> None:
    """Train until a checkpoint of a phase is written, and no further."""
    from steermoe.training import fit

    on_step_end = fit._BarCallback.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == step + 1 and args.output_dir.endswith(f"phase-{phase}"):
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(fit._BarCallback, "on_step_end", stop)
        with pytest.raises(Died):
            ready.train(**settings)
    assert ready.run.file(f"{CHECKPOINTS}/phase-{phase}/checkpoint-{step}").is_dir()
