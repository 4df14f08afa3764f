"""Settings that have another name now: the old one is taken, and said to be old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steermoe.errors import ConfigError

Values = dict[str, Any]
"""Settings as somebody wrote them: tables in tables, not yet checked."""

RENAMED = {
    "collect.judge": "judge.main",
    "train.adam_epsilon": "train.arguments.adam_epsilon",
    "train.weight_decay": "train.arguments.weight_decay",
    "train.lr_scheduler": "train.arguments.lr_scheduler_type",
    "train.lr_scheduler_kwargs": "train.arguments.lr_scheduler_kwargs",
    "train.warmup_ratio": "train.arguments.warmup_ratio",
    "train.warmup_steps": "train.arguments.warmup_steps",
    "train.gradient_accumulation_steps": "train.arguments.gradient_accumulation_steps",
    "train.gradient_checkpointing": "train.arguments.gradient_checkpointing",
    "train.max_grad_norm": "train.arguments.max_grad_norm",
    "train.save_steps": "train.arguments.save_steps",
    "train.report_to": "train.arguments.report_to",
}
"""The name of today for each name of before. What a setting means stays the same."""

GONE = {
    "train.retention_first_tokens_weight": "the leading tokens of all replies weigh train.first_tokens_weight",
}
"""Settings that are none any more, and what holds instead. Stored runs hold them still."""


def renamed_settings(values: Mapping[str, Any]) -> tuple[Values, list[str]]:
    """Settings under the names of today.

    Args:
        values: Nested mapping, as read from a file, from `--set` or from a stored run.

    Returns:
        The same settings, none under an old name, and a sentence for each that was: `train.save_steps is now
        train.arguments.save_steps`. A setting that is empty under its old name is left out, and so is one that is gone.

    Raises:
        ConfigError: A setting is given under both names, with different values.

    Example:
        >>> renamed_settings({"train": {"save_steps": 5}})
        ({'train': {'arguments': {'save_steps': 5}}}, ['train.save_steps is now train.arguments.save_steps'])
    """
    found = _copy(values)
    notes = []
    for old, new in RENAMED.items():
        *sections, name = old.split(".")
        section = _section(found, sections)
        if section is None or name not in section:
            continue
        value = section.pop(name)
        if value is None:
            continue
        _put(found, old, new, value)
        notes.append(f"{old} is now {new}")
    for old, instead in GONE.items():
        *sections, name = old.split(".")
        section = _section(found, sections)
        if section is not None and section.pop(name, None) is not None:
            notes.append(f"{old} is no setting any more and has no effect: {instead}")
    return found, notes


def _put(values: Values, old: str, new: str, value: Any) -> None:
    *sections, name = new.split(".")
    for depth in range(1, len(sections) + 1):
        parent = _section(values, sections[: depth - 1])
        assert parent is not None, "its parent was made before it"
        if not isinstance(parent.setdefault(sections[depth - 1], {}), dict):
            raise ConfigError(f"{old} is now {new}, and {'.'.join(sections[:depth])} is no table")
    section = _section(values, sections)
    assert section is not None, "it was just made"
    if section.get(name, value) != value:
        raise ConfigError(f"setting {old} is the old name of {new}, and both are given: keep {new}")
    section[name] = value


def _section(values: Values, names: Sequence[str]) -> Values | None:
    """The table under these names, if there is one."""
    found: Any = values
    for name in names:
        found = found.get(name)
        if not isinstance(found, dict):
            return None
    section: Values = found
    return section


def _copy(values: Mapping[str, Any]) -> Values:
    return {
        key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
