"""Which model a run is of, so that no other is taken for it."""

from __future__ import annotations

from pathlib import Path

from steermoe.analysis.selection import selectable_layers
from steermoe.config import EMBEDDED_MODEL, IdentifySection, ModelSection
from steermoe.errors import RunDirectoryError
from steermoe.hashes import sha256_of, stamp_of
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
        files=shaping_files(folder),
    )


SHAPING = (
    *("config.json", "generation_config.json", "processor_config.json"),
    *(
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*",
        "merges.txt",
        "*.model",
        "*.tiktoken",
    ),
    *("tekken.json", "chat_template*", "additional_chat_templates/*", "*.py"),
)
"""Files of a checkpoint, beside its weights, that shape what it is fed and what it replies."""


def shaping_files(folder: Path) -> dict[str, str]:
    """The hash of each of them, by its name in the checkpoint."""
    found = {path for pattern in SHAPING for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(found)}


def check_same_model(path: Path, asked: str, before: ModelRecord, now: ModelRecord) -> None:
    """Check that a run is of one model, down to its chat template.

    Args:
        path: The run directory.
        asked: What the model is called now.
        before: What the run is of.
        now: What it would be of.

    Raises:
        RunDirectoryError: It is of another model, of other weights, or a file of it that shapes replies was changed.
    """
    is_same_content = (bool(now.hash) and before.hash == now.hash) or (
        now.commit is not None and (before.id, before.commit) == (now.id, now.commit)
    )
    if (now.id, now.revision) != (before.id, before.revision) and not is_same_content:
        revision = f" @ {before.revision}" if before.revision else ""
        raise RunDirectoryError(
            f"run directory {path} belongs to model {before.id}{revision}, not {asked}; choose another with --run"
        )
    if before.commit != now.commit and before.commit is not None:
        raise RunDirectoryError(
            f"run directory {path} was made with other weights of {asked}: commit {before.commit}, and it is "
            f"{now.commit} now; go on with --set model.revision={before.commit}, or choose another with --run"
        )
    if before.hash != now.hash:
        raise RunDirectoryError(
            f"run directory {path} was made with other weights of {asked}; choose another with --run"
        )
    changed = sorted(
        name
        for name in before.files.keys() | now.files.keys()
        if before.files.get(name) != now.files.get(name)
    )
    if before.files and changed:
        raise RunDirectoryError(
            f"run directory {path} was made before {', '.join(changed)} of {asked} changed, which would give the base "
            "and the hardened model different prompts or replies: put it back, or choose another with --run"
        )
