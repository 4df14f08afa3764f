"""A delta: the selected experts of a hardened checkpoint in one small file, and back onto its base model.

It is a safetensors file with the selected experts' tensors under their names in the checkpoint (of a tensor that
holds all experts, the selected rows), and in its header what it belongs to and a hash of all that. A delta that was
damaged, or belongs to another base model, is refused before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from steermoe.errors import ModelError
from steermoe.moe.checkpoint import Comparison, Owners, comparable, compare, save_again
from steermoe.moe.layers import load_description
from steermoe.moe.slices import ExpertId
from steermoe.moe.stored import (
    INDEX_NAME,
    StoredTensor,
    hash_checkpoint,
    hash_tensors,
    local_folder,
    read_header,
    stored_tensors,
)

DELTA_FORMAT = "steermoe-delta-2"

_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx)$|\.index\.json$")


@dataclass(frozen=True, slots=True)
class DeltaHeader:
    """What a delta belongs to.

    Attributes:
        base: Name of the base model: on the hub, of the embedded model, or of its directory.
        revision: Commit of the base on the hub; None for a directory.
        base_hash: Hash of the base's weights, as `hash_checkpoint`.
        resaved_as: The dtype in which the base must be saved again before the delta fits; None if it fits as it is.
        resaved_by: The version of transformers that saved it again; None likewise.
        resaved_hash: Hash of the weights that it saved; None likewise.
        experts: The `(decoder layer, expert)` pairs, ascending.
    """

    base: str
    revision: str | None
    base_hash: str
    resaved_as: str | None
    resaved_by: str | None
    resaved_hash: str | None
    experts: tuple[ExpertId, ...]

    def __post_init__(self) -> None:
        """Raises TypeError for what `save_delta` never writes: the fields may come from a file."""
        resaved = (self.resaved_as, self.resaved_by, self.resaved_hash)
        texts = [text for text in (self.revision, *resaved) if text is not None]
        dtype = getattr(torch, self.resaved_as or "bfloat16", None)
        if (
            not all(isinstance(text, str) for text in (self.base, self.base_hash, *texts))
            or not isinstance(dtype, torch.dtype)
            or resaved.count(None) not in (0, len(resaved))
        ):
            raise TypeError("a field of the header has the wrong type")


def save_delta(
    base: str | Path,
    hardened: str | Path,
    experts: Iterable[ExpertId],
    path: str | Path,
    *,
    revision: str | None = None,
    name: str | None = None,
) -> Comparison:
    """Write the selected experts of a hardened checkpoint to one small file.

    Args:
        base: Directory or hub name of the base model.
        hardened: Directory of the hardened one.
        experts: The selected `(decoder layer, expert)` pairs.
        path: File to write.
        revision: Branch, tag or commit of the base on the hub.
        name: What the delta calls its base; by default its hub name, or the last part of its directory.

    Raises:
        TrainingError: If anything else differs: the delta would not be the whole change.
    """
    path, folder = Path(path), local_folder(base, revision)
    is_directory = Path(base).is_dir()
    description = load_description(hardened, local_files_only=True)
    owners = Owners.of(description, experts)
    with comparable(folder, Path(hardened)) as (before, after, resaved_as):
        comparison = compare(before, after, owners)
        resaved_hash = None if resaved_as is None else hash_tensors(before)
    header = DeltaHeader(
        base=name or (folder.name if is_directory else str(base)),
        revision=None if is_directory else folder.name,  # a snapshot is named for its commit
        base_hash=hash_checkpoint(folder),
        resaved_as=resaved_as,
        resaved_by=None if resaved_as is None else transformers.__version__,
        resaved_hash=resaved_hash,
        experts=tuple(sorted(owners.experts)),
    )
    parts = owners.parts(after)
    changes = {part: after[part] for part in parts}
    fields = {"format": DELTA_FORMAT, **asdict(header)}
    fields["content_hash"] = _content_hash(fields, hash_tensors(changes, parts))
    # One entry: safetensors writes several in no fixed order.
    metadata = {"steermoe": json.dumps(fields, sort_keys=True)}
    unfinished = path.with_name(path.name + ".tmp")
    save_file(
        {part: after[part].read(rows) for part, rows in parts.items()},
        unfinished,
        metadata=metadata,
    )
    os.replace(unfinished, path)
    return comparison


def read_delta_header(path: str | Path) -> DeltaHeader:
    """What a delta belongs to; the whole file is read, to make sure that it is as it was written.

    Raises:
        ModelError: If the file is no delta, or damaged.
    """
    return _read(Path(path))[0]


def apply_delta(
    base: str | Path, delta: str | Path, output: str | Path, *, revision: str | None = None
) -> Path:
    """Write the hardened checkpoint that a delta makes of its base model.

    Args:
        base: Directory or hub name of the base model.
        delta: File that `save_delta` wrote.
        output: Directory to make; it may exist if it is empty.
        revision: Branch, tag or commit of the base on the hub.

    Returns:
        The directory.

    Raises:
        ModelError: If the delta is damaged, or the base model is not the one that it was made of.
    """
    delta, output = Path(delta), Path(output)
    header, changes = _read(delta)
    folder = local_folder(base, revision)
    found = hash_checkpoint(folder)
    if found != header.base_hash:
        raise ModelError(
            f"{base} is not the base model of {delta}: that is {header.base} with content hash "
            f"{header.base_hash[:12]}, not {found[:12]}"
        )
    owners = _owners(header, delta, folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as staging:
        made = Path(staging) / "model"
        _copy_checkpoint(folder, made, header.resaved_as)
        targets = stored_tensors(made)
        if header.resaved_hash is not None and header.resaved_hash != hash_tensors(targets):
            raise ModelError(
                f"{base}, saved again in {header.resaved_as}, is not what {delta} was made of; "
                f"install transformers {header.resaved_by}, which it was written with"
            )
        parts = owners.parts(targets)
        _check_parts(delta, changes, targets, parts)
        for name, rows in parts.items():
            _write_change(targets[name], changes[name], rows)
        if output.is_dir():
            output.rmdir()
        made.rename(output)
    return output


def _read(path: Path) -> tuple[DeltaHeader, dict[str, StoredTensor]]:
    """The header of a delta and where its tensors lie, after the content hash has been checked."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist; give the file that holds the delta")
    tensors, metadata = read_header(path)
    no_delta = ModelError(f"{path} is not a {DELTA_FORMAT} file; write one with steermoe export")
    try:
        fields = json.loads(metadata["steermoe"])
    except (KeyError, TypeError, ValueError):
        raise no_delta from None
    if not isinstance(fields, dict) or fields.get("format") != DELTA_FORMAT:
        raise no_delta
    written_hash = fields.pop("content_hash", None)
    if written_hash != _content_hash(fields, hash_tensors(tensors)):
        raise ModelError(f"{path} is damaged: its content does not have its hash; copy it again")
    del fields["format"]
    try:
        fields["experts"] = tuple((int(layer), int(expert)) for layer, expert in fields["experts"])
        header = DeltaHeader(**fields)
    except (KeyError, TypeError, ValueError):
        raise no_delta from None
    return header, tensors


