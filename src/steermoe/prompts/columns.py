"""What the name of a column means, and which column of a file is read as what.

Nothing in a file is dropped without a word: every column is read, or named as not read, or the file is refused
(`overlooked`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from steermoe.errors import PromptError
from steermoe.prompts.labels import NO, POLARITY, SPLIT_WORDS, YES, fits_label, loose, read_labels
from steermoe.prompts.rows import Row, is_blank, listed, plain_word, shown


class Role(StrEnum):
    """What a column can be to us. The values are the names that rows are asked by."""

    PROMPT = "prompt"
    MESSAGES = "messages"
    LABEL = "label"
    GOAL = "goal"
    SYSTEM = "system"
    PAIR_ID = "pair_id"
    CATEGORY = "category"
    SPLIT = "split"
    STYLE = "style"
    PROMPT_ID = "prompt_id"
    ID = "id"
    SUCCESS = "success"
    ABOUT = "input"


_NAMES: dict[Role, tuple[str, ...]] = {
    Role.PROMPT: (
        "prompt", "prompts", "text", "instruction", "question", "behavior", "behaviour", "request", "query",
        "usermessage", "userinput", "prompttext", "testcase",
    ),
    Role.MESSAGES: ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns"),
    Role.LABEL: ("label", "labels", "class", *POLARITY),
    Role.GOAL: ("goal",),
    Role.SYSTEM: ("system", "systemprompt", "systemmessage", "systemmsg", "systemturn", "sys"),
    Role.PAIR_ID: ("pairid", "pair", "pairidx", "pairindex", "pairno", "pairnum", "pairnumber", "contrastpair"),
    Role.CATEGORY: ("category", "categories"),
    Role.SPLIT: ("split", "set", "subset", "fold", "partition"),
    Role.STYLE: ("style",),
    Role.PROMPT_ID: ("promptid",),
    Role.ID: ("id",),
    Role.SUCCESS: ("success", "jailbroken", "jailbreak", "attacksuccess", "successful", "succeeded"),
}  # fmt: skip
MEANINGS: Mapping[str, Role] = {name: role for role, names in _NAMES.items() for name in names}
"""What a name means, without case, blanks and punctuation."""

_ENDINGS = {
    "prompt": Role.PROMPT,
    "question": Role.PROMPT,
    "instruction": Role.PROMPT,
    "messages": Role.MESSAGES,
    "label": Role.LABEL,
    "split": Role.SPLIT,
    "success": Role.SUCCESS,
    "successful": Role.SUCCESS,
    "jailbroken": Role.SUCCESS,
}
_MAY_MEAN_ANYTHING = frozenset(
    {"class", "set", "subset", "fold", "partition", "jailbreak", "pair", "contrastpair", "sys"}
    | {name for name in POLARITY if not name.startswith("is")}
)
"""Names that are taken for what they may mean only where every value can be that."""

REPLIES = ("response", "completion", "answer", "output", "generation", "reply")
"""Beginnings of names of replies."""

OTHER_KNOWN = frozenset(
    {"target", "completion", "response", "output", "generation", "source"}
    | {"input", "chosen", "rejected", "adversarial", "vanilla"}
)
"""Names that files of prompts have beside ours: they tell a header from a prompt."""

NOUNS = {
    Role.PROMPT: "a prompt",
    Role.MESSAGES: "chat turns",
    Role.LABEL: "a label",
    Role.GOAL: "a goal",
    Role.SYSTEM: "a system turn",
    Role.PAIR_ID: "a pair",
    Role.SPLIT: "a split",
    Role.SUCCESS: "whether an attack succeeded",
    Role.ABOUT: "what a prompt is about",
}
"""How a complaint calls what may not be overlooked. Categories and ids may."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a file are read.

    Attributes:
        of: The file's own name of each of our names, where the two differ.
        read: Fields that are read.
        unread: Fields that are not.
    """

    of: Mapping[str, str]
    read: tuple[str, ...]
    unread: tuple[str, ...]

    def notes(self) -> list[str]:
        """What is read and what is not, one line each."""
        names = {field: name for name, field in self.of.items()}
        read = [
            f"{shown(field)} as {names[field]}"
            if names.get(field, field) != field
            else shown(field)
            for field in self.read
        ]
        notes = [f"columns read: {', '.join(read)}"]
        if self.unread:
            notes.append(f"columns not read: {listed(self.unread, most=40)}")
        return notes


def meaning(field: str) -> Role | None:
    """What a column of that name holds, going by the name alone."""
    name = loose(field)
    if name in MEANINGS:
        return MEANINGS[name]
    if name.startswith((*REPLIES, "model", "num")):  # told of a reply, or counted
        return None
    if name.startswith(("judgesuccess", "jailbrokenby")):
        return Role.SUCCESS
    return next((role for ending, role in _ENDINGS.items() if name.endswith(ending)), None)


def is_known(field: str) -> bool:
    """Whether this may be a column's name, and not the first prompt of a file without names.

    Several words are a name only if they are one of those in full: a prompt, too, may end with "question".
    """
    if loose(field) in MEANINGS or loose(field) in OTHER_KNOWN:
        return True
    return len(field.split()) == 1 and meaning(field) is not None


def role_of(field: str, rows: Sequence[Row]) -> Role | None:
    """What a column holds, going by its name and, where that may mean anything, by its values."""
    role = meaning(field)
    if role is None or loose(field) not in _MAY_MEAN_ANYTHING:
        return role
    values = filled_cells(field, rows)
    if role is Role.SPLIT:
        fits = all(isinstance(value, str) and plain_word(value) in SPLIT_WORDS for value in values)
    elif role is Role.PAIR_ID:
        fits = all(_is_name(value) for value in values)
    elif role is Role.SYSTEM:
        fits = all(isinstance(value, str) and len(value.split()) > 1 for value in values)
    elif role is Role.SUCCESS:
        fits = all(plain_word(value) in (*YES, *NO) for value in values)
    else:
        fits = all(fits_label(field, value) for value in values)
    return role if values and fits else None


def _is_name(value: object) -> bool:
    """Whether a value may name a pair: a number, or a text without blanks."""
    if isinstance(value, str):
        return len(value.split()) == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


def fields_of(rows: Sequence[Row]) -> list[str]:
    """The names of all fields, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def filled_cells(field: str, rows: Sequence[Row]) -> list[object]:
    """What a field holds in the rows in which it holds anything."""
    return [row.values[field] for row in rows if not is_blank(row.values.get(field))]


