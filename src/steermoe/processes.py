"""Several processes of one run, as torchrun starts them: which is which, and how they wait and deal out work.

Rank 0 leads: it alone holds the lock, writes `run.json` and results, and prints. The others do what it tells them to.
Words go as JSON through the store that torchrun keeps for its processes. Waiting has no time limit and looks at the
store a few times a second: a rank that fails leaves a word there, and torchrun stops all of them where one dies.

torchrun's variables are hidden while a run goes on, for libraries that find them take every process for their own.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from steermoe.errors import ConfigError, OtherProcessFailed, SteerMoEError

T = TypeVar("T")

NO_LIMIT = timedelta(days=365)
"""How long a collective may take: evaluating a large model takes days, and torchrun notices a rank that dies."""

LAUNCHER = (
    *("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_"),
    *("PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"),
)
"""How the names of the variables begin that torchrun sets, and MPI where SLURM starts torchrun."""

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Variables by which libraries print nothing but errors."""

GPUS = "CUDA_VISIBLE_DEVICES"

FIRST_WAIT, LONGEST_WAIT = 0.01, 0.25
"""Seconds between two looks at the store."""

SECONDS_FOR_A_WORD = 3.0
"""How long a process that fails may take to say so, once the others are cut off from it."""

FAILED = "failed"


class Store(Protocol):
    """What is used of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""
        ...

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a number that begins at 0; returns what it is now."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        ...


@dataclass(slots=True)
class Processes:
    """The processes of a run, seen from one of them.

    Every process has to call what waits or deals out work in the same order as the others.

    Attributes:
        rank: Which this is, counted from 0.
        count: How many there are.
        store: Where they leave words for each other; None of a process that is alone.
    """

    rank: int = 0
    count: int = 1
    store: Store | None = None
    _calls: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that leads."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, in every process; it must be what JSON can say.

        Raises:
            OtherProcessFailed: Another process failed meanwhile.
        """
        if self.store is None:
            return make()
        key = self.unique("word")
        if self.is_first:
            self.store.set(key, json.dumps(made := make()))
            return made
        self._wait(lambda store: store.check([key]))
        found: T = json.loads(self.store.get(key))
        return found

    def barrier(self) -> None:
        """Wait until all processes are here.

        Raises:
            OtherProcessFailed: Another process failed meanwhile.
        """
        if self.store is None:
            return
        key = self.unique("barrier")
        self.store.add(key, 1)
        self._wait(lambda store: store.add(key, 0) == self.count)

    def deal(self, items: Sequence[T]) -> Dealt[T]:
        """Work for all processes: each item goes to the one that is free first."""
        return Dealt(self, items, self.unique("dealt"))

    def ask_others(self) -> None:
        """See, after something went wrong here, whether that is because another process failed, and gave up first.

        Raises:
            OtherProcessFailed: It is.
        """
        latest = time.monotonic() + SECONDS_FOR_A_WORD
        while time.monotonic() < latest:
            self.check_others()
            time.sleep(LONGEST_WAIT)

    def unique(self, kind: str) -> str:
        """A name that no other call gets, the same one in every process."""
        self._calls += 1
        return f"{kind}/{self._calls}"

    def fail(self, error: BaseException) -> None:
        """Leave a word for the others that this process failed."""
        if self.store is not None:
            word = {"rank": self.rank, "error": str(error) or type(error).__name__}
            self.store.set(f"{FAILED}/{self.rank}", json.dumps(word))
            self.store.add(FAILED, 1)

    def check_others(self) -> None:
        """See whether another process has failed.

        Raises:
            OtherProcessFailed: It has.
        """
        if self.store is None or not self.store.add(FAILED, 0):
            return
        for rank in range(self.count):
            key = f"{FAILED}/{rank}"
            if rank != self.rank and self.store.check([key]):
                raise OtherProcessFailed(rank, json.loads(self.store.get(key))["error"])

    def _wait(self, is_there: Callable[[Store], bool]) -> None:
        assert self.store is not None
        pause = FIRST_WAIT
        while not is_there(self.store):
            self.check_others()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT)


class Dealt(Generic[T]):
    """The items of some work that this process gets. Made by `Processes.deal`."""

    def __init__(self, processes: Processes, items: Sequence[T], key: str) -> None:
        self._processes, self._items, self._key = processes, items, key
        self._seen = 0

    def __iter__(self) -> Iterator[T]:
        store = self._processes.store
        if store is None:
            yield from self._items
            return
        while (index := store.add(f"{self._key}/taken", 1) - 1) < len(self._items):
            self._processes.check_others()
            yield self._items[index]

    def finish(self, amount: int) -> int:
        """Count work that is done; returns how much of it all processes did since this one last asked."""
        store = self._processes.store
        if store is None:
            return amount
        total = store.add(f"{self._key}/done", amount)
        new, self._seen = total - self._seen, total
        return new


ALONE = Processes()

_current = ALONE
_joined: Processes | None = None


def current() -> Processes:
    """The processes that do the present piece of work; one alone, unless all of them were called to it."""
    return _current


def launched() -> tuple[int, int]:
    """Rank and number of processes, as torchrun has started them; (0, 1) without it.

    Raises:
        ConfigError: Its variables make no sense.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return (0, 1) if _joined is None else (_joined.rank, _joined.count)
    given = os.environ["RANK"], os.environ["WORLD_SIZE"]
    try:
        rank, count = (int(value) for value in given)
    except ValueError:
        rank, count = 0, 0
    if not 0 <= rank < count:
        raise ConfigError(
            f"RANK={given[0]}, WORLD_SIZE={given[1]}: no such process; start with torchrun, or unset both"
        )
    return rank, count


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes of a run, for as long as the context lasts.

    Raises:
        ConfigError: torchrun's variables make no sense.
        OtherProcessFailed: Another process failed; what went wrong here in consequence is not said.
    """
    rank, count = launched()
    if count == 1:
        yield ALONE
        return
    processes = _meet(rank, count)
    before, own = dict(os.environ), _own_gpu()
    if rank > 0:
        own |= QUIET
        warnings.simplefilter("ignore")
    for name in before:
        if name.startswith(LAUNCHER):
            del os.environ[name]
    os.environ.update(own)
    try:
        yield processes
    except OtherProcessFailed:
        raise
    except Exception as error:
        if not isinstance(error, SteerMoEError):
            processes.ask_others()
        processes.fail(error)
        raise
    finally:
        for name in own.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """Within it, all processes do the same piece of work, and `current` says so."""
    global _current
    before, _current = _current, processes
    try:
        yield
        processes.barrier()
    finally:
        _current = before


def _meet(rank: int, count: int) -> Processes:
    """The processes, with torchrun's store; the same ones whenever it is asked."""
    global _joined
    if _joined is None:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        found: Any = next(iter(rendezvous("env://", timeout=timedelta(minutes=30))))
        _joined = Processes(rank, count, PrefixStore("steermoe", found[0]))
    return _joined


def _own_gpu() -> dict[str, str]:
    """The variable that leaves each process of a machine one GPU, where it sees several.

    Raises:
        ConfigError: There are fewer GPUs than processes.
    """
    import torch

    visible = os.environ.get(GPUS)
    given = [device for device in visible.split(",") if device] if visible is not None else None
    devices = given if given is not None else [str(i) for i in range(torch.cuda.device_count())]
    if not devices or (given is not None and len(given) == 1):
        return {}  # no GPU, or SLURM has given each process its own
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= len(devices):
        raise ConfigError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes on a machine with {len(devices)} GPUs: start "
            "no more processes than GPUs"
        )
    return {GPUS: devices[local]}
