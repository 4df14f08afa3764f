"""The settings of a run as others may see them: how a model was made, and not where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steermoe.config import Config
from steermoe.prompts.sources import parse_source

_ADDRESS = re.compile(r"\w+://\S+")
_PATH = re.compile(r"""(?<![\w.<>])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\"',:=]+[/\\])*([^\s/\\"',:=]*)""")

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
    if config.evaluate.text_file is not None:
        values["evaluate"]["text_file"] = Path(config.evaluate.text_file).name
    for judge in ("main", "others"):
        values["judge"][judge] = _judges(values["judge"][judge])
    return {
        name: cleaned
        for name, value in values.items()
        if (cleaned := _cleaned(value, name)) is not None
    }


def _judges(named: Any) -> Any:
    """`classifier:DIRECTORY` by the last part of the directory."""
    if not isinstance(named, str):
        return [_judges(one) for one in named]
    kind, colon, which = named.partition(":")
    return f"{kind}:{Path(which).name}" if colon and Path(which).is_dir() else named


def _cleaned(value: Any, key: str) -> Any:
    if key in _OF_THIS_MACHINE:
        return None
    if key in _SAID_TO_THE_MODEL:
        return value
    if isinstance(value, Mapping):
        entries = {name: _cleaned(entry, f"{key}.{name}") for name, entry in value.items()}
        return {name: entry for name, entry in entries.items() if entry is not None}
    if isinstance(value, list):
        return [_cleaned(entry, key) for entry in value]
    if not isinstance(value, str):
        return value
    return _PATH.sub(lambda found: found[1], _ADDRESS.sub("ADDRESS", value))
