"""JSON files: a list of rows, one row a line, or what other programs write around or instead of such a list.

Whatever shape it is, every row is found in it, or the file is refused: a shape is never guessed from a part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from steermoe.errors import PromptError
from steermoe.prompts.columns import is_known
from steermoe.prompts.conversations import CONTENT_KEYS, looks_like_turns
from steermoe.prompts.labels import LABEL_WORDS, SPLIT_WORDS, loose
from steermoe.prompts.rows import counted, listed, plain_word, shown
from steermoe.prompts.strict_json import RepeatedKeyError, load_json
from steermoe.prompts.tables import Records, field_name

Object = Mapping[str, object]


def read_json(text: str, source: str) -> Records:
    """The records of a JSON or JSONL file.

    Raises:
        PromptError: It is malformed, cut off, or of a shape in which no rows are found.
    """
    if text.lstrip().startswith("["):
        lists = _lists_by_line(text)
        return _from_list(_whole(text, source) if lists is None else lists, source)
    try:
        value = load_json(text)
    except RepeatedKeyError as error:
        raise PromptError(f"{source}: {error}; rename one") from None
    except (RecursionError, ValueError):
        return _lines(
            text, source
        )  # more than one object, or a broken one: the lines will tell which
    return _from_object(cast(Object, value), source)


def _lists_by_line(text: str) -> list[object] | None:
    """A list of each line, of which there are several; None where that is not what the text holds."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not all(line.strip()[0] + line.strip()[-1] == "[]" for line in lines):
        return None
    try:
        return [load_json(line) for line in lines]
    except (RecursionError, ValueError):
        return None


def _whole(text: str, source: str) -> list[object]:
    try:
        return cast(list[object], load_json(text))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        if _runs_out(error, text):
            raise PromptError(f"{source} is cut off: its JSON breaks off at {place}") from None
        raise PromptError(f"{source} is not valid JSON: {error.msg}, {place}") from None
    except (RecursionError, ValueError) as error:
        raise PromptError(f"{source} cannot be read as JSON: {error}") from None


def _runs_out(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the text simply ended where the parser wanted more of it."""
    return error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")


_GOES_ON = "does not end in its line; save one object a line, or all of them in one list ([...])"


def _lines(text: str, source: str) -> Records:
    values = []
    last = text.rstrip().count("\n") + 1
    # Other line ends than "\n" may stand inside a JSON string, so str.splitlines would tear rows.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((number, load_json(line)))
        except json.JSONDecodeError as error:
            what = f"is not valid JSON: {error.msg}"
            if _runs_out(error, line):
                what = "is cut off" if number == last else _GOES_ON
            raise PromptError(f"{source}, row {number}: {what}, column {error.colno}") from None
        except (RecursionError, ValueError) as error:
            raise PromptError(f"{source}, row {number}: cannot be read as JSON: {error}") from None
    return Records(values)


def _from_list(items: list[object], source: str) -> Records:
    """Rows of a list: of objects, of texts, or of conversations."""
    if items and all(isinstance(item, str) for item in items):
        return Records.numbered(
            ({"prompt": item} for item in items), notes=["a list of texts: each is a prompt"]
        )
    if items and all(looks_like_turns(item) for item in items):
        return Records.numbered(
            ({"messages": item} for item in items), notes=["a list of lists of messages"]
        )
    if items and all(isinstance(item, list) for item in items):
        raise PromptError(
            f"{source} holds rows without names of columns; write it with DataFrame.to_json(orient='records')"
        )
    if _is_cell(items) and not any(_names_a_column(item) for item in items):
        _check_one_conversation(cast(list[Object], items), source)
        return Records.numbered([{"messages": items}], notes=["one conversation"])
    return Records.numbered(items)


_OF_CONVERSATIONS = ("conv", "dialog", "session", "thread", "chatid")
"""Parts of names of what tells conversations apart."""


def _check_one_conversation(turns: list[Object], source: str) -> None:
    """Refuse turns of several conversations in one list, which something beside role and content tells apart."""
    keys = {key for turn in turns for key in turn}
    for key in sorted(key for key in keys if any(part in loose(key) for part in _OF_CONVERSATIONS)):
        values = [shown(turn.get(key)) for turn in turns]
        if 1 < len(set(values)) < len(values):
            raise PromptError(
                f"{source} is a list of turns of several conversations, as {shown(key)} says; write a list of turns "
                "for each"
            )


def _names_a_column(item: object) -> bool:
    return isinstance(item, Mapping) and any(is_known(key) for key in item)


def _from_object(value: Object, source: str) -> Records:
    """Rows of an object: under one of its keys, in columns, by name, or the object itself."""
    keys = list(value)
    lists = [key for key in keys if isinstance(value[key], list) and not _is_cell(value[key])]
    if {"columns", "data"} <= set(keys) <= {"columns", "data", "index"}:
        return _split_orient(value, source)
    known = [key for key in keys if is_known(key)]
    if keys and len(lists) == len(keys):
        if all(plain_word(key) in {**LABEL_WORDS, **SPLIT_WORDS} for key in keys):
            return _lists_by_word(value, source)
        if any(value.values()) and all(_is_list_of_attacks(value[key]) for key in keys):
            return _attacks_by_behaviour(value)
        if known and not any(_is_list_of(value[key], Mapping) for key in keys):
            return _columns(
                {key: dict(enumerate(cast(list[object], value[key]))) for key in keys}, source
            )
    if keys and all(isinstance(item, Mapping) for item in value.values()):
        return _mapping_of_mappings(cast(Mapping[str, Object], value), bool(known), source)
    words = [key for key in lists if plain_word(key) in {**LABEL_WORDS, **SPLIT_WORDS}]
    if words and words == lists:
        found = _lists_by_word({key: value[key] for key in words}, source)
        others = [key for key in keys if key not in words]
        return Records(found.values, (), [*found.notes, f"not read beside them: {listed(others)}"])
    rows = [key for key in lists if _is_list_of(value[key], (Mapping, str, list))]
    is_row = any(key not in lists and not isinstance(value[key], Mapping) for key in known)
    if len(rows) == 1 and not is_row:
        _check_not_a_row(value, rows[0], source)
        return _under_key(value, rows[0], source)
    if len(rows) > 1 and not is_row:
        raise PromptError(
            f"{source} holds several lists, {listed(rows)}; save the one with the prompts by itself"
        )
    return Records.numbered([value])


_WRAPPERS = frozenset(
    {"data", "rows", "items", "examples", "instances", "records", "entries", "list", "samples"}
)


def _check_not_a_row(value: Object, key: str, source: str) -> None:
    """Refuse a list of texts beside other texts under a name that may be a column's: tags of one row, not prompts."""
    texts = [other for other, item in value.items() if isinstance(item, str)]
    is_texts = _is_list_of(value[key], str)
    if is_texts and texts and not is_known(key) and field_name(key) not in _WRAPPERS:
        raise PromptError(
            f"{source} may be one row, or prompts under {shown(key)} beside {listed(texts)}: save the prompts by "
            "themselves, or the row in a list ([...])"
        )


def _is_cell(value: object) -> bool:
    """Whether a list is what one cell of a row may hold: chat messages."""
    return looks_like_turns(value) and all(
        any(key in item for key in CONTENT_KEYS) for item in value
    )


def _is_list_of_attacks(value: object) -> bool:
    """Whether it holds nothing but attacks: of a behaviour that nobody attacked, none."""
    return isinstance(value, list) and all(
        isinstance(item, Mapping) and "test_case" in item for item in value
    )


def _is_list_of(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) for v in value)


