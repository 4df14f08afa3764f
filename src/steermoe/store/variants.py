"""Which variants of the model a run has tables of, beside the base and the hardened one."""

from __future__ import annotations

from steermoe.store.directory import RunDirectory
from steermoe.store.names import CONTROL, WITHOUT


def ablated_variants(run: RunDirectory, folder: str) -> list[str]:
    """The ablated variants that have a table in a folder: `replies` or `scored`."""
    return sorted(path.stem for path in run.file(folder).glob(f"*{WITHOUT}*.parquet"))


def control_variants(run: RunDirectory, folder: str) -> list[str]:
    """The controls that have a table in a folder."""
    return sorted(path.stem for path in run.file(folder).glob(f"{CONTROL}*.parquet"))
