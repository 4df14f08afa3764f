"""Training spread over several processes: their process group, and the model that each of them has.

transformers knows nothing of it: torchrun's variables are hidden from it (`processes.joined`), so every process sees
every micro-batch, and computes its share of it (`shares.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from steermoe.config import TrainSection
from steermoe.errors import ConfigError
from steermoe.moe.description import MoEDescription
from steermoe.processes import NO_LIMIT, Processes, current

SHARDED = "fsdp2"


def check_sharding(settings: TrainSection, count: int) -> None:
    """Refuse a sharded training that cannot be.

    Args:
        settings: Of training.
        count: How many processes there are.

    Raises:
        ConfigError: There is one process; or something else than the selected experts trains.
    """
    if settings.sharding != SHARDED:
        return
    if count == 1:
        raise ConfigError(
            f"train.sharding = {SHARDED!r} spreads the model over processes, and there is one: start with torchrun "
            "--nproc-per-node N, or leave train.sharding at 'ddp'"
        )
    if settings.all_parameters != "experts" or len(settings.all_phases()) > 1:
        raise ConfigError(
            f"train.sharding = {SHARDED!r} trains the selected experts alone, in one phase: set train.sharding = 'ddp' "
            f"for {settings.all_parameters!r}"
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """How a training is spread.

    Attributes:
        processes: The processes that train.
        is_sharded: Whether each has a part of the model only.
    """

    processes: Processes
    is_sharded: bool

    def shard(self, model: nn.Module, description: MoEDescription) -> None:
        """Leave this process its part of each decoder layer, and of the rest."""
        kind = _device_type()
        mesh = init_device_mesh(kind, (self.processes.count,))
        for layer in model.get_submodule(description.decoder_layers_name).children():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrapped(self, model: nn.Module, may_be_unused: bool) -> nn.Module:
        """The model as it is called, so that gradients are averaged over the processes.

        Args:
            model: The model, sharded already if it is to be.
            may_be_unused: Whether a pass may leave out a parameter that trains.
        """
        if self.is_sharded:
            return model
        # All processes have read the same weights: none is sent to the others first.
        return DistributedDataParallel(model, init_sync=False, find_unused_parameters=may_be_unused)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over the processes."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.processes.count

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each number over the processes; all have the same names."""
        names = sorted(values)
        total = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(total)
        return {name: float(x) / self.processes.count for name, x in zip(names, total, strict=True)}


@contextmanager
def spread_over(settings: TrainSection) -> Iterator[Spread | None]:
    """The process group of a training, for as long as the context lasts; None where one process trains."""
    processes = current()
    if processes.count == 1:
        yield None
        return
    backend = "cpu:gloo,cuda:nccl" if _device_type() == "cuda" else "gloo"
    store: Any = processes.store
    dist.init_process_group(
        backend,
        store=PrefixStore(processes.unique("training"), store),
        rank=processes.rank,
        world_size=processes.count,
        timeout=NO_LIMIT,
    )
    verbosity = transformers.logging.get_verbosity()
    try:
        # It wonders that it has not made the group itself.
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers left it untyped
        yield Spread(processes, settings.sharding == SHARDED)
    finally:
        transformers.logging.set_verbosity(verbosity)
        end_group()


def end_group() -> None:
    """Destroy the process group, and end its threads.

    A thread of gloo lets go of the tensors of a collective once that is done. If that comes last, it needs Python's
    lock, and a thread that wants it while Python ends aborts the whole process. `destroy_process_group` ends the
    threads of a group that nobody holds any more; device meshes hold it, and caches of DTensor hold them. A sharded
    model holds it too: let go of that first.
    """
    gc.collect()
    for found in gc.get_objects():
        if type(found) is DeviceMesh:
            getattr(found, "_pg_registry", {}).clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
