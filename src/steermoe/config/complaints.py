"""What is wrong with a setting, in plain words: those of the library that checks types are about Python's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from steermoe.config.section import SETTING

_WORDS: Mapping[str, str] = {
    "tuple_type": 'must be a list, as ["a", "b"]',
    "dict_type": "must be a table, as {{key = value}}",
    "string_type": "must be a text: put it in quotes, which the command line has to pass on, as '\"5\"'",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "missing": "is missing",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have {max_length} characters at most",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} entries at most",
}
_IN_UNIONS = ("str", "[key]")
"""Parts of an error's place that are no part of a setting's name."""


def complaint(error: ErrorDetails) -> str:
    """One line that names the setting, shows its value, and says what it must be."""
    path = [str(part) for part in error["loc"]]
    path = [part for part in path if part not in _IN_UNIONS and not part.startswith("tuple[")]
    key = ".".join(path)
    value = json.dumps(error["input"], default=str)
    if len(value) > 80:
        value = value[:77] + "..."
    if key == "judge.base_url":
        value = "..."  # an address may hold a password
    if not path:  # of several settings together: all of them would be the value
        return _problem(error, path)
    return f"setting {key} = {value}: {_problem(error, path).replace(SETTING, key)}"


def _problem(error: ErrorDetails, path: list[str]) -> str:
    context: dict[str, Any] = error.get("ctx") or {}
    if error["type"] == "missing" and path and path[-1].isdigit():
        return f"has no entry {int(path[-1]) + 1}"
    if error["type"] in ("model_type", "model_attributes_type"):
        if path and path[-1].isdigit():
            return "must be a table, as {key = value}"
        return f"is a group of settings: set one of them, as {'.'.join(path)}.NAME"
    if error["type"] in _WORDS:
        words = _WORDS[error["type"]].format(**context)
        return f"the name {words}" if "[key]" in error["loc"] else words
    return error["msg"].removeprefix("Value error, ")
