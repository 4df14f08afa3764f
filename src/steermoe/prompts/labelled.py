"""Rows with labels: the layout that is ours, and any other that says so much of each prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from steermoe.prompts.conversations import TurnsTally, read_conversation, read_turns
from steermoe.prompts.labels import read_labels, read_split
from steermoe.prompts.rows import Reading, Row, Wanted, counted, shown, whole_number
from steermoe.records import JAILBREAK_FORMAT, LOOK_ALIKE, PLAIN_GOAL, Label, Message, Prompt

_RESERVED = {
    LOOK_ALIKE: Label.SAFE,
    PLAIN_GOAL: Label.SAFE,
    JAILBREAK_FORMAT: Label.BENIGN,
}
"""Categories with a meaning, and the label that they have it with."""


def read_rows(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """Rows of `prompt` or `messages`, and `label`; what else `columns.Role` names, if they bring it.

    Without a `goal`, the last user message is the goal. What an instruction is about (`input`) stands below it.
    """
    keys = _own_ids(rows)
    if wanted.label is None:
        labels, notes = read_labels(rows, wanted.words)
    else:
        labels, notes = [wanted.label] * len(rows), []
    tally = TurnsTally()
    prompts = []
    for row, key, label in zip(rows, keys, labels, strict=True):
        messages = _row_messages(row, tally)
        prompts.append(
            Prompt(
                prompt_id=key,
                label=label,
                messages=messages,
                goal=_goal(row) or messages[-1]["content"],
                pair_id=row.identifier("pair_id"),
                category=wanted.category or _word(row, "category"),
                split=read_split(row),
                source=wanted.name,
                style=_word(row, "style"),
            )
        )
    return prompts, [*notes, *tally.notes(), *_notes_on_categories(prompts)]


def _own_ids(rows: Sequence[Row]) -> list[str]:
    """The ids that the rows bring, or names made of their numbers."""
    first_row: dict[str, int] = {}
    for row in rows:
        name = "prompt_id" if row.has("prompt_id") else "id"
        key = row.identifier(name) or f"row-{row.padded_number}"
        if key in first_row:
            raise row.error(name, f"{shown(key)} is already the id of row {first_row[key]}")
        first_row[key] = row.number
    return list(first_row)


def _goal(row: Row) -> str:
    """The goal of a row, where it is not the prompt itself."""
    return "" if row.column("goal") == row.column("prompt") else row.optional_text("goal")


def _word(row: Row, name: str) -> str:
    """A category or a style as it stands, or a number as text."""
    value = whole_number(row.value(name))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else row.optional_text(name)


def _row_messages(row: Row, tally: TurnsTally) -> tuple[Message, ...]:
    if row.has("messages"):
        if row.has("prompt"):
            names = row.column("prompt"), row.column("messages")
            ways_out = " or ".join(f"'{row.source}:ignore={name}'" for name in names)
            raise row.error(
                "prompt", f"is given beside {names[1]!r}; {ways_out} keeps one of the two"
            )
        messages = read_turns(row, "messages", tally)
    else:
        messages = read_conversation(row, "prompt", tally)
    if row.has("input"):
        asked = f"{messages[-1]['content']}\n\n{row.text('input')}"
        messages = (*messages[:-1], {"role": "user", "content": asked})
    if not row.has("system"):
        return messages
    if messages[0]["role"] == "system":
        raise row.error(
            "system", "is given, and the messages bring a system turn; keep one of the two"
        )
    return ({"role": "system", "content": row.text("system")}, *messages)


def _notes_on_categories(prompts: Sequence[Prompt]) -> list[str]:
    """Where a category looks as if it meant something, and does not."""
    notes = [
        f"category {shown(category)} is free text; only {LOOK_ALIKE!r}, {PLAIN_GOAL!r} and {JAILBREAK_FORMAT!r}, "
        "spelt so, have a meaning"
        for category in sorted({p.category for p in prompts if _resembles_reserved(p.category)})
    ]
    idle = Counter(
        (p.category, p.label) for p in prompts if _RESERVED.get(p.category, p.label) is not p.label
    )
    return notes + [
        f"category {category!r} means something of {_RESERVED[category]} prompts only, and is free text in "
        f"{counted(number, f'{label} prompt')}"
        for (category, label), number in sorted(idle.items())
    ]


def _resembles_reserved(category: str) -> bool:
    plain = "".join(letter for letter in category.casefold() if letter.isalpha())
    return category not in _RESERVED and plain in ("lookalike", "plaingoal", "jailbreakformat")