def _under_key(value: Object, key: str, source: str) -> Records:
    """Rows in a list under a key, as `{"data": [...]}` has them."""
    found = _from_list(cast(list[object], value[key]), source)
    others = [other for other in value if other != key]
    notes = [f"rows are those under {shown(key)}", *found.notes]
    if others:
        notes.append(f"not read beside {shown(key)}: {listed(others)}")
    return Records(found.values, (), notes)


def _lists_by_word(value: Object, source: str) -> Records:
    """Lists of rows under the words of a label or of a split: `{"harmful": [...], "harmless": [...]}`."""
    field = "split" if all(plain_word(key) in SPLIT_WORDS for key in value) else "label"
    rows: list[object] = []
    notes = [f"each row's {field} is the key that it stands under: {listed(value)}"]
    for key in value:
        found = _from_list(cast(list[object], value[key]), source)
        for number, row in found.values:
            if not isinstance(row, Mapping):
                raise PromptError(
                    f"{source}, row {number} under {shown(key)}: must be an object or a text, not {shown(row)}"
                )
            if any(field_name(name) == field for name in row):
                raise PromptError(
                    f"{source}, row {number} under {shown(key)}: has a {field!r} of its own; remove one of the two"
                )
            rows.append({**row, field: key})
    return Records.numbered(rows, notes=notes)


def _attacks_by_behaviour(value: Object) -> Records:
    """HarmBench's results: lists of attacks under the id of the behaviour that they are after."""
    rows = [
        {"behaviorid": key, **attack}
        for key, attacks in value.items()
        for attack in cast(list[Object], attacks)
    ]
    note = f"rows stand under {counted(len(value), 'key')}, read as 'behaviorid'"
    return Records.numbered(rows, notes=[note])


def _split_orient(value: Object, source: str) -> Records:
    """What `DataFrame.to_json(orient='split')` writes."""
    columns, data = value["columns"], value["data"]
    if not isinstance(columns, list) or not isinstance(data, list):
        raise PromptError(f"{source}: 'columns' and 'data' must be lists")
    rows = []
    for number, cells in enumerate(data, start=1):
        if not isinstance(cells, list) or len(cells) != len(columns):
            raise PromptError(
                f"{source}, row {number}: must be a list of {len(columns)} cells, as there are columns"
            )
        rows.append(dict(zip(map(str, columns), cells, strict=True)))
    return Records.numbered(rows, list(map(str, columns)), ["rows are those under 'data'"])


def _mapping_of_mappings(value: Mapping[str, Object], named: bool, source: str) -> Records:
    """Columns of cells by row, or rows by name: what `to_json` writes with orient `columns` and `index`."""
    inner = {key for item in value.values() for key in item}
    if named and not any(is_known(key) for key in inner):
        return _columns(value, source)
    if any(is_known(key) for key in inner):
        if any(field_name(key) == "id" for key in inner):
            return Records.numbered(value.values(), notes=["rows stand under keys, not read"])
        rows = [{"id": key, **row} for key, row in value.items()]
        return Records.numbered(rows, notes=["rows stand under keys, which are read as 'id'"])
    raise PromptError(
        f"{source} is in no known format: it is an object of objects, with the keys {listed(value)} and in them "
        f"{listed(sorted(inner))}; save it as a list of rows"
    )


def _columns(value: Mapping[str, Mapping[Any, object]], source: str) -> Records:
    """Rows of an object that has a mapping, from row to cell, for every column."""
    first = next(iter(value))
    rows = list(value[first])
    for name, cells in value.items():
        if set(cells) != set(rows):
            raise PromptError(
                f"{source}: column {shown(first)} has {len(rows)} rows, and {shown(name)} has not the same; "
                "save it with DataFrame.to_json(orient='records')"
            )
    return Records.numbered(
        ({name: cells[row] for name, cells in value.items()} for row in rows),
        list(value),
        ["rows are made of columns"],
    )
