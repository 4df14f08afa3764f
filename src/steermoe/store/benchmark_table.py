"""`benchmarks/<variant>.parquet`: what other tools found of a variant; one row a metric, its samples with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

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
"""Columns are the fields of `BenchmarkRow`."""


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One metric of one task.

    Attributes:
        benchmark: As the settings name it.
        source: The tool and its version.
        task: As the tool names it.
        metric: The same.
        value: None where the tool could not score.
        stderr: Its standard error, where the tool gives one.
        n: Samples that are scored.
        num_unscored: Samples that are not.
        sample_ids: Which samples; none where the value is not their mean.
        sample_values: The value of each.
    """

    benchmark: str
    source: str
    task: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    num_unscored: int
    sample_ids: Sequence[str]
    sample_values: Sequence[float | None]


def write_benchmarks(run: RunDirectory, variant: str, rows: Sequence[BenchmarkRow]) -> None:
    """Write what was found of a variant."""
    with run.writing(benchmarks_of(variant)) as path:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], _SCHEMA), path)


def read_benchmarks(run: RunDirectory, variant: str) -> list[BenchmarkRow]:
    """What was found of a variant, a row each; none where nothing has run."""
    name = benchmarks_of(variant)
    if not run.has(name):
        return []
    with run.reading(name) as path:
        return [BenchmarkRow(**row) for row in pq.read_table(path, schema=_SCHEMA).to_pylist()]