def _content_hash(fields: Mapping[str, Any], tensors_hash: str) -> str:
    """SHA-256 of the header in JSON, keys sorted, followed by the hash of the tensors."""
    header = json.dumps(fields, sort_keys=True)
    return hashlib.sha256((header + tensors_hash).encode("utf-8")).hexdigest()


def _owners(header: DeltaHeader, delta: Path, folder: Path) -> Owners:
    """Which parts of the base a delta replaces, once the base is known to have such experts."""
    description = load_description(folder, local_files_only=True, dequantize=True)
    for layer, expert in header.experts:
        if layer not in description.layer_indices or not 0 <= expert < description.num_experts:
            raise ModelError(
                f"{delta} has expert {expert} of layer {layer}, which {header.base} has not; write the delta again"
            )
    return Owners.of(description, header.experts)


def _check_parts(
    delta: Path,
    changes: Mapping[str, StoredTensor],
    targets: Mapping[str, StoredTensor],
    parts: Mapping[str, list[int] | None],
) -> None:
    """Insist that a delta has exactly the tensors of its experts, in the shapes and dtypes of the base.

    Raises:
        ModelError: Names the first tensor that is missing, too many or of another kind.
    """
    for name in sorted(changes.keys() ^ parts.keys()):
        what = "lacks" if name in parts else "has no right to"
        raise ModelError(f"{delta} {what} {name} of its experts; write the delta again")
    for name, rows in parts.items():
        target, change = targets[name], changes[name]
        shape = target.shape if rows is None else (len(rows), *target.shape[1:])
        if (change.dtype, change.shape) != (target.dtype, shape):
            raise ModelError(
                f"{name} in {delta} is {change.dtype} {list(change.shape)}, but the base model takes "
                f"{target.dtype} {list(shape)}; write the delta again"
            )


def _copy_checkpoint(base: Path, folder: Path, resaved_as: str | None) -> None:
    """Make a copy of a checkpoint that can be written into: weights, config, tokenizer, licence."""
    folder.mkdir()
    if resaved_as is not None:
        save_again(base, folder, resaved_as)
        weights = set()
    else:
        weights = {tensor.file.name for tensor in stored_tensors(base).values()} | {INDEX_NAME}
    for file in sorted(base.iterdir()):
        if not file.is_file() or file.name == "README.md" or (folder / file.name).exists():
            continue
        if file.name in weights or not _WEIGHTS.search(file.name):
            shutil.copyfile(file, folder / file.name)


def _write_change(target: StoredTensor, change: StoredTensor, rows: list[int] | None) -> None:
    """Overwrite a tensor, or the given rows of it, in its file."""
    spans = [(target.start, target.end)] if rows is None else [target.row(row) for row in rows]
    with target.file.open("r+b") as handle, change.file.open("rb") as source:
        source.seek(change.start)
        for start, end in spans:
            handle.seek(start)
            handle.write(source.read(end - start))
