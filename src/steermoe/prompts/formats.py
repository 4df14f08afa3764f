"""Prompt files of every known layout, read by content: the name and the place of a file mean nothing.

What is left out, completed or decided on the way is returned as notes, for the caller to print.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path

from steermoe.errors import ConfigError, PromptError
from steermoe.prompts import published
from steermoe.prompts.containers import parse_rows
from steermoe.prompts.labelled import read_jailbreaks, read_rows
from steermoe.prompts.rows import Reading, Row, shown, unknown_word
from steermoe.records import Label, Prompt

BUILTIN_STARTER = "builtin:starter"


class PromptFormat(StrEnum):
    """Layouts that prompt files come in."""

    JAILBREAK = "jailbreak"
    ROWS = "rows"
    ADVBENCH = "advbench"
    HARMBENCH = "harmbench"
    JAILBREAKBENCH = "jailbreakbench"
    STRONGREJECT = "strongreject"
    XSTEST = "xstest"


HARMFUL_ONLY = frozenset(
    {
        PromptFormat.ADVBENCH,
        PromptFormat.HARMBENCH,
        PromptFormat.JAILBREAKBENCH,
        PromptFormat.STRONGREJECT,
    }
)
"""Benchmarks that publish no safe side, so its absence is no mistake of the user's."""


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """What prompt files held.

    Attributes:
        prompts: In the order of the files and their rows; ids are unique.
        notes: One line each, to be printed: how files were read, what was left out or completed.
        format: The layout of the file; None when several files differ in it.
    """

    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()
    format: PromptFormat | None = None


_READERS: dict[PromptFormat, Callable[[Sequence[Row], str], Reading]] = {
    PromptFormat.ROWS: read_rows,
    PromptFormat.ADVBENCH: published.read_advbench,
    PromptFormat.HARMBENCH: published.read_harmbench,
    PromptFormat.JAILBREAKBENCH: published.read_jailbreakbench,
    PromptFormat.STRONGREJECT: published.read_strongreject,
    PromptFormat.XSTEST: published.read_xstest,
}


def read_prompts(
    source: str | Path,
    format: PromptFormat | str | None = None,
    *,
    include_failed: bool = False,
) -> ReadPrompts:
    """Read one prompt file.

    Args:
        source: A path, or `builtin:starter`.
        format: Overrides the layout found from the content. The built-in prompts keep their own.
        include_failed: Keep jailbreaks whose success field says that they failed.

    Returns:
        The prompts as the file has them: no split is assigned and nothing is completed.

    Raises:
        PromptError: The file cannot be read, or a row is malformed; the message names file, row and field.
        ConfigError: There is no such format.
    """
    wanted = _known_format(format)
    builtin = str(source).startswith("builtin:")
    rows = parse_rows(builtin_bytes(str(source)) if builtin else _file_bytes(source), str(source))
    found = PromptFormat.ROWS if builtin else wanted or detect_format(rows)
    name = str(source) if builtin else Path(source).name
    if found is PromptFormat.JAILBREAK:
        prompts, notes = read_jailbreaks(rows, name, include_failed)
    else:
        prompts, notes = _READERS[found](rows, name)
    notes = [f"{_counted(prompts)}, read as {found}", *notes]
    return ReadPrompts(tuple(prompts), tuple(f"{source}: {note}" for note in notes), found)


def detect_format(rows: Sequence[Row]) -> PromptFormat:
    """The layout of rows, from the names of their fields (and XSTest's from its types, too).

    Raises:
        PromptError: No known layout has these fields.
    """
    fields = {name for row in rows for name in row.values}
    if "all_prompt" in fields:
        return PromptFormat.JAILBREAK
    if {"prompt", "type"} <= fields and any(map(_has_xstest_type, rows)):
        return PromptFormat.XSTEST
    if fields & {"prompt", "messages"} and "label" in fields:
        return PromptFormat.ROWS
    if "forbidden_prompt" in fields:
        return PromptFormat.STRONGREJECT
    if {"behavior", "semanticcategory"} <= fields or {"behavior", "behaviorid"} <= fields:
        return PromptFormat.HARMBENCH
    if {"goal", "behavior", "category"} <= fields:
        return PromptFormat.JAILBREAKBENCH
    if {"goal", "target"} <= fields:
        return PromptFormat.ADVBENCH
    source = rows[0].source
    if fields & {"prompt", "messages"}:
        raise PromptError(
            f"{source} has no 'label'; add a column that says safe, unsafe or benign in every row"
        )
    raise PromptError(
        f"{source} is in no known format: its fields are {shown(sorted(fields))}; the simplest "
        "format has 'prompt' and 'label'"
    )


def resolve_prompts(
    sources: Sequence[str | Path],
    *,
    format: PromptFormat | str | None = None,
    include_failed: bool = False,
) -> ReadPrompts:
    """Read all prompt files of a run, and see to it that every label has prompts.

    Ids that several files use get the file's name in front; so do pair ids, unless the files hold one side
    of the pairs each. Where no file has benign prompts, those of `builtin:starter` are added. Where
    no file has safe ones, the same is done only if all files are benchmarks that publish no safe side;
    anything else is taken for a mistake. All of it is noted.

    Args:
        sources: Paths, or `builtin:starter`.
        format: Overrides the layout found from the content, for every file.
        include_failed: Keep jailbreaks whose success field says that they failed.

    Raises:
        PromptError: A file or row cannot be read, is given twice, or a label has no prompts.
        ConfigError: There is no such format.
    """
    if not sources:
        raise PromptError(f"no prompt file is given; name one, or {BUILTIN_STARTER}")
    files = [str(source) for source in sources]
    _check_no_repeat(files)
    parts = [read_prompts(file, format, include_failed=include_failed) for file in files]
    completed, notes = _completed_from_starter(parts, files)
    names = _distinct_names([part.prompts[0].source for part in parts], files)
    groups = [
        [dataclasses.replace(prompt, source=name) for prompt in part.prompts]
        for part, name in zip(parts, names, strict=True)
    ]
    prompts = _with_unique_ids(_with_separate_pairs([*groups, completed]))
    formats = {part.format for part in parts}
    return ReadPrompts(
        tuple(prompts),
        (*(note for part in parts for note in part.notes), *notes),
        formats.pop() if len(formats) == 1 else None,
    )


