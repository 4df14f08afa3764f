"""`measures.parquet`: one row a variant, set of prompts and measure."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from steermoe.metrics import MeasureRow, Metric

_FIXED = [
    ("variant", pa.string()),
    ("set", pa.string()),
    ("measure", pa.string()),
    ("value", pa.float64()),
    ("ci_low", pa.float64()),
    ("ci_high", pa.float64()),
    ("n", pa.int64()),
    ("num_unscored", pa.int64()),
    ("source", pa.string()),
    ("compared_with", pa.string()),
]
_FIGURES = ("value", "ci_low", "ci_high", "n", "num_unscored")


def from_measures(rows: Sequence[MeasureRow]) -> pa.Table:
    """The rows as a table; what only some figures have is a column that is null elsewhere."""
    extra: dict[str, pa.DataType] = {}
    for row in rows:
        for name, value in row.metric.more.items():
            if name not in extra or isinstance(value, float):
                extra[name] = pa.float64() if isinstance(value, float) else pa.int64()
    schema = pa.schema([*_FIXED, *sorted(extra.items())])
    return pa.Table.from_pylist(
        [
            {
                "variant": row.variant,
                "set": row.set,
                "measure": row.measure,
                "source": row.source,
                "compared_with": row.compared_with,
                **{name: getattr(row.metric, name) for name in _FIGURES},
                **row.metric.more,
            }
            for row in rows
        ],
        schema,
    )


def to_measures(table: pa.Table) -> list[MeasureRow]:
    """The table as rows again."""
    fixed = {name for name, _ in _FIXED}
    return [
        MeasureRow(
            variant=row["variant"],
            set=row["set"],
            measure=row["measure"],
            source=row["source"],
            compared_with=row["compared_with"],
            metric=Metric(
                **{name: row[name] for name in _FIGURES},
                more={k: v for k, v in row.items() if k not in fixed and v is not None},
            ),
        )
        for row in table.to_pylist()
    ]
