"""Settings in layers, the later winning, and one line for the first thing that is wrong in them."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steermoe.config.complaints import complaint
from steermoe.config.old_names import RENAMED, Values, renamed_settings
from steermoe.config.section import Section, Unquoted, expand_home
from steermoe.config.sections import EMBEDDED_MODEL, Config
from steermoe.config.train import ArgumentsSection
from steermoe.errors import ConfigError, on_one_line


def load_config(
    config_file: str | Path | None = None,
    settings: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
    note: Callable[[str], None] | None = None,
) -> Config:
    """Layer the settings and validate every key.

    Args:
        config_file: A TOML file.
        settings: `section.key=value` strings; the value is read as TOML, or else as text. With no value, an
            optional setting is emptied.
        overrides: Nested mapping of a command's own options; None values are left out.
        base: What to start from instead of the defaults and the preset: the config stored in a run.
        note: Called with a sentence for each setting that is given under an old name.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: A key is unknown (the nearest known one is named), or a value is not allowed.
    """
    layers = [_read_toml(config_file)] if config_file is not None else []
    layers.append(_parse_settings(settings))
    layers.append(_without_none(overrides or {}))
    given: Values = {}
    notes: list[str] = []
    for layer in layers:
        # Each by itself: what is given under the new name in one wins over the old name in a lower one.
        values, said = renamed_settings(layer)
        given = _merge(given, values)
        notes += said
    if base is not None:
        start, said = renamed_settings(base)
        notes += said
    elif _model_id(given) == EMBEDDED_MODEL:
        start = preset(EMBEDDED_MODEL)
    else:
        start = {}
    for text in dict.fromkeys(notes):
        if note is not None:
            note(text)
    return validate(_merge(start, given))


def _model_id(given: Mapping[str, Any]) -> Any:
    """The model that is asked for; a `model` that is no section is left for the validation to refuse."""
    section = given.get("model", {})
    return section.get("id", EMBEDDED_MODEL) if isinstance(section, Mapping) else None


def preset(name: str) -> Values:
    """The settings that ship with the package for one model."""
    text = resources.files("steermoe").joinpath("presets", f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def validate(values: Mapping[str, Any]) -> Config:
    """Turn a nested mapping into a `Config`, with one line for the first thing that is wrong.

    Settings may have the names that they had before.
    """
    try:
        return Config.model_validate(renamed_settings(values)[0])
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def fields_of(section: type[Section]) -> list[tuple[str, str, Any, str]]:
    """Every setting below a section as `(dotted key, type, default, description)`."""
    rows: list[tuple[str, str, Any, str]] = []
    for name, info in section.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, ArgumentsSection):
            filled = annotation().model_dump(mode="json", exclude_none=True)
            rows.append((name, "dict[str, Any]", filled, info.description or ""))
            continue
        if isinstance(annotation, type) and issubclass(annotation, Section):
            rows += [(f"{name}.{key}", *rest) for key, *rest in fields_of(annotation)]
            continue
        default = info.get_default(call_default_factory=True)
        shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        rows.append((name, shown.replace("typing.", ""), default, info.description or ""))
    return rows


def _read_toml(path: str | Path) -> Values:
    try:
        return tomllib.loads(Path(expand_home(str(path))).read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"config file {path} cannot be read: {error.strerror}; check the path"
        ) from None


def _parse_settings(settings: Iterable[str]) -> Values:
    parsed: Values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting!r} is not of the form section.key=value")
        nested = _value_of(key.strip(), text)
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        parsed = _merge(parsed, nested)
    return parsed


def _value_of(key: str, text: str) -> Any:
    """A value of the command line: TOML, or JSON, which writes tables with colons; else a text.

    A bare word is a text, because quotes would have to survive the shell.

    Raises:
        ConfigError: It begins as a list, a table or a quoted text does, and is none.
    """
    reason = "more lines follow"
    try:
        read = tomllib.loads(f"value = {text}")
        if list(read) == ["value"]:  # a second line could hold more
            return read["value"]
    except tomllib.TOMLDecodeError as error:
        reason = str(error).partition(" (at ")[0]
    with suppress(json.JSONDecodeError):
        if text.lstrip().startswith(("{", "[")):
            return json.loads(text)
    first = text.lstrip()[:1]
    if first not in ("[", "{", '"', "'"):
        return Unquoted(text if text.strip() else "")
    raise ConfigError(_no_toml(key, text, reason))


def _no_toml(key: str, text: str, reason: str) -> str:
    """What to write for a value that begins as one of TOML and is none."""
    first = text.lstrip()[:1]
    if key == "judge.base_url":
        text = f"{first}..."  # an address may hold a password
    as_text = _quoted(text)
    begins = f"--set {key}={_shortened(text)}: begins with {first} and is no"
    if first == "[":
        lists = """'["one", "two"]' or '[true, 3]'"""
        write = f"list of TOML ({reason}); write {lists}, or a text that begins so as {as_text}"
    elif first == "{":
        write = f"""table of TOML ({reason}); write '{{name = "text"}}', or a text that begins so as {as_text}"""
    else:
        meant = _quoted(text.strip().strip(first))
        write = f"text of TOML ({reason}); write {meant}, or {as_text} where the quotes are part of the text"
    return f"{begins} {write}"


def _shortened(text: str) -> str:
    line = on_one_line(text)
    return line if len(line) <= 60 else f"{line[:57]}..."


def _quoted(text: str) -> str:
    """A text as TOML writes it, in quotes for the shell; shortened where it is long."""
    in_toml = json.dumps(_shortened(text), ensure_ascii=False)
    return "'" + in_toml.replace("'", "'\\''") + "'"


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Values:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _without_none(values: Mapping[str, Any]) -> Values:
    kept = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = _without_none(value)
        elif value is not None:
            kept[key] = value
    return kept


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        if any("." in part for part in path):
            nested = _nested(key, "...")
            return (
                f"setting {key}: a name with dots in it is no section and a setting; write {nested} in Python, and "
                f"{key} = ... without quotes around the name in a file"
            )
        near = _nearest(path)
        hint = f"did you mean {near}?" if near else "see docs/settings.md for the known keys"
        return f"unknown setting {key}: {hint}"
    return complaint(first)


def _nested(key: str, value: str) -> str:
    """A setting as nested mappings of Python: `{"train": {"epochs": ...}}`."""
    for part in reversed(key.split(".")):
        value = f'{{"{part}": {value}}}'
    return value


def _nearest(path: Sequence[str]) -> str | None:
    """The setting that was probably meant: one of that name, else one of those initials, else one spelt alike."""
    settings = [name for name, *_ in fields_of(Config)]
    *section, name = path
    names = {setting.rsplit(".", 1)[-1]: setting for setting in settings}
    if name in names:
        return names[name]
    for setting in settings:
        *parents, other = setting.split(".")
        if parents == section and name == "".join(word[0] for word in other.split("_")):  # lr
            return setting
    for new in RENAMED.values():
        if name == new.rsplit(".", 1)[-1]:
            return new
    known = settings if section else [*settings, *Config.model_fields]
    near = difflib.get_close_matches(".".join(path), known, n=1, cutoff=0.6)
    near = near or [names[n] for n in difflib.get_close_matches(name, names, n=1, cutoff=0.7)]
    return near[0] if near else None