def _known_format(format: PromptFormat | str | None) -> PromptFormat | None:
    if format is None:
        return None
    names = [member.value for member in PromptFormat]
    if format not in names:
        raise ConfigError(f"prompts.format: {unknown_word(str(format), names)}")
    return PromptFormat(format)


def builtin_bytes(source: str) -> bytes:
    """The content of a prompt file that ships with the package.

    Raises:
        PromptError: There is none of that name.
    """
    if source != BUILTIN_STARTER:
        raise PromptError(f"prompts: {unknown_word(source, [BUILTIN_STARTER])}")
    return (resources.files("steermoe.prompts") / "data" / "starter.jsonl").read_bytes()


def _file_bytes(source: str | Path) -> bytes:
    path = Path(source)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PromptError(f"{source} does not exist; check the path of the prompt file") from None
    except IsADirectoryError:
        raise PromptError(f"{source} is a directory; name the prompt file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"{shown(str(source))} cannot be read: {reason}") from None


def _has_xstest_type(row: Row) -> bool:
    kind = row.values.get("type")
    return isinstance(kind, str) and kind in published.XSTEST_TYPES


def _counted(prompts: Iterable[Prompt]) -> str:
    counts = Counter(prompt.label for prompt in prompts)
    parts = [f"{counts[label]} {label}" for label in Label if counts[label]]
    return f"{', '.join(parts)} {'prompt' if sum(counts.values()) == 1 else 'prompts'}"


def _check_no_repeat(files: Sequence[str]) -> None:
    seen = set()
    for file in files:
        place = file if file.startswith("builtin:") else os.path.abspath(file)
        if place in seen:
            raise PromptError(f"{file} is given twice; name every prompt file once")
        seen.add(place)


def _completed_from_starter(
    parts: Sequence[ReadPrompts], files: Sequence[str]
) -> tuple[list[Prompt], list[str]]:
    """Built-in prompts for the labels that no file has, and what to say about it."""
    present = {prompt.label for part in parts for prompt in part.prompts}
    benchmarks_only = all(part.format in HARMFUL_ONLY for part in parts)
    places = ", ".join(files)
    added: list[Prompt] = []
    notes: list[str] = []
    for label in Label:
        if label in present:
            continue
        if label is Label.UNSAFE or (label is Label.SAFE and not benchmarks_only):
            raise PromptError(
                f"{places}: no prompt is labelled {label}; add {label} rows, or a file that has some"
            )
        starter = [p for p in read_prompts(BUILTIN_STARTER).prompts if p.label is label]
        # Their partners stay behind, so these prompts are in no pair.
        added += [dataclasses.replace(prompt, pair_id="") for prompt in starter]
        notes.append(
            f"no {label} prompts in {places}: the {len(starter)} of {BUILTIN_STARTER} are added"
        )
    return added, notes


def _distinct_names(names: Sequence[str], files: Sequence[str]) -> list[str]:
    """File names where they tell the files apart, paths elsewhere."""
    return [
        file if names.count(name) > 1 else name for name, file in zip(names, files, strict=True)
    ]


def _with_separate_pairs(groups: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """All prompts, with pair ids that mean the same pair wherever they are equal.

    A pair id in two files is one pair only if one of them holds the safe and the other the unsafe side.
    """
    sides: dict[str, list[frozenset[Label]]] = defaultdict(list)
    for group in groups:
        in_group: dict[str, set[Label]] = defaultdict(set)
        for prompt in group:
            in_group[prompt.pair_id].add(prompt.label)
        for pair_id, labels in in_group.items():
            sides[pair_id].append(frozenset(labels))
    two_halves = [frozenset({Label.SAFE}), frozenset({Label.UNSAFE})]
    shared = {
        pair_id
        for pair_id, labels in sides.items()
        if pair_id and len(labels) > 1 and sorted(labels, key=min) != two_halves
    }
    return [
        dataclasses.replace(prompt, pair_id=f"{prompt.source}:{prompt.pair_id}")
        if prompt.pair_id in shared
        else prompt
        for group in groups
        for prompt in group
    ]


def _with_unique_ids(prompts: Sequence[Prompt]) -> list[Prompt]:
    counts = Counter(prompt.prompt_id for prompt in prompts)
    unique = [
        dataclasses.replace(prompt, prompt_id=f"{prompt.source}:{prompt.prompt_id}")
        if counts[prompt.prompt_id] > 1
        else prompt
        for prompt in prompts
    ]
    again, times = Counter(prompt.prompt_id for prompt in unique).most_common(1)[0]
    if times > 1:
        raise PromptError(f"prompt_id {again!r} is used {times} times; give every prompt its own")
    return unique
