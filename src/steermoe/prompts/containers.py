"""From the bytes of a prompt file to its rows: JSON, JSONL, CSV or Parquet, told apart by content."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.errors import PromptError
from steermoe.prompts.rows import Row, shown

MISSING_CELLS = frozenset({"", "nan", "NaN", "<NA>", "None", "null"})
"""What spreadsheets and data frames write into a CSV cell that holds nothing."""

_PARQUET = b"PAR1"
_WRONG_KINDS = {
    # Before UTF-16, whose mark begins that of UTF-32.
    b"\xff\xfe\0\0": "is UTF-32, not UTF-8; save it again as UTF-8",
    b"\0\0\xfe\xff": "is UTF-32, not UTF-8; save it again as UTF-8",
    b"\xff\xfe": "is UTF-16, not UTF-8; save it again as UTF-8",
    b"\xfe\xff": "is UTF-16, not UTF-8; save it again as UTF-8",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV in UTF-8",
}


def parse_rows(data: bytes, source: str) -> list[Row]:
    """The rows of a prompt file.

    Args:
        data: The whole file.
        source: How complaints name it.

    Returns:
        At least one row.

    Raises:
        PromptError: The file is empty, cut off, binary, in another encoding, or malformed.
    """
    if data[:4] == _PARQUET:
        rows = _parquet_rows(data, source)
    else:
        text = _decode(data, source)
        start = text.lstrip()[:1]
        if not start:
            raise PromptError(f"{source} is empty; a prompt file needs at least one row")
        if start == "[":
            rows = _json_rows(text, source)
        elif start == "{":
            rows = _json_lines(text, source)
        else:
            rows = _csv_rows(text, source)
    if not rows:
        raise PromptError(f"{source} holds no rows; a prompt file needs at least one")
    return rows


def _decode(data: bytes, source: str) -> str:
    for beginning, problem in _WRONG_KINDS.items():
        if data.startswith(beginning):
            raise PromptError(f"{source} {problem}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise PromptError(f"{source} ends inside a character; it seems cut off") from None
        raise PromptError(
            f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "save it again as UTF-8"
        ) from None
    if (position := text.find("\0")) >= 0:
        raise PromptError(
            f"{source} is binary: character {position + 1} is NUL; "
            "prompt files are JSON, JSONL, CSV or Parquet"
        )
    return text


def _row(source: str, number: int, value: object) -> Row:
    if not isinstance(value, Mapping):
        raise PromptError(f"{source}, row {number}: must be an object, not {shown(value)}")
    values: dict[str, object] = {}
    for key, cell in value.items():
        name = _field_name(key)
        if name in values:
            raise PromptError(f"{source}, row {number}, field {name!r}: is given twice")
        values[name] = cell
    return Row(source, number, values)


def _field_name(name: object) -> str:
    return str(name).strip().lower()


def _json_rows(text: str, source: str) -> list[Row]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        if _runs_out(error, text):
            raise PromptError(f"{source} is cut off: its JSON breaks off at {place}") from None
        raise PromptError(f"{source} is not valid JSON: {error.msg}, {place}") from None
    except (RecursionError, ValueError) as error:
        raise PromptError(f"{source} cannot be read as JSON: {error}") from None
    return [_row(source, number, item) for number, item in enumerate(items, start=1)]


def _runs_out(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the text simply ended where the parser wanted more of it."""
    return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")


def _json_lines(text: str, source: str) -> list[Row]:
    try:
        return [_row(source, 1, json.loads(text))]
    except (RecursionError, ValueError):
        pass  # more than one object, or a broken one: the lines will tell which
    rows = []
    # Other line ends than "\n" may stand inside a JSON string, so str.splitlines would tear rows.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(source, number, json.loads(line)))
        except json.JSONDecodeError as error:
            what = "is cut off" if _runs_out(error, line) else f"is not valid JSON: {error.msg}"
            raise PromptError(f"{source}, row {number}: {what}, column {error.colno}") from None
        except (RecursionError, ValueError) as error:
            raise PromptError(f"{source}, row {number}: cannot be read as JSON: {error}") from None
    return rows


def _csv_rows(text: str, source: str) -> list[Row]:
    # Jailbreaks of many shots are longer than the 128 KiB that the csv module allows a cell.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        return _read_csv(text, source)
    finally:
        csv.field_size_limit(limit)


def _read_csv(text: str, source: str) -> list[Row]:
    text = text.lstrip(" \r\n")
    records = _csv_records(text, _delimiter(text))
    header: list[str] = []
    rows: list[Row] = []
    try:
        for record in records:
            if not record:
                continue
            if header:
                rows.append(_csv_row(source, len(rows) + 1, header, record))
            else:
                header = [_field_name(name) for name in record]
                _check_names(source, header)
    except csv.Error as error:
        problem = (
            "is cut off inside a quoted cell"
            if "end of data" in str(error)
            else f"{error}; double the quotes inside a quoted cell"
        )
        raise PromptError(f"{source}, row {len(rows) + 1}: {problem}") from None
    return rows


def _csv_records(text: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _delimiter(text: str) -> str:
    """The mark that cuts the header into most columns: some spreadsheets write `;` for `,`."""

    def width(mark: str) -> int:
        try:
            return len(next(_csv_records(text, mark)))
        except csv.Error:
            return 0

    return max(",;\t", key=width)


def _csv_row(source: str, number: int, header: list[str], record: list[str]) -> Row:
    if len(record) > len(header):
        raise PromptError(
            f"{source}, row {number}: has {len(record)} cells, but the header names {len(header)}; "
            "put quotes around cells that hold the delimiter"
        )
    if len(record) < len(header):
        raise PromptError(
            f"{source}, row {number}, field {header[len(record)]!r}: is cut off; the row has "
            f"{len(record)} cells, but the header names {len(header)}"
        )
    cells = zip(header, record, strict=True)
    return Row(source, number, {k: None if v.strip() in MISSING_CELLS else v for k, v in cells})


def _check_names(source: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PromptError(f"{source}: two columns are named {name!r}; rename one")
        seen.add(name)


def _parquet_rows(data: bytes, source: str) -> list[Row]:
    if len(data) < 12 or data[-4:] != _PARQUET:
        raise PromptError(f"{source} is cut off: a Parquet file must end as it begins, with PAR1")
    try:
        table = pq.read_table(io.BytesIO(data))
        records = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PromptError(f"{source} cannot be read as Parquet: {reason}") from None
    _check_names(source, map(_field_name, table.column_names))
    return [_row(source, number, record) for number, record in enumerate(records, start=1)]