def is_empty(field: str, rows: Sequence[Row]) -> bool:
    """Whether no row holds anything in that field."""
    return all(is_blank(row.values.get(field)) for row in rows)


def find_declared(
    source: str, wanted: Mapping[str, str], fields: Collection[str]
) -> dict[str, str]:
    """The columns that the user has named, after checking that there are such.

    Raises:
        PromptError: There is no column of that name.
    """
    for field in wanted.values():
        if field not in fields:
            near = difflib.get_close_matches(field, list(fields), n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {listed(fields)}"
            raise PromptError(f"{source} has no column {shown(field)}{hint}")
    return dict(wanted)


def settle(role: Role, rows: Sequence[Row], candidates: Sequence[str]) -> str | None:
    """The one column that is read for a role.

    The one that is called as we call it goes before the others; those must then hold the same, since otherwise
    one of two prompts, or of two labels, would be dropped.

    Args:
        role: What is looked for.
        rows: The rows of the file.
        candidates: Columns that may hold it, in the order of the file.

    Raises:
        PromptError: Two of them hold different things.
    """
    filled = [field for field in candidates if not is_empty(field, rows)] or list(candidates)
    if not filled:
        return None
    first = role.value if role.value in filled else filled[0]
    if role in (Role.CATEGORY, Role.STYLE, Role.ID):
        return first
    for other in filled:
        if other != first and not same_in_every_row(role, rows, first, other):
            raise PromptError(
                f"{rows[0].source}: {shown(first)} and {shown(other)} may both hold {NOUNS.get(role, 'an id')}, and "
                f"differ; '{rows[0].source}:{role}={first}' reads the first and not the second"
            )
    return first


def same_in_every_row(role: Role, rows: Sequence[Row], first: str, other: str) -> bool:
    """Whether two columns say the same in every row."""
    values: Callable[[str], list[object]]
    if role is Role.LABEL:

        def values(field: str) -> list[object]:
            return list(read_labels([row.with_columns({"label": field}) for row in rows], {})[0])

    elif role is Role.SPLIT:

        def values(field: str) -> list[object]:
            return [SPLIT_WORDS.get(plain_word(row.values.get(field))) for row in rows]

    else:

        def values(field: str) -> list[object]:
            return [None if is_blank(v := row.values.get(field)) else v for row in rows]

    try:
        return values(first) == values(other)
    except PromptError:
        return False
