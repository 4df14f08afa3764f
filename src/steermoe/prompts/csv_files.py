"""CSV files as spreadsheets and scripts write them, and texts of one prompt a line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator
from itertools import islice

from steermoe.errors import PromptError
from steermoe.prompts.columns import is_known
from steermoe.prompts.foreign_texts import check_holds_lines
from steermoe.prompts.rows import counted, listed
from steermoe.prompts.strict_json import load_json
from steermoe.prompts.tables import Records, check_names, field_name

MISSING_CELLS = frozenset({"", "nan", "NaN", "<NA>", "None", "null"})
"""What spreadsheets and data frames write into a CSV cell that holds nothing."""

DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"\s]|\t)"?[ ,;\t|]*\r?\n', re.IGNORECASE)
_MOST_LINES_ABOVE = 10  # of titles and comments, before the names of the columns
_LONGEST_NAME = 30
_LONGEST_WORD = 6
"""Characters of a name in other letters than Latin ones: Chinese writes a whole sentence without a blank."""
_ENDS_OF_SENTENCES = (".", "?", "!", "…", "。", "\uff1f", "\uff01")
"""The last two are the full-width `?` and `!`."""

Named = Callable[[str], bool]
"""Whether a cell may be the name of a column."""


def read_csv_or_lines(
    text: str, source: str, columns: Collection[str], *, may_be_lines: bool
) -> Records:
    """The records of a CSV file, or the lines of a text.

    Args:
        text: The whole file.
        source: How complaints name it.
        columns: Names of columns that the user says there are.
        may_be_lines: Whether a text without names of columns is taken for one prompt a line. It is where the
            user has said what all of them are.

    Raises:
        PromptError: A row is malformed, or it cannot be told what the file is.
    """
    # Jailbreaks of many shots are longer than the 128 KiB that the csv module allows a cell.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        return _read(text, source, columns, may_be_lines)
    finally:
        csv.field_size_limit(limit)


def read_lines(text: str) -> Records:
    """One prompt a line; blank lines hold none."""
    lines = re.split(r"\r?\n" if "\n" in text else "\r", text)
    values = [(i, {"prompt": line}) for i, line in enumerate(lines, start=1) if line.strip()]
    num_blank = len(lines) - len(values) - (not lines[-1])
    notes = ["one prompt a line"]
    if num_blank:
        notes.append(f"{counted(num_blank, 'blank line')} skipped")
    paragraphs = [part for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]
    longer = sum("\n" in part.strip() for part in paragraphs)
    if len(paragraphs) > 1 and 2 * longer >= len(paragraphs):
        notes.append(
            f"blank lines stand between {len(paragraphs)} groups of lines: if each group is one prompt, save the file "
            "as JSON or CSV, since every line is read as one"
        )
    return Records(values, ["prompt"], notes)


def _read(text: str, source: str, columns: Collection[str], may_be_lines: bool) -> Records:
    notes = []
    delimiter = None
    whole = text
    if match := _SEPARATOR_LINE.match(text):
        delimiter, text = match[1], text[match.end() :]
        notes.append(f"cells are separated by {delimiter!r}, as the first line says")
    text = text.lstrip(" \r\n")

    def named(cell: str) -> bool:
        name = field_name(cell)
        return name in columns or is_known(name)

    delimiter = delimiter or _delimiter(text, named)
    position, header = _header(text, delimiter, named)
    if header and not columns and not any(map(named, header)):
        is_table = _looks_like_table(text, delimiter, header)
        if may_be_lines and is_table:
            raise PromptError(
                f"{source} begins with {listed(header)}, which may name columns, but none that is known: "
                f"'{source}:column=NAME,label=LABEL' names the one with the prompts, '{source}:format=lines,"
                "label=LABEL' reads every line as a prompt"
            )
        if may_be_lines:
            return _lines_of(text, whole, source)
        if not is_table:
            raise PromptError(
                f"{source} has no names of columns, so it is in no known format; if it holds one prompt a line, "
                f"'unsafe:{source}' reads it (or 'safe:' or 'benign:')"
            )
    elif not header and may_be_lines:
        return _lines_of(text, whole, source)
    elif not header and not columns:
        _check_begins_with_names(text, source, named)
    return _table(text, source, delimiter, position, notes)


def _records(text: str, delimiter: str, skips_blanks: bool = False) -> Iterator[list[str]]:
    return csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=skips_blanks,
        strict=True,
    )


def _first_records(text: str, delimiter: str, number: int) -> list[list[str]]:
    """The first records, or those before the first that is malformed."""
    found = []
    try:
        for record in islice(_records(text, delimiter), number):
            found.append(record)
    except csv.Error:
        pass
    return found


def _delimiter(text: str, named: Named) -> str:
    """The mark that cuts a header into most known names, or else the first line into most cells."""

    def merit(mark: str) -> tuple[int, int]:
        records = _first_records(text, mark, _MOST_LINES_ABOVE + 1)
        known = max((sum(map(named, record)) for record in records), default=0)
        return known, len(records[0]) if records else 0

    return max(DELIMITERS, key=merit)


def _header(text: str, delimiter: str, named: Named) -> tuple[int, list[str]]:
    """Which record names the columns: the first, unless a later one does by known names alone, or by several.

    Returns:
        Its position, and the names; no names where the first record is malformed.
    """
    records = _first_records(text, delimiter, _MOST_LINES_ABOVE + 1)
    filled = [(i, record) for i, record in enumerate(records) if any(map(str.strip, record))]
    if not filled or any(map(named, filled[0][1])):
        return filled[0] if filled else (0, [])
    for position, record in filled[1:]:
        known = sum(map(named, record))
        if known > 1 or known == sum(bool(cell.strip()) for cell in record):
            return position, record
    return filled[0]


def _check_begins_with_names(text: str, source: str, named: Named) -> None:
    """Refuse a text whose first line is no record and names no column: it holds prompts in quotes, or is damaged."""
    first = text.split("\n", 1)[0]
    if not any(named(cell.strip(' "')) for mark in DELIMITERS for cell in first.split(mark)):
        raise PromptError(
            f"{source}, line 1: is no row of a table: a quote ends before its cell does; if the file holds one prompt "
            f"a line, 'unsafe:{source}' reads it (or 'safe:' or 'benign:')"
        )


def _looks_like_table(text: str, delimiter: str, header: list[str]) -> bool:
    """Whether the first line may name columns: short words, and rows of as many cells."""
    if any(len(cell) > _LONGEST_NAME or len(cell.split()) > 3 for cell in header):
        return False
    if len(header) == 1:
        return _may_be_a_name(header[0].strip())
    records = _first_records(text, delimiter, 100)[1:]
    return bool(records) and all(len(record) in (0, len(header)) for record in records)


def _may_be_a_name(cell: str) -> bool:
    """Whether a line of one cell may name a column: one short word, and neither a tag nor a sentence without blanks."""
    is_sentence = cell.endswith(_ENDS_OF_SENTENCES) or (
        not cell.isascii() and len(cell) > _LONGEST_WORD
    )
    return " " not in cell and not is_sentence and not cell.startswith("<")


def _lines_of(text: str, whole: str, source: str) -> Records:
    check_holds_lines(text, source)
    return _quoted_lines(text, source) or read_lines(whole)


def _quoted_lines(text: str, source: str) -> Records | None:
    """The cells of a file of one column without a name, or texts of JSON, one a line; None if it is no such file.

    Raises:
        PromptError: There are several cells in every row, and no names of columns.
    """
    if not text.startswith('"'):
        return None
    if (texts := _json_texts(text)) is not None:
        return texts
    try:
        records = list(_records(text, ","))
    except csv.Error:
        return None
    widths = {len(record) for record in records if record}
    if len(widths) == 1 and widths != {1}:
        raise PromptError(
            f"{source} is a table of {widths.pop()} columns without names; put a first line above it that names them, "
            "as 'prompt,label' does"
        )
    if widths != {1}:
        return None
    cells = [record[0] for record in records if record and record[0].strip()]
    blank = len(records) - len(cells)
    notes = ["one prompt a line, in quotes"]
    if blank:
        notes.append(f"{counted(blank, 'blank line')} skipped")
    return Records.numbered(({"prompt": cell} for cell in cells), ["prompt"], notes)


def _json_texts(text: str) -> Records | None:
    """Texts that are quoted and escaped as JSON has them, one a line; None where a line is none."""
    values: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = load_json(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, str):
            return None
        values.append((number, {"prompt": found}))
    return Records(values, ["prompt"], ["one prompt a line, as texts of JSON"])


def _table(text: str, source: str, delimiter: str, position: int, notes: list[str]) -> Records:
    """The rows below the record that names the columns."""
    header: list[str] = []
    above: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    number = num_empty = 0
    names = _first_records(text, delimiter, position + 1)[position:]
    skips_blanks = bool(names) and len(names[0]) > 1 and all(c[:1] == " " for c in names[0][1:])
    try:
        for index, record in enumerate(_records(text, delimiter, skips_blanks)):
            filled = any(map(str.strip, record))
            if index < position:
                above += [delimiter.join(record)] if filled else []
            elif not header:
                header = [field_name(name) for name in record]
                check_names(source, filter(None, header))
            elif record:
                number += 1
                _check_no_second_header(source, number, names[0], record)
                num_empty += not filled
                if filled:
                    rows.append((number, _cells(source, number, header, record)))
    except csv.Error as error:
        problem = (
            "is cut off inside a quoted cell"
            if "end of data" in str(error)
            else f"{error}; double the quotes inside a quoted cell"
        )
        raise PromptError(f"{source}, row {number + 1}: {problem}") from None
    if above:
        lines = counted(len(above), "line")
        notes.append(f"{lines} above the names of the columns skipped: {listed(above, 2)}")
    if num_empty:
        notes.append(f"{counted(num_empty, 'empty row')} skipped")
    named = _named_columns(header, rows)
    values = [
        (number, {name: _cell(cells[i]) for i, name in named.items()}) for number, cells in rows
    ]
    return Records(values, list(named.values()), notes)


def _check_no_second_header(source: str, number: int, header: list[str], record: list[str]) -> None:
    """Refuse the names of the columns again: one file was put behind another."""
    if record == header and (len(record) > 1 or is_known(record[0])):
        raise PromptError(
            f"{source}, row {number}: repeats the names of the columns, as where one file stands behind another; "
            "remove it"
        )


def _named_columns(header: list[str], rows: list[tuple[int, list[str]]]) -> dict[int, str]:
    """Names by position; a column that has neither a name nor a value is none."""
    names = {}
    for i, name in enumerate(header):
        if name:
            names[i] = name
        elif any(cells[i].strip() for _, cells in rows):
            names[i] = f"column {i + 1}"
    return names


def _cell(text: str) -> str | None:
    return None if text.strip() in MISSING_CELLS else text


def _cells(source: str, number: int, header: list[str], record: list[str]) -> list[str]:
    """The cells of a row, one for each column; empty ones behind the last column hold nothing."""
    if len(record) > len(header) and any(cell.strip() for cell in record[len(header) :]):
        raise PromptError(
            f"{source}, row {number}: has {len(record)} cells, but the header names {len(header)}; "
            "put quotes around cells that hold the delimiter"
        )
    if len(record) < len(header):
        raise PromptError(
            f"{source}, row {number}, field {header[len(record)]!r}: is cut off; the row has "
            f"{len(record)} cells, but the header names {len(header)}"
        )
    return record[: len(header)]
