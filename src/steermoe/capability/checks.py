"""What a generated reply is checked for: pure functions of its text, which say what is wrong with it.

A check reads only the reply. What it cannot read is wrong, with the reason kept; nothing is guessed. It forgives what
has nothing to do with the answer: bold marks, quotation marks, a full stop, a lead-in such as "The answer is".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from steermoe.capability.code_checks import Expression, Function
from steermoe.capability.format_rules import Format

SHOWN = 60
"""Characters of a reply that a reason shows."""


class Check(Protocol):
    """What a reply must hold."""

    def fault(self, reply: str) -> str:
        """What is wrong with a reply; empty where nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """The reply's number: that after its last "answer is", else the last one of the first line that has one.

    So "12", "7 + 5 = 12." and "The answer is **12**." say 12. Thousands may be separated by commas.

    Attributes:
        value: The right number.
    """

    value: float

    def fault(self, reply: str) -> str:
        """What is wrong with a reply; empty where nothing is."""
        found = _final_number(_plain(reply))
        if found is None:
            return f"no number in {shown(reply)}"
        return "" if found == self.value else f"says {found:g}, not {self.value:g}"


@dataclass(frozen=True, slots=True)
class Words:
    """A short answer: the first line says one of the accepted texts and nothing else but a frame around it.

    "Paris", "The answer is Paris.", "The capital of France is Paris." and "Paris is the capital of France." all say
    Paris; "It is not Paris" and "Paris or Lyon" do not. Case does not count.

    Attributes:
        accepted: What may be said.
    """

    accepted: tuple[str, ...]

    def fault(self, reply: str) -> str:
        """What is wrong with a reply; empty where nothing is."""
        line = _first_line(_plain(reply))
        if not line:
            return "the reply is empty"
        said = _bare(line)
        for text in self.accepted:
            wanted = _bare(text)
            framed = rf"{_FRAME}{re.escape(wanted)}"
            if re.search(rf"^{framed}$|(?:\b{_IS}|[:=])\s*{framed}$", said):
                return ""
            if re.search(rf"^{framed}[\"'`]* (?:is|are|was|were)\b(?! (?:not|wrong))", said):
                return ""
        return f"says {shown(line)}, not {self.accepted[0]!r}"


@dataclass(frozen=True, slots=True)
class Sequenced:
    """Words, numbers or letters in their order, and no others.

    They may be separated by commas, hyphens, spaces or lines, numbered or behind bullets, and follow a colon.

    Attributes:
        values: The right order.
    """

    values: tuple[str, ...]

    def fault(self, reply: str) -> str:
        """What is wrong with a reply; empty where nothing is."""
        wanted = [value.casefold() for value in self.values]
        text = _plain(reply).casefold()
        lines = [line for line in text.splitlines() if line.strip()]
        # In all lines, or in the first two: what follows may be an explanation. With a lead-in, or without one.
        for part in (text, *lines[:2]):
            if wanted in (_parts(part), *(_parts(tail) for tail in _LIST_BEGINS.split(part)[1:])):
                return ""
        return f"says {shown(reply)}, not {', '.join(self.values)}"


_KINDS: Mapping[str, type[Any]] = {
    "number": Number,
    "words": Words,
    "sequence": Sequenced,
    "format": Format,
    "expression": Expression,
    "function": Function,
}


def check_of(stored: Mapping[str, Any]) -> Check:
    """The check that a row of the items' file describes: its kind, and the attributes of that kind.

    Raises:
        ValueError: There is no such kind, or its attributes are others.
    """
    given = dict(stored)
    kind = given.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"check.kind {kind!r} is not known: use one of {', '.join(_KINDS)}")
    try:
        made: Check = _KINDS[kind](**{name: _frozen(value) for name, value in given.items()})
    except TypeError as error:
        raise ValueError(f"check {kind}: {error}") from None
    return made


def shown(text: str) -> str:
    """The beginning of a text, on one line, in quotation marks."""
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}...")


_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|\.\d)")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is|\s*[:=])\s*", re.IGNORECASE)
_LEAD_IN = re.compile(
    r"^(?:(?:the |my )?(?:final |correct |right )?answer(?: is|:)|it(?:'s| is)|sure[,!.])\s*"
)
_IS = r"(?:is|are|was|were)(?: (?:called|named))?\b:?"
_FRAME = r"[\"'`(\[]*(?:(?:the|an?) )?(?:(?:letter|word|number|city|city of|month of) )?[\"'`(\[]*"
_LIST_BEGINS = re.compile(r":|\b(?:is|are)\b")
_MARKS = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2212": "-"})
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+")


def _plain(reply: str) -> str:
    r"""A reply without the marks of Markdown and LaTeX: `**12**`, `\boxed{12}` and `$12$` are 12."""
    text = re.sub(r"\\(?:boxed|text|mathrm)\{([^{}]*)\}", r"\1", reply.translate(_MARKS))
    text = re.sub(r"^\s*```\w*\s*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\*\*|__|[$`]|\\[()\[\]]", "", text).strip()


def _final_number(text: str) -> float | None:
    *_, after = _ANSWER_IS.split(text)
    if after != text and (number := _NUMBER.match(after)):
        return _value(number[0])
    for line in text.splitlines():
        if numbers := _NUMBER.findall(line):
            return _value(numbers[-1])
    return None


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("\u2212", "-"))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _bare(text: str) -> str:
    """A short answer without case, quotation marks around it, a lead-in or punctuation at its end."""
    said = _LEAD_IN.sub("", " ".join(text.casefold().split()))
    return said.strip("\"' ").rstrip(".!,;:").strip("\"' ")


def _parts(text: str) -> list[str]:
    """What a list names, without numbers of lines, separators and quotation marks."""
    lines = [_BULLET.sub("", line) for line in text.splitlines()]
    words = re.split(r"[\s,;<>]+|(?<=\w)-(?=\w)|\s-\s", " ".join(lines))
    return [word for word in (_bare(w) for w in words) if word not in ("", "-", "and", "then")]


def _frozen(value: Any) -> Any:
    """Lists of JSON as tuples, so that checks stay what they are."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_frozen(part) for part in value)
    return value
