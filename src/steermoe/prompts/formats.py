"""One prompt file read: its rows found, its layout and its columns understood, its prompts made.

Content decides, never the name or the place of a file. What is left out, or understood where it is not plain, is
returned as notes, for the caller to print; a column is read, named in a note as not read, or refused.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steermoe.errors import ConfigError, PromptError
from steermoe.prompts.attacks import goal_and_attacks, success_fields
from steermoe.prompts.columns import (
    REPLIES,
    Columns,
    Role,
    fields_of,
    find_declared,
    is_empty,
    role_of,
    settle,
)
from steermoe.prompts.containers import parse_rows
from steermoe.prompts.labels import POLARITY, loose, read_labels
from steermoe.prompts.layouts import (
    PLAIN_ROWS,
    Layout,
    PromptFormat,
    find_layout,
    layout_named,
    looks_like_or_bench,
)
from steermoe.prompts.overlooked import (
    check_tells_success,
    check_unread,
    check_whole_conversations,
    hint_of_label,
)
from steermoe.prompts.rows import Row, Wanted, listed, shown, unknown_word
from steermoe.prompts.sources import Declaration, parse_source
from steermoe.records import Label, Prompt

_OF_JUDGES = ("judge", "verdict", "eval", "guard", "gpt", "llm", "pred", "reply", "response")
"""Parts of names of labels that somebody gave to a reply."""
_ANYWHERE = (Role.SPLIT, Role.SUCCESS)
"""Columns that the user may name without saying that the file holds plain rows."""


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """What prompt files held.

    Attributes:
        prompts: In the order of the files and their rows; ids are unique.
        notes: One line each, to be printed: how files were read, what was left out or completed.
        format: The layout of the file; None when several files differ in it.
        is_harmful: The file is known, or said, to hold harmful requests only.
    """

    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()
    format: PromptFormat | None = None
    is_harmful: bool = False


def read_prompts(
    source: str | Path,
    format: PromptFormat | str | None = None,
    *,
    include_failed: bool = False,
) -> ReadPrompts:
    """Read one prompt file.

    Args:
        source: A path, with what `sources` describes around it, or `builtin:starter`.
        format: Overrides the layout found from the content. The built-in prompts keep their own.
        include_failed: Keep jailbreaks whose success field says that they failed.

    Returns:
        The prompts as the file has them: no split is assigned and nothing is completed.

    Raises:
        PromptError: The file cannot be read, or a row is malformed; the message names file, row and field.
        ConfigError: There is no such format.
    """
    declaration = parse_source(source)
    named = _known_format(declaration.format or format)
    if declaration.is_builtin:
        named = PromptFormat.ROWS
    declaration = dataclasses.replace(declaration, format=named)
    rows, notes = parse_rows(declaration.read_bytes(), declaration.path, declaration)
    layout = _layout(rows, declaration, named)
    _check_declared(layout, declaration)
    columns = _columns(rows, layout, declaration)
    kept = set(columns.read)
    # What is not read is not there: the notes say what was read because nothing else can be.
    rows = [
        Row(row.source, row.number, {k: v for k, v in row.values.items() if k in kept}, columns.of)
        for row in rows
    ]
    wanted = Wanted(
        declaration.name,
        declaration.label,
        declaration.category,
        declaration.words,
        include_failed,
    )
    prompts, more = layout.read(rows, wanted)
    _check_one_kind(prompts, layout, declaration)
    said = [f"{_counted(prompts)}, read as {layout.format}", *notes]
    said += more if declaration.is_builtin else [*columns.notes(), *more]
    return ReadPrompts(
        tuple(prompts),
        tuple(f"{source}: {note}" for note in said),
        layout.format,
        layout.is_harmful or declaration.label is Label.UNSAFE,
    )


def _known_format(format: PromptFormat | str | None) -> PromptFormat | None:
    if format is None:
        return None
    names = [member.value for member in PromptFormat]
    if format not in names:
        raise ConfigError(f"prompts.format: {unknown_word(str(format), names)}")
    return PromptFormat(format)


def _counted(prompts: Iterable[Prompt]) -> str:
    counts = Counter(prompt.label for prompt in prompts)
    parts = [f"{counts[label]} {label}" for label in Label if counts[label]]
    return f"{', '.join(parts)} {'prompt' if sum(counts.values()) == 1 else 'prompts'}"


def _layout(rows: Sequence[Row], declaration: Declaration, named: PromptFormat | None) -> Layout:
    if named is not None:
        return layout_named(named)
    if set(declaration.columns) - set(_ANYWHERE):
        return PLAIN_ROWS
    return find_layout(fields_of(rows), rows)


def _check_declared(layout: Layout, declaration: Declaration) -> None:
    """Refuse what the user says where it would be void, and ask for what is needed."""
    path = declaration.path
    if layout.asks and declaration.label is None:
        raise PromptError(
            f"{path} looks like {layout.title}, {layout.asks}; say what its prompts are: 'unsafe:{path}' (or 'safe:' "
            "or 'benign:') reads it"
        )
    is_attack = layout.format in (PromptFormat.JAILBREAK, PromptFormat.HARMBENCH_RESULTS)
    has_own = layout is not PLAIN_ROWS and not layout.asks
    given = {
        "category": has_own and bool(declaration.category),
        "words": has_own and bool(declaration.words),
        "success": not is_attack and Role.SUCCESS in declaration.columns,
    }
    void = [name for name, is_void in given.items() if is_void]
    if void:
        raise PromptError(
            f"{path} is read as {layout.title}, where {void[0]} cannot be given; leave it away, or name another "
            "format"
        )


def _check_one_kind(prompts: Sequence[Prompt], layout: Layout, declaration: Declaration) -> None:
    """Refuse a label of the user's that a file contradicts."""
    label = declaration.label
    others = sorted({prompt.label.value for prompt in prompts if prompt.label is not label})
    if label is not None and others:
        path = declaration.path
        raise PromptError(
            f"{path} is read as {layout.title}, which holds {' and '.join(others)} prompts, not {label} ones alone; "
            f"leave the label away, or read it as plain rows: '{label}:{path}:format=rows'"
        )


