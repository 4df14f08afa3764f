"""`benchmarks/<variant>.parquet`: what other tools found of a variant; one row a metric, its samples with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.store.directory import RunDirectory
from steermoe.store.names import benchmarks_of

_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("n", pa.int64()),
        ("num_unscored", pa.int64()),
        ("sample_ids", pa.list_(pa.string())),
        ("sample_values", pa.list_(pa.float64())),
    ]
)
"""A value is null where the tool could not score; of samples there are none where a figure is not their mean."""


def write_benchmarks(run: RunDirectory, variant: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write what was found of a variant."""
    with run.writing(benchmarks_of(variant)) as path:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], _SCHEMA), path)


def read_benchmarks(run: RunDirectory, variant: str) -> list[dict[str, Any]]:
    """What was found of a variant, a row each; none where nothing has run."""
    name = benchmarks_of(variant)
    if not run.has(name):
        return []
    with run.reading(name) as path:
        found: list[dict[str, Any]] = pq.read_table(path, schema=_SCHEMA).to_pylist()
    return found
