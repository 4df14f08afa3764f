"""Replies in several voices: one that declines and one that complies, as prompts that break a model's rules ask for."""

from __future__ import annotations

import re

_FORMS = tuple(
    re.compile(rf"(?m)^[ \t*\"']*{label}")
    for label in (
        # [GPT]: ..., (Normal Output) ...
        r"[\[(][^\])\n]{1,40}[\])]\**:?",
        # GPT: ...
        r"[^\W\d_][\w.-]{1,20}(?: [\w.-]{1,20}){0,2}\**:",
        # As GPT, ...
        r"As (?:an? )?[A-Z][\w.-]*(?: [\w.-]+){0,4},",
        # One letter or picture that stands for the voice.
        r"[\u0370-\u03ff\u2600-\u27bf\U0001f300-\U0001faff]\ufe0f?:?",
    )
)
"""How a line begins in which another voice speaks."""


def voices_of(answer: str) -> list[tuple[int, str]]:
    """What each voice of an answer says, with the character at which it begins.

    An answer has several voices if it begins with a label, and another of that form, with another name, begins a line
    of it. Fewer than two: the list has the whole answer.
    """
    for form in _FORMS:
        labels = list(form.finditer(answer))
        if not labels or answer[: labels[0].start()].strip():
            continue
        if len({label.group().strip() for label in labels}) > 1:
            ends = [label.start() for label in labels[1:]] + [len(answer)]
            return [
                (label.end(), answer[label.end() : end].strip())
                for label, end in zip(labels, ends, strict=True)
            ]
    return [(0, answer)]