def _columns(rows: Sequence[Row], layout: Layout, declaration: Declaration) -> Columns:
    """Which columns are read, and a refusal of any that must not be overlooked.

    Raises:
        PromptError: A column that the user names does not exist, two columns may mean the same, or one seems to
            hold something of ours and is not read.
    """
    fields = fields_of(rows)
    of = find_declared(declaration.path, declaration.columns, fields)
    find_declared(declaration.path, {name: name for name in declaration.ignored}, fields)
    free = [f for f in fields if f not in declaration.ignored and f not in of.values()]
    left: set[str] = set()  # what is known to be nothing of ours, or not to be wanted
    if layout is PLAIN_ROWS:
        chosen, left = _columns_of_rows(rows, free, of, declaration)
        of |= chosen
        read = list(of.values())
    else:
        candidates = [field for field in free if role_of(field, rows) is Role.SPLIT]
        read = [*layout.columns_read(free), *of.values()]
        if Role.SPLIT not in of and (split := settle(Role.SPLIT, rows, candidates)):
            of[Role.SPLIT] = split
            read.append(split)
        left = set(layout.leaves)
    for role in Role:
        if role not in of and role in of.values():
            of[role] = f"no {role}"  # the column of that name is read as something else
    read = [field for field in fields if field in read]
    unread = [field for field in fields if field not in read]
    if declaration.format is None:  # who names the format has decided what is read
        doubtful = [field for field in unread if field in free and field not in left]
        settled = {role for role in Role if role in declaration.columns}
        if declaration.label is not None:
            settled.add(Role.LABEL)
        if settled & {Role.PROMPT, Role.MESSAGES}:
            settled |= {Role.PROMPT, Role.MESSAGES}
        check_whole_conversations(rows, doubtful)
        check_unread(rows, doubtful, read, layout.title, settled, declaration.label)
    tells = Role.SUCCESS in of or success_fields(read)
    if layout.format is PromptFormat.JAILBREAK and not tells:
        check_tells_success(rows, [field for field in unread if field in free])
    return Columns(of, tuple(read), tuple(unread))


