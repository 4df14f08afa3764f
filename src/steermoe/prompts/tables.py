"""Records on their way from a file to rows: numbered, with the notes of whoever read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from steermoe.errors import PromptError
from steermoe.prompts.rows import Row, shown


@dataclass(frozen=True, slots=True)
class Records:
    """What a file holds, before names are looked at.

    Attributes:
        values: A number (of the line, or of the record) and what stands there; a record is a mapping.
        names: Names of the columns, where the file has a list of them.
        notes: What to say about how they were found.
    """

    values: Sequence[tuple[int, object]]
    names: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    @classmethod
    def numbered(
        cls, values: Iterable[object], names: Sequence[str] = (), notes: Sequence[str] = ()
    ) -> Records:
        """Records counted from 1."""
        return cls(list(enumerate(values, start=1)), names, list(notes))


def as_rows(records: Records, source: str) -> list[Row]:
    """Rows with names in lower case.

    Raises:
        PromptError: A record is no mapping, or two of its names are one in lower case.
    """
    check_names(source, map(field_name, records.names))
    return [_row(source, number, value) for number, value in records.values]


def field_name(name: object) -> str:
    """A name as rows have it: in small letters, and an accent is one character with its letter (NFC).

    Files that were written on a Mac may have the two apart, and what is typed has not.
    """
    return unicodedata.normalize("NFC", str(name)).strip().lower()


def check_names(source: str, names: Iterable[str]) -> None:
    """Refuse two columns of one name.

    Raises:
        PromptError: There are such.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PromptError(f"{source}: two columns are named {name!r}; rename one")
        seen.add(name)


def _row(source: str, number: int, value: object) -> Row:
    if not isinstance(value, Mapping):
        raise PromptError(f"{source}, row {number}: must be an object, not {shown(value)}")
    values: dict[str, object] = {}
    for key, cell in value.items():
        name = field_name(key)
        if name in values:
            raise PromptError(f"{source}, row {number}, field {name!r}: is given twice")
        values[name] = cell
    return Row(source, number, values)
