"""Checkpoints of a sharded training: every process writes its part, and any number of processes reads them.

Written by torch.distributed.checkpoint as safetensors, so nothing is pickled. They hold what trains, by its name in the
model, and what the optimizer keeps of it, `optimizer:<name>:<key>`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from steermoe.errors import TrainingError

SHARDS = "sharded"
"""A folder of a checkpoint."""

SAYS = "trained.json"
"""What the checkpoint says of itself."""

OPTIMIZER = "optimizer"


def has_shards(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is one of a sharded training."""
    return (Path(checkpoint) / SHARDS / SAYS).is_file()


def save_shards(
    checkpoint: str | Path, model: nn.Module, optimizer: Any, metadata: Mapping[str, str]
) -> None:
    """Write this process's part; every process calls it."""
    folder = Path(checkpoint) / SHARDS
    folder.mkdir(parents=True, exist_ok=True)
    trained = _trained(model)
    state: dict[str, Tensor] = {name: parameter.detach() for name, parameter in trained.items()}
    kept = _plain(optimizer).state
    for name, parameter in trained.items():
        for key, value in kept[parameter].items():
            state[f"{OPTIMIZER}:{name}:{key}"] = value
    save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    (folder / SAYS).write_text(json.dumps(dict(metadata)), "utf-8")


def load_weights(checkpoint: str | Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Read what trains into a model, sharded or not.

    Raises:
        TrainingError: It holds another phase, or other experts.
    """
    folder = Path(checkpoint) / SHARDS
    if json.loads((folder / SAYS).read_text("utf-8")) != dict(metadata):
        raise TrainingError(f"checkpoint {checkpoint} holds other parameters; delete it")
    _load(folder, {name: parameter.detach() for name, parameter in _trained(model).items()})


def load_optimizer(checkpoint: str | Path, model: nn.Module, optimizer: Any) -> None:
    """Read the optimizer's state, of a model that is sharded or not; the settings of its groups stay as they are."""
    folder = Path(checkpoint) / SHARDS
    trained = _trained(model)
    tensors: dict[str, Tensor] = {}
    for name, shape, dtype in _stored(folder):
        kind, _, rest = name.partition(":")
        if kind == OPTIMIZER:
            parameter = trained[rest.rpartition(":")[0]]
            like = shape == parameter.shape
            tensors[name] = (
                torch.zeros_like(parameter, dtype=dtype)
                if like
                else torch.zeros(shape, dtype=dtype)
            )
    _load(folder, tensors)
    plain = _plain(optimizer)
    names = {id(parameter): name for name, parameter in trained.items()}
    order = [names[id(parameter)] for group in plain.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        of, _, key = name.partition(":")[2].rpartition(":")
        state.setdefault(order.index(of), {})[key] = tensor
    groups = plain.state_dict()["param_groups"]
    plain.load_state_dict({"state": state, "param_groups": groups})


@torch.no_grad()
def shard_state(optimizer: Any) -> None:
    """Leave this process its part of a state that was read whole, of parameters that are sharded."""
    for parameter, state in _plain(optimizer).state.items():
        if isinstance(parameter, DTensor):
            for name, value in state.items():
                if value.shape == parameter.shape and not isinstance(value, DTensor):
                    mesh, placements = parameter.device_mesh, parameter.placements
                    state[name] = distribute_tensor(value, mesh, placements)


def _stored(folder: Path) -> Iterator[tuple[str, torch.Size, torch.dtype]]:
    """Name, shape and type of every tensor of a checkpoint, as it was before it was sharded."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, about in sorted(found.items()):
        tensor: Any = about
        yield name, tensor.size, tensor.properties.dtype


@torch.no_grad()
def _load(folder: Path, into: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*load in a single process")
        load(into, storage_reader=HuggingFaceStorageReader(str(folder)))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _plain(optimizer: Any) -> Any:
    """The optimizer that accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)
