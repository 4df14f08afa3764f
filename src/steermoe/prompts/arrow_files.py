"""Parquet and Arrow files (of both kinds) as records."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.errors import PromptError

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_NOT_FOR_PYTHON = (pa.ArrowException, ValueError, OverflowError, KeyError)  # of zones: KeyError
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def is_arrow(data: bytes) -> bool:
    """Whether a file begins as Parquet or Arrow files do."""
    return data.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM))


def read_arrow(data: bytes, source: str) -> tuple[list[str], list[dict[str, object]]]:
    """The names of the columns, and the records.

    A cell that Python cannot hold (a time in a zone that is not known here) becomes an `Unconverted`, which only a
    column that is read cannot be.

    Raises:
        PromptError: The file is cut off or damaged, is several files one after the other, or is several streams whose
            columns differ.
    """
    kind = "Parquet" if data.startswith(_PARQUET) else "Arrow"
    if kind == "Parquet" and (len(data) < 12 or data[-4:] != _PARQUET):
        raise PromptError(f"{source} is cut off: a Parquet file must end as it begins, with PAR1")
    if data.startswith(_ARROW_FILE) and not data.endswith(_ARROW_FILE):
        raise PromptError(f"{source} is cut off: an Arrow file must end as it begins, with ARROW1")
    if data.startswith(_ARROW_STREAM) and not data.endswith(_STREAM_END):
        # A stream that lost its last batches is as good a stream to the library, only shorter.
        raise PromptError(f"{source} is cut off: an Arrow stream must end with the mark of its end")
    _check_is_one_file(data, source)
    try:
        if kind == "Parquet":
            table = pq.read_table(io.BytesIO(data))
        elif data.startswith(_ARROW_FILE):
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        else:
            table = _all_streams(data, source)
        table.validate(full=True)
        columns = [_cells(column) for column in table.columns]
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PromptError(f"{source} cannot be read as {kind}: {reason}") from None
    names = list(table.column_names)
    return names, [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Unconverted:
    """A cell that Python cannot hold: no text, no word of a label, and equal to no other.

    Attributes:
        type: What Arrow calls its type.
    """

    type: str

    def __repr__(self) -> str:
        return f"a {self.type} that Python cannot hold"


def _check_is_one_file(data: bytes, source: str) -> None:
    """Refuse files that were joined: the table of contents of the last one would be taken for that of all."""
    for mark in (_PARQUET, _ARROW_FILE):
        if data.startswith(mark) and mark * 2 in data:
            raise PromptError(
                f"{source} is several files one after the other, of which only one would be read; give each by itself"
            )


def _all_streams(data: bytes, source: str) -> pa.Table:
    """What all Arrow streams of a file hold, one after the other."""
    reader = pa.BufferReader(data)
    tables: list[pa.Table] = []
    while reader.tell() < len(data):
        table = pa.ipc.open_stream(reader).read_all()
        if tables and table.schema != tables[0].schema:
            raise PromptError(
                f"{source} is several Arrow streams one after the other, whose columns differ; give each by itself"
            )
        tables.append(table)
    return pa.concat_tables(tables)


def _cells(column: pa.ChunkedArray) -> list[object]:
    try:
        found: list[object] = column.to_pylist()
    except _NOT_FOR_PYTHON:
        return [_cell(scalar) for scalar in column]
    return found


def _cell(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except _NOT_FOR_PYTHON:
        return Unconverted(str(scalar.type))
