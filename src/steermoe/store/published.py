"""The settings of a run as others may see them: how a model was made, and not where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from steermoe.config import Config
from steermoe.prompts.sources import parse_source, path_exists

_ADDRESS = re.compile(r"\w+://.*", re.DOTALL)
_ABSOLUTE = re.compile(r"(?<![\w.<>~])(?:~\w*|\.{1,2}|[A-Za-z]:)?[/\\](?=\S)")
_SEPARATOR = re.compile(r"[/\\]")
_ENDING = re.compile(r"\.[A-Za-z]{2,5}(?:@\w*)?\Z")

_FILES = ("evaluate.text_file", "judge.guard_template")
"""Settings that are a path, whatever they look like."""

_SAID_TO_THE_MODEL = (
    "prompts.system_prompt",
    "train.target_response",
    "model.chat_template_kwargs",
    "evaluate.sets.system",
    "evaluate.sets.follow_ups",
)
"""Settings whose texts are no paths, whatever they look like."""

_OF_THIS_MACHINE = ("run", "judge.base_url", "judge.key_variable")
"""Settings that say nothing of how a model was made."""


def without_places(config: Config) -> dict[str, Any]:
    """The settings by section, each path by its last part alone, and no address of a server."""
    values = config.model_dump(mode="json")
    values["model"]["id"] = config.model.name
    values["prompts"]["sources"] = [parse_source(s).name for s in config.prompts.sources]
    for written, section in zip(values["evaluate"]["sets"], config.evaluate.sets, strict=True):
        written["prompts"] = [parse_source(source).name for source in section.prompts]
    return {
        name: cleaned
        for name, value in values.items()
        if (cleaned := _cleaned(value, name)) is not None
    }


def without_place(text: str) -> str:
    """What names a judge, a task or a file, with every path in it by its last part alone, and without addresses.

    Where a path ends cannot be told, since names may hold blanks, commas and quotes: all up to the last separator goes.
    """
    text = _ADDRESS.sub("ADDRESS", text.replace("file://", ""))
    start = _start_of_path(text)
    if start is None:
        return text
    return without_place(text[:start]) + last_name(text[start:])


def last_name(path: str) -> str:
    """The last part of a path of this system or of Windows."""
    return _SEPARATOR.split(path.rstrip("/\\"))[-1]


def paths_in(config: Config) -> list[str]:
    """Every path among the settings, but for those of the model, the run and the prompts, as it was written."""
    return [
        path for key, value in config.model_dump(mode="json").items() for path in _paths(value, key)
    ]


def _paths(value: Any, key: str) -> Iterator[str]:
    if key in (
        *_OF_THIS_MACHINE,
        *_SAID_TO_THE_MODEL,
        "model.id",
        "prompts.sources",
        "evaluate.sets.prompts",
    ):
        return
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _paths(name, "")
            yield from _paths(entry, f"{key}.{name}")
    elif isinstance(value, list):
        for entry in value:
            yield from _paths(entry, key)
    elif isinstance(value, str):
        text = _ADDRESS.sub("", value.replace("file://", ""))
        while text and (start := 0 if key in _FILES else _start_of_path(text)) is not None:
            yield text[start:]
            text = text[:start]


def _start_of_path(text: str) -> int | None:
    """Where a path begins that goes on to the end of a text; None where there is none."""
    if (absolute := _ABSOLUTE.search(text)) is not None:
        return absolute.start()
    kind, colon, _ = text.partition(":")
    if kind == "openai":  # names of models have separators, too
        return None
    begins = [text.index("@") + 1] if "@" in text else []
    begins.append(len(kind + colon) if colon else 0)
    return next((i for i in begins if _is_relative_path(text[i:])), None)


def _is_relative_path(text: str) -> bool:
    """Whether a text is a path, and neither a name on the hub nor `package/task`."""
    separators = len(_SEPARATOR.findall(text.rstrip("/\\")))
    if separators == 0 or text.startswith("hf/"):
        return False
    return separators > 1 or _ENDING.search(text) is not None or path_exists(text)


def _cleaned(value: Any, key: str) -> Any:
    if key in _OF_THIS_MACHINE:
        return None
    if key in _SAID_TO_THE_MODEL:
        return value
    if isinstance(value, Mapping):
        entries = {
            without_place(str(name)): _cleaned(entry, f"{key}.{name}")
            for name, entry in value.items()
        }
        return {name: entry for name, entry in entries.items() if entry is not None}
    if isinstance(value, list):
        return [_cleaned(entry, key) for entry in value]
    if not isinstance(value, str):
        return value
    return last_name(value) if key in _FILES else without_place(value)
