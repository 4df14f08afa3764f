"""One row of a prompt file, and the checks that every value must pass.

A complaint always names the file, the row and the field, because that is where the user mends it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from steermoe.errors import PromptError
from steermoe.records import Label, Message, Prompt

Reading = tuple[list[Prompt], list[str]]
"""The prompts of a file, and what to say aloud about them."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row that knows where it stands.

    Attributes:
        source: The file, as the user named it.
        number: Position in the file, counted from 1. In JSONL it is the line; in CSV the header does not
            count, and a quoted cell may hold several lines.
        values: Field names in lower case, and what they hold; None where a cell is missing.
        columns: The field that is read for a name of ours, where it is called otherwise in this file.
    """

    source: str
    number: int
    values: Mapping[str, object]
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def padded_number(self) -> str:
        """The number with leading zeros, so that names made of it sort as the rows do."""
        return f"{self.number:04d}"

    def column(self, name: str) -> str:
        """The field of this file that holds what we call by that name."""
        return self.columns.get(name, name)

    def with_columns(self, columns: Mapping[str, str]) -> Row:
        """The same row, with names of ours found under the file's own."""
        return dataclasses.replace(self, columns=columns)

    def value(self, name: str) -> object:
        """What a field holds; None where there is none."""
        return self.values.get(self.column(name))

    def error(self, name: str, problem: str) -> PromptError:
        """The exception for a field of this row, ready to be raised."""
        place = f"{self.source}, row {self.number}, field {self.column(name)!r}"
        return PromptError(f"{place}: {problem}")

    def has(self, name: str) -> bool:
        """Whether the row holds anything but white space in that field."""
        return not is_blank(self.value(name))

    def text(self, name: str) -> str:
        """The text of a field that must be there."""
        value = self.value(name)
        if is_missing(value):
            raise self.error(name, "is missing; every row needs it")
        try:
            return checked_text(value)
        except PromptError as error:
            raise self.error(name, str(error)) from None

    def optional_text(self, name: str) -> str:
        """The text of a field, or the empty string."""
        return self.text(name) if self.has(name) else ""

    def identifier(self, name: str) -> str:
        """A name or a number, as text; the empty string if there is none.

        A column of whole numbers with gaps reaches us as floats, so 3.0 is read as "3".
        """
        if not self.has(name):
            return ""
        value = whole_number(self.value(name))
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(name).strip()


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the rows of one file are to be read, beside what they hold.

    Attributes:
        name: What the prompts name as their source.
        label: The label of every row, where the user has given one.
        category: The category of every row, where the user has given one of those that have a meaning.
        words: What the user says that words of the label's column mean.
        include_failed: Keep jailbreaks that did not succeed.
    """

    name: str
    label: Label | None = None
    category: str = ""
    words: Mapping[str, Label] = field(default_factory=dict)
    include_failed: bool = False


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, or not-a-number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: object) -> bool:
    """Whether a cell holds nothing, or white space only."""
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def whole_number(value: object) -> object:
    """A float that is a whole number as an int; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plain_word(value: object) -> str:
    """A cell that holds one of a few words, in small letters: `" Unsafe "`, `1.0` and `True` are usual.

    A column of whole numbers with gaps is written as `1.0` into a text, too. An accent is one character with its
    letter (NFC), however it was written.
    """
    word = unicodedata.normalize("NFC", str(whole_number(value))).strip().casefold()
    return word.removesuffix(".0") if word.removesuffix(".0").isdecimal() else word


def shown(value: object) -> str:
    """A value on one line, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in quotes, on one line; the first ones where they are many."""
    every = [shown(name) for name in names]
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def unknown_word(value: object, allowed: Iterable[str]) -> str:
    """What is wrong with a value that is not one of the allowed words, and which of them is nearest."""
    words = list(allowed)
    near = difflib.get_close_matches(str(value).strip().casefold(), words, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{shown(value)} is not one of {', '.join(words)}{hint}"


_ERRORS_OF_SPREADSHEETS = frozenset(
    ("#NAME?", "#REF!", "#VALUE!", "#N/A", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#ERROR!")
)


def checked_text(value: object) -> str:
    """A text as it stands, after checking that it is one.

    Raises:
        PromptError: It is not text, is blank, is an error of a spreadsheet, or cannot be written as UTF-8. The message
            names no place.
    """
    if not isinstance(value, str):
        raise PromptError(f"must be text, not {shown(value)} ({type(value).__name__})")
    if not value.strip():
        raise PromptError("is empty; give it some text")
    if value.strip() in _ERRORS_OF_SPREADSHEETS:
        raise PromptError(
            f"is {shown(value)}, which a spreadsheet writes where it computed a cell and failed; the text is lost there"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"holds half a character at position {error.start + 1}") from None
    return value


def row_keys(rows: Sequence[Row], *names: str) -> list[str]:
    """A name for each row: the first of the fields that names them all apart, or else its number."""
    for name in names:
        keys = [row.identifier(name) for row in rows]
        if all(keys) and len(set(keys)) == len(keys):
            return keys
    return [row.padded_number for row in rows]


def user_turn(text: str) -> tuple[Message, ...]:
    """A conversation of one user message."""
    return ({"role": "user", "content": text},)
