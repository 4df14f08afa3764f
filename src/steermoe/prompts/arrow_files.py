"""Parquet and Arrow files (of both kinds) as records."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.errors import PromptError

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def is_arrow(data: bytes) -> bool:
    """Whether a file begins as Parquet or Arrow files do."""
    return data.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM))


def read_arrow(data: bytes, source: str) -> tuple[list[str], list[dict[str, object]]]:
    """The names of the columns, and the records.

    Raises:
        PromptError: The file is cut off or damaged, or holds what Python cannot.
    """
    kind = "Parquet" if data.startswith(_PARQUET) else "Arrow"
    if kind == "Parquet" and (len(data) < 12 or data[-4:] != _PARQUET):
        raise PromptError(f"{source} is cut off: a Parquet file must end as it begins, with PAR1")
    if data.startswith(_ARROW_FILE) and not data.endswith(_ARROW_FILE):
        raise PromptError(f"{source} is cut off: an Arrow file must end as it begins, with ARROW1")
    if data.startswith(_ARROW_STREAM) and not data.endswith(_STREAM_END):
        # A stream that lost its last batches is as good a stream to the library, only shorter.
        raise PromptError(f"{source} is cut off: an Arrow stream must end with the mark of its end")
    try:
        if kind == "Parquet":
            table = pq.read_table(io.BytesIO(data))
        elif data.startswith(_ARROW_FILE):
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        else:
            table = pa.ipc.open_stream(pa.BufferReader(data)).read_all()
        table.validate(full=True)
        records: list[dict[str, object]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PromptError(f"{source} cannot be read as {kind}: {reason}") from None
    return list(table.column_names), records
