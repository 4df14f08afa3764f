"""Prompt files that people have: whether each is read as it is meant, or refused in a line that says what to do."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from benchmarks.cases.room import LATE, READ, REFUSED, SILENT, TRACEBACK, Case, Outcome, Room
from steermoe.config import load_config
from steermoe.errors import SteerMoEError
from steermoe.prompts.describe import describe

ALL = {"unsafe": 20, "safe": 20, "benign": 20}
EXPECTED: dict[str, tuple[str, dict[str, int] | str]] = {}
"""Of each file how it came out before, and how many prompts of each label it holds, or what has to be said."""


def _expect(before: str, expected: dict[str, int] | str, *names: str) -> None:
    EXPECTED.update(dict.fromkeys(names, (before, expected)))


def file_cases(folder: Path) -> list[Case]:
    """A case for each prompt file of a folder; those that are not known are read or refused, whatever is in them."""
    skipped = {".md", ".jinja"}
    return [
        Case(path.name, "prompt file", EXPECTED.get(path.name, (READ, ""))[0], partial(_read, path))
        for path in sorted(folder.iterdir())
        if path.suffix not in skipped and "generation_config" not in path.name
    ]


def _read(path: Path, room: Room) -> Outcome:
    expected = EXPECTED.get(path.name, (READ, ""))[1]
    try:
        found = describe(load_config(overrides={"prompts": {"sources": [str(path)]}}))
    except SteerMoEError as error:
        return _refusal(str(error), expected)
    except Exception as error:
        return Outcome(TRACEBACK, f"{type(error).__name__}: {error}")
    if found.problem is not None:
        return _refusal(str(found.problem), expected)
    counts = Counter(str(p.label) for p in found.prompts if p.source == path.name)
    if isinstance(expected, str) and expected:
        said = [line for line in found.lines if expected in line]
        return Outcome(READ, said[0]) if said else Outcome(SILENT, f"nothing says {expected!r}")
    if expected and dict(counts) != expected:
        return Outcome(SILENT, f"read as {dict(counts)}")
    return Outcome(READ, ", ".join(f"{n} {label}" for label, n in sorted(counts.items())))


def _refusal(message: str, expected: dict[str, int] | str) -> Outcome:
    if "\n" in message or (isinstance(expected, str) and expected and expected not in message):
        return Outcome(LATE, message)
    return Outcome(REFUSED, message)
