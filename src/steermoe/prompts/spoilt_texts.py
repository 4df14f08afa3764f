"""Prompts that can be read, and whose texts look as if something had happened to them on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steermoe.prompts.rows import counted
from steermoe.records import Prompt

_FEWEST_ACCENTED = 4


@dataclass(frozen=True, slots=True)
class Sign:
    """What a text may show.

    Attributes:
        words: What is said of the texts that show it.
        is_in: Whether a text does.
        least_share: From which share of a file's prompts on it is said.
    """

    words: str
    is_in: Callable[[str], bool]
    least_share: float = 0.0


def _matching(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.DOTALL | re.MULTILINE)
    return lambda text: compiled.search(text) is not None


_MARKS = _matching(
    # <|user|>, the same with bars of full width, <|turn> and <turn|>
    r"<[|\uff5c]/?[A-Za-z][\w \u2581/.:-]{0,40}[|\uff5c]?>|<[A-Za-z]\w{0,40}[|\uff5c]>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|gMASK)\]|<</?SYS>>|\]~!?b\[?\]?"
    r"|<(?:start|end)_of_\w+>|<(?:bos|eos|sop|pad)>|<(?:extra_id|SPECIAL)_\d+>|</?think>"
)


def _holds_marks(text: str) -> bool:
    """Whether a text holds what a chat template writes around turns; `<s>` alone strikes a text out in HTML."""
    begins, ends = text.lstrip().startswith("<s>"), "</s>" in text
    return _MARKS(text) or (begins and not ends) or (ends and ("<s>" not in text or begins))


def _is_mostly_accented(text: str) -> bool:
    """Whether far more letters are of the upper half of Latin-1 than are plain ones, and not just a few."""
    letters = [letter for letter in text if letter.isalpha()]
    high = sum("\x80" <= letter <= "\xff" for letter in letters)
    plain = sum(map(str.isascii, letters))
    return high >= _FEWEST_ACCENTED and high > 2 * plain


SIGNS = (
    Sign(
        "hold marks of a chat template, and the model's own template is put around them",
        _holds_marks,
    ),
    Sign(
        "hold turns written out as text (Human: ... Assistant:), which are one user turn here",
        _matching(
            r"(?<!\S)(?:Human|User|USER)\s*:\s.*(?<!\S)(?:Assistant|ASSISTANT|AI)\s*:"
            r"|^###? ?(?:Human|User|Instruction|Input)s?\b.*^###? ?(?:Assistant|Response|Output)\b"
            r"|(?:\u7528\u6237|\u7528\u6236)[:\uff1a].*\u52a9\u624b[:\uff1a]"  # the same in Chinese
        ),
    ),
    Sign(
        "hold a name in braces, as {topic}: is it to be filled in?",
        _matching(r"\{[A-Za-z_]\w{0,30}\}"),
    ),
    Sign(
        "hold a backslash and an n where a new line may be meant",
        lambda text: "\n" not in text and re.search(r"[.?!;,]\\n|\\n\\n", text) is not None,
    ),
    Sign(
        "hold marks of HTML, as &quot; or <br>",
        _matching(r"&(?:quot|amp|lt|gt|nbsp|#\d+|#x[0-9A-Fa-f]+);|<br ?/?>"),
    ),
    Sign(
        "hold UTF-8 that was once read in another encoding, as Ã© for é",
        _matching("[ÂÃ][\x80-\xbf]|â€"),
    ),
    Sign(
        "hold hardly any letter without an accent: read in an encoding that is not theirs, as ÖÐÎÄ for 中文?",
        _is_mostly_accented,
    ),
    Sign("hold the mark that stands for a lost character", lambda text: "\ufffd" in text),
    Sign(
        "begin with an apostrophe that keeps a spreadsheet from computing a cell",
        _matching(r"\A'[=+\-@]"),
    ),
    Sign(
        "begin with a number or a bullet, as lines of a list do",
        _matching(r"\A\s*(?:\d{1,4}[.)]|[-*•])\s"),
        least_share=0.75,
    ),
    Sign("begin with #, as a comment does", _matching(r"\A#+ ")),
)


def signs_in(prompts: Sequence[Prompt]) -> list[str]:
    """One note for each sign that the last user turns of a file's prompts show.

    Args:
        prompts: Of one file.
    """
    texts = [prompt.messages[-1]["content"] for prompt in prompts]
    notes = []
    for sign in SIGNS:
        number = sum(map(sign.is_in, texts))
        if number and number >= sign.least_share * len(texts):
            words = sign.words if number > 1 else _of_one(sign.words)
            notes.append(f"{counted(number, 'prompt')} of {prompts[0].source} {words}")
    return notes


def _of_one(words: str) -> str:
    """`hold marks` as `holds marks`."""
    verb, _, rest = words.partition(" ")
    return f"{verb}s {rest}"
