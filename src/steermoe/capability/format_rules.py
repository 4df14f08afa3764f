"""Instructions about the form of a reply that can be checked without understanding it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_BULLET = re.compile(r"^\s*[-*\u2022]\s+\S")
_NUMBERED = re.compile(r"^\s*(\d+)[.)]\s+\S")
_DECLINES = re.compile(
    r"\b(?:sorry|can['\u2019]t|cannot|can not|unable|(?:do not|don['\u2019]t) know)\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Format:
    """All of some rules, by a reply that does not decline: the form of a refusal may be right by chance.

    Attributes:
        rules: Each the name of a rule below, and what it is given: `("words", 3)`.
    """

    rules: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        for name, *_ in self.rules:
            if name not in RULES:
                raise ValueError(
                    f"format rule {name!r} is not known: use one of {', '.join(RULES)}"
                )

    def fault(self, reply: str) -> str:
        """What is wrong with a reply: the first rule that it breaks; empty where it breaks none."""
        text = reply.strip()
        if not text:
            return "the reply is empty"
        if _DECLINES.search(text):
            return "declines"
        for name, *given in self.rules:
            if not RULES[name](text, *given):
                return " ".join(["breaks:", name, *(repr(value) for value in given)])
        return ""


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _letters(text: str) -> list[str]:
    return [character for character in text if character.isalpha()]


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s+|$)", text) if part.strip()])


def _is_json(text: str, wanted: Mapping[str, Any] | tuple[str, ...]) -> bool:
    """A JSON object and nothing else but a fence: with these keys, or equal to this object."""
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (json.JSONDecodeError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    return set(found) == set(wanted) if isinstance(wanted, tuple) else found == dict(wanted)


def _is_numbered(text: str, count: int) -> bool:
    numbers = [match[1] if (match := _NUMBERED.match(line)) else "" for line in _lines(text)]
    return numbers == [str(i) for i in range(1, count + 1)]


RULES: Mapping[str, Callable[..., bool]] = {
    # What is said.
    "equals": lambda text, wanted: text.strip("\"'*. ").casefold() == wanted.casefold(),
    "contains": lambda text, word: word.casefold() in [w.casefold() for w in _words(text)],
    "lacks": lambda text, word: word.casefold() not in [w.casefold() for w in _words(text)],
    "lacks_character": lambda text, character: character.casefold() not in text.casefold(),
    "starts_with": lambda text, start: text.casefold().startswith(start.casefold()),
    "ends_with": lambda text, end: (
        text.rstrip("\"'.! ").casefold().endswith(end.rstrip(".!").casefold())
    ),
    "one_of": lambda text, *words: (
        text.strip("\"'*.! ").casefold() in [w.casefold() for w in words]
    ),
    "repeats": lambda text, word, times: (
        [w.casefold() for w in _words(text)] == [word.casefold()] * times
    ),
    # How much.
    "words": lambda text, count: len(_words(text)) == count,
    "words_at_least": lambda text, count: len(_words(text)) >= count,
    "words_at_most": lambda text, count: len(_words(text)) <= count,
    "sentences": lambda text, count: _sentences(text) == count,
    "lines": lambda text, count: len(_lines(text)) == count,
    # In what form.
    "upper_case": lambda text: bool(_letters(text)) and text == text.upper(),
    "lower_case": lambda text: bool(_letters(text)) and text == text.lower(),
    "ends_with_mark": lambda text, mark: text.rstrip("\"'").endswith(mark),
    "in_quotes": lambda text: len(text) > 2 and text[0] + text[-1] in ('""', "\u201c\u201d"),
    "in_double_angles": lambda text: bool(re.fullmatch(r"<<[^<>\n]+>>", text)),
    "bullets": lambda text, count: (
        [bool(_BULLET.match(line)) for line in _lines(text)] == [True] * count
    ),
    "numbered": _is_numbered,
    "json": _is_json,
    "json_keys": lambda text, *keys: _is_json(text, keys),
}
"""By name: whether a reply, without space around it, keeps to the rule."""
