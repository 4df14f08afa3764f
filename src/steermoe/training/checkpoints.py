"""Where training goes on from: the checkpoints of each phase, and which of them were written to their end."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from steermoe.training.sharded_checkpoints import has_shards
from steermoe.training.trainer import TRAINED_WEIGHTS

STATE = "trainer_state.json"


class PhaseCheckpoints:
    """The checkpoints of one phase: `checkpoints/phase-0/checkpoint-20`.

    Args:
        folder: Of all phases.
        phase: Which one, counted from 0.
    """

    def __init__(self, folder: Path, phase: int) -> None:
        self.folder = folder / f"phase-{phase}"

    def last(self) -> Path | None:
        """The last checkpoint that was written to its end: one killed half-way is removed."""
        while self.folder.is_dir():
            last = get_last_checkpoint(str(self.folder))  # type: ignore[no-untyped-call]  # transformers
            if last is None:
                return None
            if _is_whole(Path(last)):
                return Path(last)
            shutil.rmtree(last)
        return None

    def finished(self, num_steps: int) -> Path | None:
        """The checkpoint of the phase's last step, if it came so far."""
        last = self.last()
        return last if last is not None and state_of(last).global_step >= num_steps else None

    def remove(self) -> None:
        """Remove all of them."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def remove_all_but(self, kept: Path) -> None:
        """Of a phase that is done, keep what the next one builds on."""
        for checkpoint in sorted(self.folder.glob("checkpoint-*")):
            if checkpoint != kept:
                shutil.rmtree(checkpoint)


def state_of(checkpoint: Path) -> TrainerState:
    """What the trainer knew when it wrote a checkpoint."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / STATE))
    return state


def _is_whole(checkpoint: Path) -> bool:
    """Whether a process died neither while it wrote a checkpoint nor while it removed it."""
    try:
        # The trainer writes its state last of all, and not under a temporary name.
        state_of(checkpoint)
    except (OSError, ValueError):
        return False
    needed = ["scheduler.pt", "rng_state*.pth"]
    if not has_shards(checkpoint):
        needed += [TRAINED_WEIGHTS, "optimizer.pt"]
    return all(any(checkpoint.glob(name)) for name in needed)
