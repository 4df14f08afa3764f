"""All prompt files of a run as one set: labels completed, ids and pairs kept apart, doubts said."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from steermoe.errors import PromptError
from steermoe.prompts.doubts import doubts_about
from steermoe.prompts.formats import ReadPrompts, read_prompts
from steermoe.prompts.layouts import PromptFormat
from steermoe.prompts.sources import BUILTIN_STARTER, parse_source
from steermoe.records import Label, Prompt


def resolve_prompts(
    sources: Sequence[str | Path],
    *,
    format: PromptFormat | str | None = None,
    include_failed: bool = False,
    complete: bool = True,
) -> ReadPrompts:
    """Read all prompt files of a run, and see to it that every label has prompts.

    Ids that several files use get the file's name in front; so do pair ids, unless the files hold one side
    of the pairs each. Where no file has benign prompts, those of `builtin:starter` are added. Where
    no file has safe ones, the same is done only if all files are known, or said, to hold harmful requests;
    anything else is taken for a mistake. All of it is noted, and so is what is doubtful in the whole.

    Args:
        sources: Paths, with what `sources` describes around them, or `builtin:starter`.
        format: Overrides the layout found from the content, for every file.
        include_failed: Keep jailbreaks whose success field says that they failed.
        complete: Whether there must be prompts of every label; without it nothing is added, and none is missed.

    Raises:
        PromptError: A file or row cannot be read, is given twice, or a label has no prompts.
        ConfigError: There is no such format.
    """
    check_no_repeat(sources)
    parts = [read_prompts(source, format, include_failed=include_failed) for source in sources]
    return combined(parts, [str(source) for source in sources], complete)


def check_no_repeat(sources: Sequence[str | Path]) -> None:
    """Refuse a file that is given twice, by whatever path, to be read in the same way.

    Raises:
        PromptError: There is such a file, or none at all.
    """
    if not sources:
        raise PromptError(f"no prompt file is given; name one, or {BUILTIN_STARTER}")
    seen = set()
    for source in sources:
        declaration = parse_source(source)
        file = declaration.place, declaration.how
        if file in seen:
            raise PromptError(f"{source} is given twice; name every prompt file once")
        seen.add(file)


def combined(
    parts: Sequence[ReadPrompts], files: Sequence[str], complete: bool = True
) -> ReadPrompts:
    """The prompts of all files as those of one run.

    Args:
        parts: What each file holds.
        files: What the user wrote for each.
        complete: Whether there must be prompts of every label.

    Raises:
        PromptError: A label has no prompts, or an id is used twice in one file.
    """
    completed, notes = _completed_from_starter(parts, files) if complete else ([], [])
    names = _distinct_names([part.prompts[0].source for part in parts], files)
    groups = [
        [dataclasses.replace(prompt, source=name) for prompt in part.prompts]
        for part, name in zip(parts, names, strict=True)
    ]
    groups = _with_known_goals(groups, [part.format for part in parts])
    prompts = _with_unique_ids(_with_separate_pairs([*groups, completed]))
    formats = {part.format for part in parts}
    return ReadPrompts(
        tuple(prompts),
        (*(note for part in parts for note in part.notes), *notes, *doubts_about(prompts)),
        formats.pop() if len(formats) == 1 else None,
        all(part.is_harmful for part in parts),
    )


def _with_known_goals(
    groups: Sequence[list[Prompt]], formats: Sequence[PromptFormat | None]
) -> list[list[Prompt]]:
    """HarmBench's results with the goals of its behaviours, where a file of those is given, too.

    The results name a behaviour by its id alone; a goal and its attacks must not be on two sides of a split.
    """
    goals = {
        prompt.prompt_id.removeprefix("harmbench-").replace("_", " "): prompt.goal
        for group, format in zip(groups, formats, strict=True)
        if format is PromptFormat.HARMBENCH
        for prompt in group
    }
    return [
        [dataclasses.replace(p, goal=goals.get(p.goal, p.goal)) for p in group]
        if format is PromptFormat.HARMBENCH_RESULTS
        else group
        for group, format in zip(groups, formats, strict=True)
    ]


def _completed_from_starter(
    parts: Sequence[ReadPrompts], files: Sequence[str]
) -> tuple[list[Prompt], list[str]]:
    """Built-in prompts for the labels that no file has, and what to say about it."""
    present = {prompt.label for part in parts for prompt in part.prompts}
    is_harmful = all(part.is_harmful for part in parts)
    places = ", ".join(files)
    added: list[Prompt] = []
    notes: list[str] = []
    for label in Label:
        if label in present:
            continue
        if label is Label.UNSAFE or (label is Label.SAFE and not is_harmful):
            raise PromptError(
                f"{places}: no prompt is labelled {label}; add {label} rows, or a file that has some "
                f"({BUILTIN_STARTER} has)"
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
