"""Write docs/settings.md from the descriptions in the code: `python scripts/write_settings.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from steermoe.config import EMBEDDED_MODEL, Config, fields_of, preset

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

HEADER = """\
# Settings

Every setting of a run, with its default. They can be given in a TOML file (`--config FILE`), one by one
(`--set train.epochs=2`), or, from Python, to `steermoe.load_config`. The command line wins over the file, the file
over the defaults. With no value (`--set identify.last_layer=`) a setting that may be empty is emptied. A key that does
not exist is refused, and the nearest one that does is named. What a run used, down to the last default, is in its
`run.json`.

This page is written by `python scripts/write_settings.py` from the descriptions in `src/steermoe/config/`.
"""

TYPES = {
    "str": "text",
    "bool": "true or false",
    "int": "whole number",
    "float": "number",
    "tuple[str, ...]": "list of texts",
    "tuple[float, float, float]": "three numbers",
    "tuple[steermoe.config.train.PhaseSection, ...]": "list of tables",
    "tuple[steermoe.config.evaluate.SetSection, ...]": "list of tables",
}

LONGEST_DEFAULT = 60
"""Characters of a default that still fit a row of the table."""


def settings_page() -> str:
    """The whole page."""
    rows = fields_of(Config)
    top_level = [row for row in rows if "." not in row[0]]
    below = [row for row in rows if "." in row[0]]
    parts = [HEADER, "## Of the whole run", _table(top_level)]
    for section, group in groupby(below, key=lambda row: row[0].split(".")[0]):
        members = list(group)
        purpose = (Config.model_fields[section].annotation.__doc__ or "").splitlines()[0]
        parts += [f"## [{section}]", purpose, _table(members), *_long_defaults(members)]
    parts += [
        f"## Where the embedded model differs\n\nWith `{EMBEDDED_MODEL}` and no other value given:",
        _preset_table(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: list[tuple[str, str, Any, str]]) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, kind, default, description in rows:
        shown = _toml(default)
        shown = f"`{shown}`" if len(shown) <= LONGEST_DEFAULT else "see below"
        shown = "empty" if default is None else shown
        meaning = description.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{key}` | {_kind(kind)} | {shown} | {meaning} |")
    return "\n".join(lines)


def _long_defaults(rows: list[tuple[str, str, Any, str]]) -> list[str]:
    """Defaults that are tables or lists of sentences, under the table."""
    found = []
    for key, _, default, _ in rows:
        if len(_toml(default)) <= LONGEST_DEFAULT:
            continue
        if isinstance(default, dict):
            shown = [f"- `{name} = {_toml(value)}`" for name, value in default.items()]
            found.append(f"Default of `{key}`:\n\n" + "\n".join(shown))
        elif isinstance(default, tuple):
            if not all(isinstance(value, str) for value in default):
                continue
            found.append(f"Default of `{key}`:\n\n" + "\n".join(f"- {text}" for text in default))
    return found


def _preset_table() -> str:
    lines = ["| key | value |", "| --- | --- |"]
    for key, value in _flat(preset(EMBEDDED_MODEL)):
        lines.append(f"| `{key}` | `{_toml(value)}` |")
    return "\n".join(lines)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested tables, under its dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _kind(annotation: str) -> str:
    """A Python annotation in words; the choices themselves where there are choices."""
    kind = annotation.removesuffix(" | None")
    if kind.startswith("Optional["):
        kind = kind[len("Optional[") : -1]
    if kind.startswith("tuple[Literal["):
        return f"list of {_kind(kind.removeprefix('tuple[').removesuffix(', ...]'))}"
    if kind.startswith("Literal["):
        return ", ".join(f"`{choice.strip()[1:-1]}`" for choice in kind[8:-1].split(","))
    if kind.startswith("dict["):
        return "table"
    return " or ".join(TYPES[part] for part in kind.split(" | "))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{}" if not value else json.dumps(value)
    if isinstance(value, tuple) and all(isinstance(number, float) for number in value) and value:
        return "[" + ", ".join(f"{number:.4g}" for number in value) + "]"
    return json.dumps(value)


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
    print(PAGE)
