"""The tensors of a checkpoint where they lie on disk, read as bytes: no model, and no second copy in memory.

A safetensors file is the length of its header in 8 bytes, a JSON header with every tensor's dtype, shape and
place, and the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steermoe.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
"""File of a checkpoint in several files that says which tensor is in which."""

_WHOLE_NAME = "model.safetensors"
_CHUNK_SIZE = 1 << 24


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor of a checkpoint lies.

    Attributes:
        name: Its name in the checkpoint.
        file: The safetensors file.
        dtype: As the file calls it, for example `BF16`.
        shape: Its shape.
        start: First byte in the file.
        end: Byte after the last.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self, rows: Sequence[int] | None = None) -> Tensor:
        """The tensor, or only the given rows along its first axis."""
        with safe_open(self.file, framework="pt") as file:
            if rows is None:
                whole: Tensor = file.get_tensor(self.name)
                return whole
            part = file.get_slice(self.name)
            return torch.cat([part[row : row + 1] for row in rows])

    def chunks(self, rows: Sequence[int] | None = None) -> Iterator[bytes]:
        """The bytes of the tensor, or only of the given rows, some megabytes at a time."""
        spans = [(self.start, self.end)] if rows is None else [self.row(row) for row in rows]
        with self.file.open("rb") as handle:
            for start, end in spans:
                handle.seek(start)
                left = end - start
                while left:
                    chunk = handle.read(min(_CHUNK_SIZE, left))
                    if not chunk:
                        raise ModelError(f"{self.file} is cut short; copy it again")
                    left -= len(chunk)
                    yield chunk

    def row(self, index: int) -> tuple[int, int]:
        """First byte of a row along the first axis, and the byte after it."""
        size = (self.end - self.start) // self.shape[0]
        return self.start + index * size, self.start + (index + 1) * size

    def same_bytes(self, other: StoredTensor) -> bool:
        """Whether two tensors are equal bit for bit."""
        return (self.dtype, self.shape) == (other.dtype, other.shape) and all(
            mine == theirs for mine, theirs in zip(self.chunks(), other.chunks(), strict=True)
        )

    def differing_rows(self, other: StoredTensor) -> list[int]:
        """Rows along the first axis in which two tensors of one shape and dtype differ."""
        differing = []
        with self.file.open("rb") as mine, other.file.open("rb") as theirs:
            for index in range(self.shape[0]):
                start, end = self.row(index)
                mine.seek(start)
                theirs.seek(other.row(index)[0])
                if mine.read(end - start) != theirs.read(end - start):
                    differing.append(index)
        return differing


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Where every tensor of a checkpoint lies, by name.

    Raises:
        ModelError: If there are no safetensors files, or one cannot be understood.
    """
    folder = Path(folder)
    if (folder / INDEX_NAME).is_file():
        try:
            weight_map = json.loads((folder / INDEX_NAME).read_text("utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder / INDEX_NAME} cannot be read; copy the checkpoint again"
            ) from error
    else:
        weight_map, files = None, [_WHOLE_NAME]
    found: dict[str, StoredTensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"{folder} has no {file}; only safetensors checkpoints can be used")
        for name, tensor in read_header(folder / file)[0].items():
            if weight_map is None or weight_map.get(name) == file:
                found[name] = tensor
    return found


def read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of one safetensors file, from its header: a length, then that much JSON.

    Raises:
        ModelError: If it is no safetensors file, or its tensors do not fill it exactly.
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = file.stat().st_size
            if 8 + length > size:
                raise ValueError
            entries = json.loads(handle.read(length))
        metadata = entries.pop("__metadata__", {})
        tensors = {
            name: StoredTensor(
                name=name,
                file=file,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=8 + length + entry["data_offsets"][0],
                end=8 + length + entry["data_offsets"][1],
            )
            for name, entry in entries.items()
        }
        if any(tensor.end > size for tensor in tensors.values()):
            raise ModelError(f"{file} is cut short; copy it again")
        # The library knows the size of every dtype, and insists on tensors without gap or overlap.
        with safe_open(file, framework="pt"):
            pass
    except (ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{file} is not a safetensors file; copy it again") from error
    return tensors, metadata


def hash_checkpoint(source: str | Path, revision: str | None = None) -> str:
    """Hash of a checkpoint's weights, as `hash_tensors`, however they are split into files.

    Args:
        source: Directory, or name on the model hub of a model that is in the local cache.
        revision: Branch, tag or commit on the hub.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    return hash_tensors(stored_tensors(local_folder(source, revision)))


def hash_tensors(
    tensors: Mapping[str, StoredTensor], rows_of: Mapping[str, Sequence[int] | None] | None = None
) -> str:
    """Hash of tensors: every name, dtype, shape and value, in the order of their names.

    Args:
        tensors: The tensors, by name.
        rows_of: The rows that count of a tensor, as if it had no others; None or nothing for all.

    Returns:
        SHA-256, in hexadecimal digits, of each tensor's `["name", "dtype", [shape]]` in JSON and its bytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        rows = None if rows_of is None else rows_of.get(name)
        shape = tensor.shape if rows is None else (len(rows), *tensor.shape[1:])
        digest.update(json.dumps([name, tensor.dtype, shape]).encode("utf-8"))
        for chunk in tensor.chunks(rows):
            digest.update(chunk)
    return digest.hexdigest()


def local_folder(source: str | Path, revision: str | None) -> Path:
    """The directory of a model: itself, or its snapshot in the local cache of the hub."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), revision=revision, local_files_only=True))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        which = str(source) if revision is None else f"{source} at revision {revision}"
        raise ModelError(
            f"{which} is neither a directory nor in the local cache of the model hub; download it first"
        ) from error
