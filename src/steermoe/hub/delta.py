"""The trained experts of a run as a delta."""

from __future__ import annotations

from pathlib import Path

from steermoe.config import EMBEDDED_MODEL
from steermoe.errors import RunDirectoryError
from steermoe.hub.files import DELTA
from steermoe.loading import model_source
from steermoe.moe.delta import save_delta
from steermoe.moe.stored import hash_checkpoint
from steermoe.store.names import MODEL
from steermoe.store.run import Run


def check_has_delta(run: Run) -> None:
    """Check that what a run has trained is a delta.

    Raises:
        RunDirectoryError: There is no hardened model, or more than experts were trained.
    """
    if not run.directory.file(MODEL).is_dir():
        raise RunDirectoryError(
            f"{run.path} has no hardened model: run `steermoe train --run {run.path}` first"
        )
    trained = run.config.train.all_parameters
    if trained != "experts":
        raise RunDirectoryError(
            f"{run.path} has trained {trained.replace('+', ' and ')}, and a delta holds experts alone: share the whole "
            "weights instead"
        )


def write_delta(run: Run, folder: Path) -> Path:
    """Write the trained experts of a run into a folder.

    Raises:
        RunDirectoryError: There is nothing that a delta could hold, or the base model was changed since.
    """
    check_has_delta(run)
    settings, known = run.config.model, run.state.model
    base = model_source(settings)
    if known.hash and hash_checkpoint(base) != known.hash:
        raise RunDirectoryError(
            f"the base model of {run.path} was changed since the run: put the files of {settings.id} back as they were"
        )
    path = folder / DELTA
    save_delta(
        base, run.directory.file(MODEL), run.trained_experts, path,
        revision=known.commit or settings.revision,
        name=EMBEDDED_MODEL if settings.id == EMBEDDED_MODEL else None,
    )  # fmt: skip
    return path
