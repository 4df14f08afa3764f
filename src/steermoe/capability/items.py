"""The items of `builtin:capability`: a chat turn each, and how its answer is scored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from steermoe.capability.checks import Check, check_of
from steermoe.errors import PromptError
from steermoe.records import Message

BUILTIN_CAPABILITY = "builtin:capability"
"""Names the items that ship with the package."""

CHOICE = "choice"
"""Scored by likelihood: the answer must be the likeliest option, per byte."""

EXACT = "exact"
"""Scored by a check of the generated reply."""


@dataclass(frozen=True, slots=True)
class Item:
    """One task with one right answer, or with an answer whose form can be checked.

    Attributes:
        item_id: Unique within a set.
        category: What it is about: `arithmetic`, `facts` ...
        prompt: The user's turn.
        answer: The right option of a choice; of an exact item, a reply that passes its check.
        options: The options of a choice, the right one among them; empty for an exact item.
        opening: How the reply begins that the options of a choice go on with; they follow after a space.
        check: What a reply to an exact item must hold; None for a choice.
        max_tokens: Most tokens of a reply to an exact item.
    """

    item_id: str
    category: str
    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    opening: str = ""
    check: Check | None = None
    max_tokens: int = 0

    @property
    def scoring(self) -> str:
        """`choice` or `exact`."""
        return EXACT if self.check is not None else CHOICE

    def messages(self, system_prompt: str | None = None) -> tuple[Message, ...]:
        """The conversation: the user's turn, after a system turn if there is one."""
        turns = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        return (*turns, {"role": "user", "content": self.prompt})


@cache
def builtin_items() -> tuple[Item, ...]:
    """The items that ship with the package, in the order of their file."""
    file = resources.files("steermoe.capability") / "data" / "capability.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    return read_items((json.loads(line) for line in lines), BUILTIN_CAPABILITY)


def chosen_items(items: Sequence[Item], limit: int | None) -> tuple[Item, ...]:
    """At most so many items, the same ones in every run, in their order.

    Of each category and way of scoring as large a share as of all: each of these parts is put in the order of a hash
    of the ids and spread evenly over [0, 1], and the lowest items of all parts are taken.
    """
    if limit is None or limit >= len(items):
        return tuple(items)
    parts: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (_hash(item.item_id), item.item_id)):
        parts[item.category, item.scoring].append(item)
    place = {
        item.item_id: ((rank + 0.5) / len(part), item.item_id)
        for part in parts.values()
        for rank, item in enumerate(part)
    }
    kept = set(sorted(place, key=lambda item_id: place[item_id])[:limit])
    return tuple(item for item in items if item.item_id in kept)


def read_items(rows: Iterable[Mapping[str, Any]], source: str) -> tuple[Item, ...]:
    """Items from rows of their file.

    Args:
        rows: As in `capability.jsonl`.
        source: Where they are from, for messages.

    Raises:
        PromptError: A row is no item, or an id is used twice.
    """
    items = tuple(_item(row, f"{source}, row {i}") for i, row in enumerate(rows, start=1))
    if not items:
        raise PromptError(f"{source} holds no item")
    item_id, times = Counter(item.item_id for item in items).most_common(1)[0]
    if times > 1:
        raise PromptError(f"{source}: item_id {item_id!r} is used {times} times; give each its own")
    return items


def _item(row: Mapping[str, Any], place: str) -> Item:
    """One row as an item: what every item has, and then either options or a check."""
    values = dict(row)
    try:
        names = ("item_id", "category", "prompt", "answer")
        item_id, category, prompt, answer = (_text(values.pop(name)) for name in names)
        item = Item(item_id, category, prompt, answer)
        if values.pop("scoring") == CHOICE:
            options = tuple(_text(option) for option in values.pop("options"))
            opening = _text(values.pop("opening"), least=0)
            item = replace(item, options=options, opening=opening)
            if item.answer not in options or len(set(options)) < max(2, len(options)):
                raise ValueError("the answer must be one of at least two different options")
        else:
            check, max_tokens = check_of(values.pop("check")), int(values.pop("max_tokens"))
            item = replace(item, check=check, max_tokens=max_tokens)
            if max_tokens < 1:
                raise ValueError("max_tokens must be at least 1")
        if values:
            raise ValueError(f"{', '.join(sorted(values))} is not known")
    except KeyError as error:
        raise PromptError(f"{place}: {error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:
        raise PromptError(f"{place}: {error}") from None
    return item


def _text(value: object, least: int = 1) -> str:
    if not isinstance(value, str) or len(value.strip()) < least:
        raise ValueError(f"{value!r} is not a text")
    return value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
