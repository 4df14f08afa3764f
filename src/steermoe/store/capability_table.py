"""`capability/<variant>.parquet`: which tasks a variant has solved; one row an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.capability.grading import COLUMNS, Graded
from steermoe.store.directory import RunDirectory
from steermoe.store.names import capability_of, shard_of

_SCHEMA = pa.schema([(name, pa.bool_() if name == "correct" else pa.string()) for name in COLUMNS])


def shard_prefix(variant: str) -> str:
    """Of the answers of an unfinished measurement. It has no hyphen after the variant, as shards of replies have."""
    return f"{variant}_capability"


def write_answers(run: RunDirectory, variant: str, group: int, rows: Sequence[Graded]) -> None:
    """Keep the graded answers to one group of items."""
    _write(run, shard_of(shard_prefix(variant), group), [asdict(row) for row in rows])


def read_answers(run: RunDirectory, variant: str, num_groups: int) -> dict[int, list[Graded]]:
    """The graded answers to the groups that an interrupted measurement has finished, by group."""
    shards = {group: shard_of(shard_prefix(variant), group) for group in range(num_groups)}
    return {
        group: [
            Graded(**{str(name): value for name, value in row.items()})
            for row in run.read_table(shard).to_dict("records")
        ]
        for group, shard in shards.items()
        if run.has(shard)
    }


def write_graded(run: RunDirectory, variant: str, graded: pd.DataFrame) -> None:
    """Write the graded answers of a variant."""
    rows = [{str(name): value for name, value in row.items()} for row in graded.to_dict("records")]
    _write(run, capability_of(variant), rows)


def read_graded(run: RunDirectory, variant: str) -> pd.DataFrame | None:
    """The graded answers of a variant; None where it was not asked."""
    name = capability_of(variant)
    return run.read_table(name) if run.has(name) else None


def _write(run: RunDirectory, name: str, rows: Sequence[Mapping[Any, Any]]) -> None:
    with run.writing(name) as path:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], _SCHEMA), path)
