"""From the bytes of a prompt file to its rows, told apart by content: JSON, JSONL, CSV, text, Parquet or Arrow."""

from __future__ import annotations

import re

from steermoe.errors import PromptError
from steermoe.prompts import csv_files, json_files
from steermoe.prompts.arrow_files import is_arrow, read_arrow
from steermoe.prompts.encodings import decoded, unpacked
from steermoe.prompts.foreign_texts import check_no_leftover
from steermoe.prompts.rows import Row
from steermoe.prompts.sources import Declaration
from steermoe.prompts.tables import Records, as_rows

_BEGINS_JSON = re.compile(r'\s*(?:\[\s*["{\[\d\-tfn\]]|\{\s*["}])')
"""What a list or an object may begin with; a text in brackets begins with a word."""
LINES = "lines"
"""The format of a text that holds one prompt a line, whatever its first line looks like."""


def parse_rows(
    data: bytes, source: str, declaration: Declaration | None = None
) -> tuple[list[Row], list[str]]:
    """The rows of a prompt file, and what to say about how they were found.

    Args:
        data: The whole file.
        source: How complaints name it.
        declaration: What the user said of it.

    Returns:
        At least one row, and notes.

    Raises:
        PromptError: The file is empty, cut off, binary, in another encoding, or malformed.
    """
    said = declaration or Declaration(source, source)
    data, notes = unpacked(data, source)
    if is_arrow(data):
        _check_not_text(source, said)
        names, records = read_arrow(data, source)
        found = Records.numbered(records, names)
    else:
        text, more = decoded(data, source, said.encoding)
        notes += more
        found = _read_text(text, source, said)
    if not found.values:
        raise PromptError(f"{source} holds no rows; a prompt file needs at least one")
    return as_rows(found, source), [*notes, *found.notes]


def _check_not_text(source: str, said: Declaration) -> None:
    """Refuse what the user says of a text where the file is none."""
    if said.encoding is not None or said.format == LINES:
        option = f"encoding={said.encoding}" if said.encoding else f"format={LINES}"
        raise PromptError(
            f"{source} is no text but a table of Parquet or Arrow; leave {option} away"
        )


def _read_json(text: str, source: str, said: Declaration) -> Records:
    try:
        return json_files.read_json(text, source)
    except PromptError as error:
        if said.label is None or _BEGINS_JSON.match(text):
            raise
        raise PromptError(
            f"{error}; where it holds one prompt a line, '{said.label}:{source}:format={LINES}' reads it"
        ) from None


def _read_text(text: str, source: str, said: Declaration) -> Records:
    start = text.lstrip()[:1]
    if not start:
        raise PromptError(f"{source} is empty; a prompt file needs at least one row")
    if said.format == LINES:
        return csv_files.read_lines(text)
    check_no_leftover(text, source)
    if start in "[{":
        return _read_json(text, source, said)
    return csv_files.read_csv_or_lines(
        text, source, said.columns.values(), may_be_lines=said.label is not None
    )
