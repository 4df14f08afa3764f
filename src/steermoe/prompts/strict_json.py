"""JSON in which nothing is dropped: a key that an object has twice is refused, where `json` keeps the last."""

from __future__ import annotations

import json


class RepeatedKeyError(ValueError):
    """An object that has a key twice."""


def load_json(text: str) -> object:
    """The value of a JSON text.

    Raises:
        ValueError: It is no JSON (`json.JSONDecodeError`), holds a number that is too long, or an object in
            it has a key twice (`RepeatedKeyError`).
        RecursionError: It is nested too deeply.
    """
    value: object = json.loads(text, object_pairs_hook=_object)
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(f"an object has the key {key!r} twice")
            seen.add(key)
    return values
