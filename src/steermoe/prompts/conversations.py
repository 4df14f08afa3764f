"""Chat turns as people write them, turned into ours: `{"role", "content"}`, the user last.

Prompt files hold turns in many spellings (ShareGPT's `from` and `value`, content in parts, JSON or a Python list in
a CSV cell, the reply still behind the question). What is understood so is counted in a `TurnsTally`, for the file's
notes. Without one, turns must be exactly ours: that is how the Python interface, which has no notes, takes them.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from steermoe.errors import PromptError
from steermoe.prompts.rows import (
    Row,
    checked_text,
    counted,
    is_blank,
    is_missing,
    listed,
    plain_word,
    shown,
    unknown_word,
    user_turn,
)
from steermoe.prompts.strict_json import load_json
from steermoe.records import Message

ROLES = ("system", "user", "assistant")

OTHER_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
}
"""Whose turn it is, in the words of ShareGPT, OpenAssistant, Gemma and OpenAI."""

ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")

_TOOL_KEYS = ("tool_calls", "tool_call_id", "function_call")
_LIST_OF_TURNS = re.compile(r"\s*(?:\[\s*)?\{")
"""A turn by itself, too."""
_NOT_WRITTEN_BACK = re.compile(r"\s*(?:array\(\s*\[|\()\s*\{")
"""Turns as numpy prints them, and a tuple of them."""
_LIST_OF_TEXTS = re.compile(r"\s*\[\s*[\"']")
_TURN_KEY = re.compile(r"""['"](?:role|from)['"]\s*:""")


@dataclass(slots=True)
class TurnsTally:
    """What was done to the turns of a file so that they could be read, counted.

    Attributes:
        cut_replies: Conversations whose last turn was the assistant's and is left out.
        from_json: Conversations that stood as JSON in a text.
        from_python: The same, as Python writes lists.
        joined_parts: Turns whose content came in parts.
        without_role: Conversations of one turn that names no role, and is taken for the user's.
        roles: Turns by the name of their role, where it is not one of ours.
        extra_keys: Turns by a key of theirs that is not read.
    """

    cut_replies: int = 0
    from_json: int = 0
    from_python: int = 0
    joined_parts: int = 0
    without_role: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    extra_keys: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """One line for each kind of thing that was done."""
        notes = []
        if self.cut_replies:
            notes.append(
                f"{counted(self.cut_replies, 'conversation')} ended with the assistant's turn, which is cut off: the "
                "reply is the model's to give"
            )
        if self.from_json:
            notes.append(f"{counted(self.from_json, 'cell')} held turns as JSON, and are read so")
        if self.from_python:
            notes.append(
                f"{counted(self.from_python, 'cell')} held turns as a Python list, and are read so"
            )
        if self.joined_parts:
            notes.append(f"the text parts of {counted(self.joined_parts, 'message')} are joined")
        if self.without_role:
            notes.append(
                f"{counted(self.without_role, 'conversation')} of one turn without a role, read as the user's"
            )
        for name, number in sorted(self.roles.items()):
            role = OTHER_ROLES.get(plain_word(name), plain_word(name))
            notes.append(f"role {shown(name)} is read as {role} ({counted(number, 'message')})")
        if self.extra_keys:
            notes.append(f"not read in messages: {listed(sorted(self.extra_keys))}")
        return notes


def read_conversation(row: Row, name: str, tally: TurnsTally) -> tuple[Message, ...]:
    """The turns of a field that must be there; a text is the only user turn.

    Raises:
        PromptError: They are malformed; the message names file, row and field.
    """
    value = row.value(name)
    if is_missing(value):
        raise row.error(name, "is missing; every row needs it")
    try:
        return parse_conversation(value, tally)
    except PromptError as error:
        raise row.error(name, str(error)) from None


def read_turns(row: Row, name: str, tally: TurnsTally) -> tuple[Message, ...]:
    """The turns of a field that must hold a list of them, which a CSV file holds as JSON text.

    Raises:
        PromptError: It holds anything else; the message names file, row and field.
    """
    value = row.value(name)
    if not isinstance(value, str):
        return read_conversation(row, name, tally)
    try:
        turns = turns_in_text(value, tally)
        if turns is None:
            raise PromptError("must be a list of {role, content}, in CSV as JSON text")
        return parse_conversation(turns, tally)
    except PromptError as error:
        raise row.error(name, str(error)) from None


def parse_conversation(value: object, tally: TurnsTally | None = None) -> tuple[Message, ...]:
    """Chat messages from text or from a list of messages.

    A system message may come first; then user and assistant take turns, and the user has the last word,
    since the reply is the model's to give.

    Args:
        value: The text or the messages.
        tally: Counts what had to be understood; without one, only messages of `role` and `content` are taken.

    Raises:
        PromptError: It is none of that. The message names no place: the caller knows it.
    """
    if isinstance(value, str):
        turns = turns_in_text(value, tally) if tally is not None else None
        if turns is None:
            return user_turn(checked_text(value))
        value = turns
    if not isinstance(value, list | tuple):
        raise PromptError(f"must be text or a list of messages, not {shown(value)}")
    if not value:
        raise PromptError("is an empty list; a user message is needed")
    items = list(value)
    if tally is not None and (alone := _said_alone(items)) is not None:
        tally.without_role += 1
        return user_turn(checked_text(alone))
    if tally is not None and len(items) > 1 and _is_assistants(items[-1]):
        items.pop()
        tally.cut_replies += 1
    messages = tuple(_message(item, position, tally) for position, item in enumerate(items, 1))
    _check_turns([message["role"] for message in messages])
    return messages


