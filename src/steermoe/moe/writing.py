"""Writing a model's weights as transformers would, without a second copy of them in memory.

Checkpoints keep the names that an architecture was published with, mostly one tensor for each expert and matrix, so
fused tensors are taken apart when they are saved. transformers takes all of them apart at once, which copies two
thirds of the experts. Here names, shapes and places in the files are worked out from shapes alone; then the decoder
layers are taken apart one after the other, and each tensor is written to its place. A checkpoint in one file is the
same byte for byte; in several, tensors that are parts of one are not kept together. Memory holds one layer's tensors
twice at most.

A safetensors file is the length of its header in 8 bytes, a JSON header with every tensor's dtype, shape and place,
and the tensors' bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from steermoe.errors import TrainingError
from steermoe.moe.sharded import gathered
from steermoe.moe.stored import INDEX_NAME

PATTERN = "model{suffix}.safetensors"

_DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls them, in the order in which it lays them out."""

_LAYER = re.compile(r"\.\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is to lie.

    Attributes:
        file: The safetensors file.
        start: Its first byte there.
        num_bytes: How many it has.
    """

    file: Path
    start: int
    num_bytes: int


def write_weights(
    model: Any, folder: Path, shard_size: str, stored: Mapping[str, str] | None = None
) -> None:
    """Write the weights of a model, and the index of their files where there are several.

    Args:
        model: Any transformers model; nothing of it is changed.
        folder: An existing directory.
        shard_size: Largest file, such as `2GB`; a larger tensor has one of its own.
        stored: The types, as safetensors calls them, that tensors have in the checkpoint it was read from, by name.
            transformers keeps some (routers, since 5.24) in float32 whatever the checkpoint has: they are written in
            the checkpoint's type.

    Raises:
        TrainingError: The architecture saves tensors that are made of several layers' own.
    """
    tensors = _in_stored_types(model, _own_tensors(model), stored or {})
    on_meta = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in tensors.items()
    }
    saved: dict[str, Tensor] = revert_weight_conversion(model, on_meta)
    split = split_state_dict_into_shards_factory(
        saved, filename_pattern=PATTERN, max_shard_size=shard_size, get_storage_size=_num_bytes
    )
    places: dict[str, Place] = {}
    for file, names in split.filename_to_tensors.items():
        places |= _reserve(folder / file, {name: saved[name] for name in names})
    for group in _by_layer(tensors):
        whole = {name: gathered(tensor) for name, tensor in group.items()}
        for name, tensor in revert_weight_conversion(model, whole).items():
            _write(places.pop(name), tensor)
    if places:
        raise TrainingError(
            f"{min(places)} cannot be saved: it is made of tensors of several layers, which this version does not know"
        )
    if split.is_sharded:
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX_NAME).write_text(text, "utf-8")


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _own_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors that are saved, by their name in the model; tied ones once. They are the model's own memory."""
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    tensors = {n: tensor for n, tensor in model.state_dict().items() if n not in ignored}
    return remove_tied_weights_from_state_dict(tensors, model)


def _in_stored_types(
    model: Any, tensors: Mapping[str, Tensor], stored: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors of a model of a narrower type that are kept in float32, in the type that the checkpoint has them in."""
    found = dict(tensors)
    narrower = {"BF16": torch.bfloat16, "F16": torch.float16}
    for name, tensor in tensors.items():
        if tensor.dtype is not torch.float32 or model.dtype is torch.float32:
            continue
        on_meta = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")}
        types = {stored.get(saved) for saved in revert_weight_conversion(model, on_meta)}
        if len(types) == 1 and (dtype := narrower.get(types.pop() or "")) is not None:
            found[name] = tensor.to(dtype)
    return found


def _by_layer(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors of one numbered layer after another: what is taken apart, or put together, lies within one."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.search(name)
        groups.setdefault(name[: layer.end()] if layer else "", {})[name] = tensor
    yield from groups.values()


def _reserve(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Write the header of a file, make it as long as it will be, and return the tensors' places.

    Tensors lie in the order of the library: by dtype, larger ones first so that each is aligned, then by name.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    sizes, end = {}, 0
    order = {dtype: rank for rank, dtype in enumerate(_DTYPES)}
    for name in sorted(tensors, key=lambda name: (order[tensors[name].dtype], name)):
        tensor = tensors[name]
        sizes[name] = (end, _num_bytes(tensor))
        end += sizes[name][1]
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [sizes[name][0], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + end)
    return {
        name: Place(file, 8 + len(text) + start, num_bytes)
        for name, (start, num_bytes) in sizes.items()
    }


def _write(place: Place, tensor: Tensor) -> None:
    """Write a tensor's bytes to their place."""
    data = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
    assert data.nbytes == place.num_bytes
    with place.file.open("r+b") as handle:
        handle.seek(place.start)
        handle.write(data.data)
