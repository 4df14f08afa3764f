"""How things are measured: interleaved repeats, ratios repeat by repeat, and peak resident memory.

Seconds on a shared machine mean little, so two sides that are compared take turns in one process, and each
turn gives one ratio. Memory is measured in processes of their own.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

REPEATS = 9
"""Turns that count; one more before them does not."""


@dataclass(frozen=True)
class Spread:
    """Median and range of some repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """The median and the range of some values."""
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def take_turns(
    sides: Mapping[str, Callable[[], object]], repeats: int = REPEATS
) -> dict[str, list[float]]:
    """Seconds of each side's turns. The first turn of each is left out.

    Args:
        sides: What to run, by name; the order is reversed at every other repeat.
        repeats: Turns that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name in list(sides) if repeat % 2 else reversed(list(sides)):
            gc.collect()
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], side: str, against: str) -> Spread:
    """Median and range of one side's seconds over the other's, turn by turn."""
    return Spread.of([a / b for a, b in zip(seconds[side], seconds[against], strict=True)])


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measure: What was measured.
        target: What was aimed at.
        result: What came out.
        detail: Absolute figures.
    """

    measure: str
    target: str
    result: str
    detail: str


def absolute_seconds(seconds: dict[str, list[float]]) -> str:
    """Every side's median and range of seconds."""
    return ", ".join(f"{name} {Spread.of(values)} s" for name, values in seconds.items())


def mean_ratio(seconds: Mapping[str, list[float]], side: str, against: str) -> Spread:
    """Geometric mean of one side's seconds over the other's, and its 95 % interval over turns (Student's t)."""
    logs = [math.log(a / b) for a, b in zip(seconds[side], seconds[against], strict=True)]
    error = stats.sem(logs) * stats.t.ppf(0.975, len(logs) - 1)
    mean = statistics.fmean(logs)
    return Spread(math.exp(mean), math.exp(mean - error), math.exp(mean + error))


@dataclass
class Memory:
    """Resident memory of this process in GiB.

    Attributes:
        before: When measuring began.
        peak: The most since then.
    """

    before: float
    peak: float = 0.0

    @property
    def beyond(self) -> float:
        """The peak, less what there was before."""
        return self.peak - self.before


@contextmanager
def measure_memory() -> Iterator[Memory]:
    """Measure the peak of resident memory inside the context (Linux only)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    memory = Memory(before=_status("VmRSS"))
    try:
        yield memory
    finally:
        memory.peak = _status("VmHWM")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError(f"/proc/self/status has no {field}")