def _said_alone(items: list[object]) -> object | None:
    """What the one turn of a list says that names no role: a text, or a message without one; None if it is no such.

    Raises:
        PromptError: There are several, without the replies between them.
    """
    if not all(isinstance(item, str) for item in items):
        item = items[0]
        if len(items) > 1 or not isinstance(item, Mapping) or _first_key(item, ROLE_KEYS):
            return None
        key = _first_key(item, CONTENT_KEYS)
        return item[key] if key else None
    if len(items) > 1:
        raise PromptError(
            f"holds {len(items)} texts without roles: where all are the user's, the replies between them are missing; "
            "write turns of role and content"
        )
    return items[0]


def turns_in_text(text: str, tally: TurnsTally) -> list[Mapping[str, object]] | None:
    """The list of messages that a text spells out; None where it is a text like any other.

    Raises:
        PromptError: It seems to be such a list, and cannot be read.
    """
    if _LIST_OF_TEXTS.match(text):
        _check_no_list_of_texts(text)
    if _NOT_WRITTEN_BACK.match(text) and _TURN_KEY.search(text[:200]):
        raise PromptError(
            "seems to hold chat turns as numpy or a tuple is printed, which cannot be read back; save the file as JSONL"
        )
    if not _LIST_OF_TURNS.match(text):
        return None
    try:
        found = _listed(load_json(text))
        if not looks_like_turns(found):
            return None
        tally.from_json += 1
        return found
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of escapes that Python does not know
            found = _listed(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        if text.lstrip().startswith("[") and _TURN_KEY.search(text[:200]):
            raise PromptError(
                "seems to hold chat turns, but is neither JSON nor a Python list; save the file as JSONL"
            ) from None
        return None
    if not looks_like_turns(found):
        return None
    tally.from_python += 1
    return found


def _listed(found: object) -> object:
    """A turn by itself as the only one of a list, if it says something; anything else as it is."""
    is_turn = isinstance(found, Mapping) and any(key in found for key in CONTENT_KEYS)
    return [found] if is_turn else found


def _check_no_list_of_texts(text: str) -> None:
    """Refuse a cell that a program wrote a list of texts into.

    Raises:
        PromptError: It is one.
    """
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        raise PromptError(
            f"holds a list of {counted(len(found), 'text')} and not one text; write the prompt alone, or turns of role "
            "and content"
        )


def looks_like_turns(value: object) -> TypeGuard[list[Mapping[str, object]]]:
    """Whether this is a list of things that have a role, as chat messages have."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, Mapping) and any(key in item for key in ROLE_KEYS) for item in value
        )
    )


def _is_assistants(item: object) -> bool:
    if not isinstance(item, Mapping):
        return False
    key = _first_key(item, ROLE_KEYS)
    if key is None:
        return False
    word = plain_word(item[key])
    return OTHER_ROLES.get(word, word) == "assistant"


def _first_key(item: Mapping[str, object], keys: tuple[str, ...]) -> str | None:
    """The first of some keys that holds anything."""
    return next((key for key in keys if not is_missing(item.get(key))), None)


def _message(item: object, position: int, tally: TurnsTally | None) -> Message:
    where = f"message {position}"
    if not isinstance(item, Mapping):
        raise PromptError(f"{where} must hold role and content, not {shown(item)}")
    role_key = _first_key(item, ROLE_KEYS if tally is not None else ("role",))
    content_key = _first_key(item, CONTENT_KEYS if tally is not None else ("content",))
    if role_key is None or content_key is None:
        raise PromptError(f"{where} has no {'role' if role_key is None else 'content'}")
    for key in item:
        if key not in (role_key, content_key) and not is_missing(item[key]):
            _extra_key(key, item[key], where, tally)
    return {
        "role": _role(item[role_key], where, tally),
        "content": _content(item[content_key], where, tally),
    }


def _extra_key(key: str, value: object, where: str, tally: TurnsTally | None) -> None:
    """Something in a message that is not read: counted, or refused."""
    if tally is None:
        raise PromptError(f"{where} holds {shown(key)}; only role and content are read")
    if is_blank(value) or (isinstance(value, list | Mapping) and not value):
        return
    if key in _TOOL_KEYS:
        raise PromptError(f"{where} holds {shown(key)}; conversations with tools cannot be used")
    tally.extra_keys[str(key)] += 1


def _role(role: object, where: str, tally: TurnsTally | None) -> str:
    if isinstance(role, str) and role in ROLES:
        return role
    word = plain_word(role)
    ours = OTHER_ROLES.get(word, word)
    if tally is None or not isinstance(role, str) or ours not in ROLES:
        raise PromptError(f"role of {where}: {unknown_word(role, ROLES)}")
    tally.roles[role] += 1
    return ours


def _content(content: object, where: str, tally: TurnsTally | None) -> str:
    if isinstance(content, list) and tally is not None:
        content = _joined_parts(content, where)
        tally.joined_parts += 1
    try:
        return checked_text(content)
    except PromptError as error:
        raise PromptError(f"content of {where} {error}") from None


def _joined_parts(parts: list[object], where: str) -> str:
    """The text of content parts, one behind the other as chat templates print them."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text") or not isinstance(text, str):
            raise PromptError(
                f"content of {where} has a part that is no text: {shown(part)}; only text can be used"
            )
        texts.append(text)
    return "".join(texts)


def _check_turns(roles: list[str]) -> None:
    first = 1 if roles[0] == "system" else 0
    for position, role in enumerate(roles[first:]):
        expected = "assistant" if position % 2 else "user"
        if role != expected:
            raise PromptError(
                f"message {first + position + 1} is from {role!r} where {expected!r} is due; "
                "a system message may only come first, then user and assistant take turns"
            )
    if roles[-1] != "user":
        raise PromptError(f"the last message is from {roles[-1]!r}; it must be from 'user'")
