"""What a step is handed of the settings: those it has declared, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from steermoe.config import Config, Section, Values

_S = TypeVar("_S", bound=Section)


def restricted(config: Config, keys: Sequence[str]) -> Config:
    """A configuration that holds some settings only: asking it for another is an `AttributeError`.

    Args:
        config: All settings.
        keys: Dotted names, of single settings or of whole sections.
    """
    return _restricted(config, "", set(keys))


def values_of(config: Config, keys: Sequence[str], aside: Sequence[str] = ()) -> Values:
    """The values of some settings by their dotted names, in the order of the configuration.

    Args:
        config: All settings.
        keys: Dotted names, of single settings or of whole sections.
        aside: Those of them to leave out.
    """
    return {
        name: value
        for name, value in _flat(config.model_dump(mode="json"), "", type(config))
        if _covers(keys, name) and not _covers(aside, name)
    }


def not_read(before: Config, now: Config, keys: Sequence[str]) -> Mapping[str, object]:
    """The settings that differ and that none of the keys covers, with the values they have now."""
    old, new = (values_of(config, tuple(Config.model_fields)) for config in (before, now))
    names = dict.fromkeys([*new, *old])
    return {
        name: new.get(name)
        for name in names
        if name != "run" and old.get(name) != new.get(name) and not _covers(keys, name)
    }


def keeping(before: Config, now: Config, keys: Sequence[str]) -> Config:
    """The settings as they were, but for those that the keys cover, which are as they are now."""
    return _mixed(before, now, "", set(keys))


def _mixed(before: _S, now: _S, prefix: str, keys: set[str]) -> _S:
    taken: dict[str, object] = {}
    for name in type(now).model_fields:
        dotted = f"{prefix}{name}"
        old, new = getattr(before, name), getattr(now, name)
        if _covers(keys, dotted):
            taken[name] = new
        elif isinstance(new, Section) and any(key.startswith(f"{dotted}.") for key in keys):
            taken[name] = _mixed(old, new, f"{dotted}.", keys)
    return before.model_copy(update=taken)


def _covers(keys: Sequence[str] | set[str], name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)


def _restricted(section: _S, prefix: str, keys: set[str]) -> _S:
    copy = section.model_copy()
    for name in type(section).model_fields:
        dotted = f"{prefix}{name}"
        value = getattr(section, name)
        if _covers(keys, dotted):
            continue
        if isinstance(value, Section) and any(key.startswith(f"{dotted}.") for key in keys):
            copy.__dict__[name] = _restricted(value, f"{dotted}.", keys)
        else:
            del copy.__dict__[name]
    return copy


def _flat(values: Values, prefix: str, section: type[Section]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        known = section.model_fields.get(name)
        inner = (
            known.annotation if known is not None else None
        )  # a section may take more than it knows
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _flat(value, f"{prefix}{name}.", inner)
        else:
            yield f"{prefix}{name}", value