def _columns_of_rows(
    rows: Sequence[Row], free: Sequence[str], declared: Mapping[str, str], said: Declaration
) -> tuple[dict[str, str], set[str]]:
    """The columns of rows with labels, by our names for them.

    Returns:
        Columns that are read, and those that need no mention but as not read.
    """
    candidates: dict[Role, list[str]] = {role: [] for role in Role}
    for field in free:
        if (role := role_of(field, rows)) is not None:
            candidates[role].append(field)
    if said.label is not None:
        _check_labels_agree(rows, candidates[Role.LABEL], said)
    settled = {role for role in Role if role in declared}
    if settled & {Role.PROMPT, Role.MESSAGES}:
        settled |= {Role.PROMPT, Role.MESSAGES}
    if said.label is not None:
        settled.add(Role.LABEL)
    # Where it has been said what is read for a role, other columns of its kind are not meant.
    left = {field for role in settled for field in candidates[role]}
    chosen: dict[str, str] = {}
    for role in Role:
        if role in settled or role is Role.SUCCESS:
            continue
        of_role = candidates[role]
        if role is Role.PROMPT and candidates[Role.GOAL]:
            # JailbreakBench's behaviours are names of its goals.
            of_role = [field for field in of_role if field not in ("behavior", "behaviour")]
        found = settle(role, rows, of_role)
        if found is not None:
            chosen[role] = found
            left |= set(candidates[role])
    if not {Role.PROMPT, Role.MESSAGES} & {*settled, *chosen}:
        goal = declared.get(Role.GOAL, chosen.get(Role.GOAL))
        if goal is None:
            raise PromptError(_no_prompts(rows, said))
        chosen[Role.PROMPT] = goal
        left |= set(candidates[Role.PROMPT])
    prompt = {**declared, **chosen}.get(Role.PROMPT, "")
    if loose(prompt).startswith("instruction") and "input" in free and Role.ABOUT not in declared:
        chosen[Role.ABOUT] = "input"  # what the instruction is about, as Alpaca has it
    if Role.LABEL not in {*settled, *chosen}:
        raise PromptError(_no_label(rows, said))
    if Role.LABEL in chosen:
        _check_label_is_of_prompts(rows, chosen[Role.LABEL], said)
    return chosen, left


def _check_label_is_of_prompts(rows: Sequence[Row], label: str, said: Declaration) -> None:
    """Refuse `is_safe`, a judge's label and their kind beside a reply or an attack: these may be what is safe."""
    fields = fields_of(rows)
    replies = [
        field for field in fields if loose(field).startswith(REPLIES) and not is_empty(field, rows)
    ]
    is_judged = any(word in loose(label) for word in _OF_JUDGES)
    if is_judged and not replies and (attack := goal_and_attacks(fields)):
        replies = list(attack[1])
    if (is_judged or loose(label) in POLARITY) and replies:
        raise PromptError(
            f"{said.path}: {shown(label)} may be said of {shown(replies[0])} and not of the prompt; "
            f"'{said.path}:label={label}' reads it as the prompt's label, 'unsafe:{said.path}:ignore={label}' gives "
            "all prompts one"
        )


def _check_labels_agree(rows: Sequence[Row], fields: Sequence[str], said: Declaration) -> None:
    """Refuse a label for all rows that the file's own label contradicts."""
    for field in fields:
        filled = [row.with_columns({Role.LABEL: field}) for row in rows]
        try:
            agrees = {label for label in read_labels(filled, {})[0]} <= {said.label}
        except PromptError:
            agrees = False
        if not agrees:
            raise PromptError(
                f"{said.path}: {shown(field)} seems to hold labels, and not {said.label} alone; "
                f"'{said.label}:{said.path}:ignore={field}' takes all rows for {said.label}"
            )


def _no_prompts(rows: Sequence[Row], said: Declaration) -> str:
    return (
        f"{said.path} is in no known format: its fields are {shown(sorted(fields_of(rows)))}; the simplest format has "
        f"'prompt' and 'label', and '{said.path}:column=NAME,label=LABEL' names the column of the prompts"
    )


def _no_label(rows: Sequence[Row], said: Declaration) -> str:
    path = said.path
    if looks_like_or_bench(fields_of(rows), rows):
        return (
            f"{path} looks like OR-Bench, whose files say by their names alone what they hold: 'safe:{path}' reads "
            f"or-bench-80k and or-bench-hard-1k, 'unsafe:{path}' reads or-bench-toxic"
        )
    return (
        f"{path} has no 'label'; add a column that says safe, unsafe or benign in every row, or say what all rows "
        f"are: 'unsafe:{path}' (or 'safe:' or 'benign:'). Its fields are {listed(fields_of(rows))}"
        f"{hint_of_label(rows, fields_of(rows))}"
    )
