"""Which model a run is of, so that no other is taken for it."""

from __future__ import annotations

from pathlib import Path

from steermoe.analysis.selection import selectable_layers
from steermoe.config import EMBEDDED_MODEL, IdentifySection, ModelSection
from steermoe.hashes import stamp_of
from steermoe.store.state import ModelRecord


def check_layers(settings: ModelSection, source: str, bounds: IdentifySection) -> None:
    """Check that something is left to select from: collecting takes long, and identification would refuse it after.

    Raises:
        SelectionError: `identify.first_layer` and `last_layer` hold none of the model's MoE layers.
    """
    from steermoe.loading import describe_model

    known = describe_model(settings, source).layer_indices
    selectable_layers(known, bounds.first_layer, bounds.last_layer)


def identify_model(
    settings: ModelSection, source: str, before: ModelRecord | None, verify: bool = False
) -> ModelRecord:
    """What a model is known by: the hash of a local checkpoint, the commit of one on the hub.

    A local checkpoint that the run has hashed before, and whose files have the size and time of change that they had,
    is not read again: a large one would take minutes.

    Args:
        settings: How it is named.
        source: Directory or hub id.
        before: What the run knows of its model; None for a new run.
        verify: Hash it in any case.

    Raises:
        ModelError: It is not there, or, for a new run, cannot be used.
    """
    from steermoe.loading import describe_model, hub_commit
    from steermoe.moe.stored import hash_checkpoint

    if before is None:
        describe_model(
            settings, source
        )  # what cannot be used is refused before its weights are read
    folder = Path(source)
    if not folder.is_dir():
        return ModelRecord(
            id=settings.id, revision=settings.revision, commit=hub_commit(settings, source)
        )
    # A relative path would be another directory for a later step that is started elsewhere.
    name = settings.id if settings.id == EMBEDDED_MODEL else str(folder.resolve())
    stamp = stamp_of(folder)
    known = before is not None and before.hash and before.stamp == stamp and not verify
    return ModelRecord(
        id=name,
        revision=settings.revision,
        hash=before.hash if known and before is not None else hash_checkpoint(source),
        stamp=stamp,
    )
