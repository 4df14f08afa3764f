"""What every section of the settings shares: how a value is read as the person who wrote it meant it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from steermoe.errors import ConfigError

AMBIGUOUS_WORDS = (
    "yes", "no", "y", "n", "t", "f", "on", "off", "enable", "enabled", "disable", "disabled", "always", "never",
    "none", "null", "nil", "undefined",
)  # fmt: skip
"""What some people write for true, false or nothing, and some chat templates take as a text."""


SETTING = "<setting>"
"""Stands in a complaint for the setting's whole name, which only who reads all sections knows."""


class Unquoted(str):
    """A text of the command line that stood without quotes, and so may have been meant as something else."""

    __slots__ = ()


class Section(BaseModel):
    """A part of the configuration: immutable, and refusing keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """What a person means: nothing empties a setting, one text is a list of one, a path is its text."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kind, parts = get_origin(annotation), get_args(annotation)
        value = _without_paths(value)
        if _is_number(_innermost(annotation)) and _holds_truth_value(value):
            raise ValueError("true or false is no number; it must be a number")
        if kind is dict:
            return {} if value == "" else untyped(value)
        if value == "" and (NoneType in parts or kind is tuple):
            return None if NoneType in parts else ()
        if isinstance(value, Unquoted) and NoneType in parts and value.lower() in ("none", "null"):
            raise ValueError(
                f"{value} may be a text or mean nothing; write --set {SETTING}= to empty the setting, or put "
                f"the text in quotes that reach the program: --set {SETTING}='\"{value}\"'"
            )
        takes_texts = kind is tuple and (parts[0] is str or get_origin(parts[0]) is Literal)
        if isinstance(value, str) and takes_texts:
            return (str(value),)
        return str(value) if isinstance(value, Unquoted) else value


def _is_number(annotation: Any) -> bool:
    """Whether a setting is a number, which Python would take true for as well."""
    if annotation in (int, float):
        return True
    parts = get_args(annotation)
    return get_origin(annotation) in (Union, UnionType, Annotated) and any(map(_is_number, parts))


def _innermost(annotation: Any) -> Any:
    """What the lists and tables of a setting hold in the end."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind in (dict, tuple):
        return _innermost(parts[-1] if kind is dict else parts[0])
    return annotation


def _holds_truth_value(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_truth_value, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_truth_value, value))
    return isinstance(value, bool)


def _without_paths(value: Any) -> Any:
    """The same with the paths that Python has as objects written out."""
    if isinstance(value, Mapping):
        return {key: _without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(entry) for entry in value]
    return str(value) if isinstance(value, PurePath) else value


def untyped(value: Any, name: str = "") -> Any:
    """A value of a table whose settings have no type: a bare `False` is false, and no word that is true.

    An entry that is given nothing on the command line is taken out.

    Args:
        value: It.
        name: The entry that it is of, for messages.

    Raises:
        ValueError: It may be meant as a truth value or as a text, or is a number that is not finite.
    """
    if isinstance(value, list | tuple):
        return [untyped(entry, name) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        where = f"{name} = " if name else ""
        raise ValueError(f"{where}{value} is not finite; a text goes in quotes")
    if isinstance(value, Mapping):
        entries = value.items()
        return {k: untyped(v, k) for k, v in entries if not (isinstance(v, Unquoted) and not v)}
    if not isinstance(value, Unquoted):
        return str(value) if isinstance(value, PurePath) else value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.strip("+-").lower() in ("nan", "inf", "infinity"):
        raise ValueError(
            f"{value} may be a number that is not finite, which is none here, or a text; put the text in quotes "
            f"that reach the program: '\"{value}\"'"
        )
    if value.lower() in AMBIGUOUS_WORDS:
        raise ValueError(
            f"{value} may be a truth value or a text; write true or false, or put the text in quotes "
            f"that reach the program: '\"{value}\"'"
        )
    return str(value)


def expand_home(path: str) -> str:
    """A path with its leading `~` replaced by the home directory.

    Raises:
        ConfigError: It is somebody's home directory that is not known here.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ConfigError(
            f"{path} begins with a home directory that is not known; write the path in full"
        ) from None


def check_address(address: str, key: str) -> None:
    """Refuse what is no address of a server, or holds a secret.

    Args:
        address: What the user gives.
        key: Where the key belongs instead.

    Raises:
        ValueError: With what is wrong.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an address such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "must hold no user, password or query: it is written into the run; put the key into the "
            f"environment variable that {key} names"
        )
