"""Which part of a reply is meant for the user: the rest is the model's reasoning.

Models mark their reasoning in ways of their own. Where a mark is one token of the tokenizer it is found by its id,
since decoding drops special tokens and text may quote a mark; otherwise it is found in the text.

Three forms are known: a pair of marks around the reasoning (`<think>` ... `</think>` and its kin), the channels of the
harmony format, of which only `final` is for the user, and the headings of Granite 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

PAIRS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|channel>", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)
"""What opens and closes a piece of reasoning. `<|channel>` is Gemma's, not the harmony format's `<|channel|>`."""

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
END, RETURN = "<|end|>", "<|return|>"
_ENDS = (END, RETURN, "<|call|>")
FINAL = "final"

_OPEN = "|".join(re.escape(opening) for opening, _ in PAIRS)
_CLOSE = "|".join(re.escape(closing) for _, closing in PAIRS)
_OPENED_AT_THE_END = re.compile(rf"(?:{_OPEN})\s*$", re.IGNORECASE)
_REASONING_AT_THE_END = re.compile(
    rf"(?:(?P<opening>{_OPEN})\s*(?:thought\s*)?)?(?P<closing>{_CLOSE})?\s*$", re.IGNORECASE
)
_CLOSING = re.compile(_CLOSE, re.IGNORECASE)
_OPENING = re.compile(_OPEN, re.IGNORECASE)
_END_OF_MESSAGE = re.compile("|".join(re.escape(end) for end in (*_ENDS, START)))
_THOUGHT_HEADING = re.compile(r"^\s*here(?: is|'s) my thought process\s*:", re.IGNORECASE)
_RESPONSE_HEADING = re.compile(r"here(?: is|'s) my response\s*:", re.IGNORECASE)
_WRAPPING = re.compile(r"^<(response|answer)>(.*?)(?:</\1>\s*)?$", re.IGNORECASE | re.DOTALL)


class Begun(NamedTuple):
    """What a prompt writes of the reply's reasoning.

    Attributes:
        header: The prompt before it.
        text: It: an opening mark, a piece of reasoning without content, a closing mark, or nothing.
        closing: The mark that has yet to close it; empty where it is closed or nothing was opened.
    """

    header: str
    text: str
    closing: str


def begun_reasoning(prompt: str) -> Begun:
    """What a prompt writes of the reply's reasoning: some templates open it, or open and close it."""
    found = _REASONING_AT_THE_END.search(prompt)
    opening, closing = found.group("opening", "closing") if found else (None, None)
    if found is None or (opening is None and closing is None):
        return Begun(prompt, "", "")
    wanted = "" if closing else closing_of(str(opening))
    return Begun(prompt[: found.start()], found.group(), wanted)


def closing_of(opening: str) -> str:
    """The mark that closes what a mark opened."""
    return next(close for open_, close in PAIRS if open_.lower() == opening.lower())


def after_reasoning(text: str) -> str | None:
    """What follows the last closing mark of a text; None if it has none."""
    closings = list(_CLOSING.finditer(text))
    return text[closings[-1].end() :] if closings else None


def is_one_token(tokenizer: Any, text: str) -> bool:
    """Whether a text is one token of a tokenizer, and not merely read as its unknown one."""
    return _Marks.id_of(tokenizer, text) is not None


class _Channels(NamedTuple):
    """How harmony's channels are found in text: that for the user, and the beginning of any other."""

    final: re.Pattern[str]
    other: re.Pattern[str]


_CHANNEL_OF_TEXT = _Channels(
    re.compile(r"<\|channel\|>\s*final\s*<\|message\|>", re.IGNORECASE),
    re.compile(r"^\s*<\|channel\|>\s*(?:analysis|commentary)(?=\W|[A-Z])"),
)
_CHANNEL_OF_DECODED_TEXT = _Channels(
    re.compile(r"<\|channel\|>\s*final\s*<\|message\|>|assistantfinal", re.IGNORECASE),
    re.compile(r"^\s*(?:<\|channel\|>\s*)?(?:analysis|commentary)(?=\W|[A-Z])"),
)


def answer_of(
    tokenizer: Any,
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    rendered_prompt: str,
) -> str | None:
    """The part of a generated reply that is meant for the user.

    Args:
        tokenizer: The model's.
        prompt_ids: P ids: some templates open the reasoning themselves.
        generated_ids: G ids.
        rendered_prompt: The text of the prompt.

    Returns:
        The reply without its reasoning and special tokens; None if it was cut inside the reasoning.
    """
    marks = _Marks(tokenizer)
    ids = list(generated_ids)
    inside_channel = marks.channel_at_the_end(prompt_ids)
    if inside_channel is not None or marks.channel in ids:
        ids_of_final = marks.final_channel(ids, inside_channel)
        if ids_of_final is None:
            return None
        ids = ids_of_final
    for opening, closing in marks.pairs:
        after = _after_reasoning(ids, opening, closing, marks.ends_with(prompt_ids, opening))
        if after is None:
            return None
        ids = after
    # Marks that are one token have been dealt with, and a text that quotes one is no mark.
    shown_prompt = "" if _last_mark(rendered_prompt) in marks.known else rendered_prompt
    return _by_text(shown_prompt, marks.text(ids), marks.known, _CHANNEL_OF_TEXT)


def final_answer(prompt: str, reply: str) -> str | None:
    """The part of a reply that is meant for the user, by its text alone.

    Args:
        prompt: The text after the chat template: some templates open the reasoning themselves.
        reply: The generated text. Special tokens may be gone from it: harmony's channels are known by their names then.

    Returns:
        The reply without its reasoning; None if it was cut inside the reasoning.
    """
    return _by_text(prompt, reply, (), _CHANNEL_OF_DECODED_TEXT)


def _by_text(
    prompt: str, reply: str, dealt_with: Collection[str], channels: _Channels
) -> str | None:
    """Args: `dealt_with`: marks that are not looked for, as they were found by their token already."""
    skip = {mark.lower() for mark in dealt_with}
    closings = [m for m in _CLOSING.finditer(reply) if m.group().lower() not in skip]
    if closings:
        reply = reply[closings[-1].end() :]
    elif _OPENED_AT_THE_END.search(prompt):
        return None
    openings = [m for m in _OPENING.finditer(reply) if m.group().lower() not in skip]
    if openings and (closings or not reply[: openings[0].start()].strip()):
        reply = reply[: openings[0].start()]
        return _unwrapped(reply) or None
    return _unwrapped(reply) if closings else _without_channels(reply, channels)


def _without_channels(reply: str, channels: _Channels) -> str | None:
    """The final channel of a harmony reply, or what follows Granite's heading; other replies as they are."""
    final = channels.final.split(reply)
    if len(final) > 1:
        return _unwrapped(_END_OF_MESSAGE.split(final[-1])[0])
    if channels.other.match(reply):
        return None
    if _THOUGHT_HEADING.match(reply):
        *_, after = _RESPONSE_HEADING.split(reply)
        return None if after == reply else _unwrapped(after)
    return _unwrapped(reply)


def _unwrapped(answer: str) -> str:
    """Without the tags that some models put around the whole answer."""
    wrapped = _WRAPPING.match(answer.strip())
    return (wrapped.group(2) if wrapped else answer).strip()


def _last_mark(prompt: str) -> str:
    """The mark with which a prompt opens the reasoning, or an empty text."""
    found = _OPENED_AT_THE_END.search(prompt)
    return found.group().strip() if found else ""


def _after_reasoning(
    ids: Sequence[int], opening: int, closing: int, opened: bool
) -> list[int] | None:
    """What follows the last closing mark, up to reasoning that is opened again; None if cut inside."""
    last = max((i for i, token in enumerate(ids) if token == closing), default=None)
    if last is None and opened:
        return None
    after = list(ids) if last is None else list(ids[last + 1 :])
    if opening not in after:
        return after
    before = after[: after.index(opening)]
    return before or None


class _Marks:
    """The marks that are one token of a tokenizer each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        texts = {mark for pair in PAIRS for mark in pair} | {CHANNEL, MESSAGE, START, *_ENDS}
        self.known = {
            text: token for text in texts if (token := self.id_of(tokenizer, text)) is not None
        }
        self.pairs = [
            (self.known[opening], self.known[closing])
            for opening, closing in PAIRS
            if opening in self.known and closing in self.known
        ]
        harmony = CHANNEL in self.known and MESSAGE in self.known
        self.channel = self.known[CHANNEL] if harmony else None

    @staticmethod
    def id_of(tokenizer: Any, text: str) -> int | None:
        """The id of a text that is one token."""
        token = tokenizer.convert_tokens_to_ids(text)
        same = isinstance(token, int) and tokenizer.convert_ids_to_tokens(token) == text
        return token if same else None

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def ends_with(self, ids: Sequence[int], mark: int) -> bool:
        """Whether nothing but white space follows the last of a mark."""
        last = max((i for i, token in enumerate(ids) if token == mark), default=None)
        if last is None:
            return False
        rest = self._tokenizer.decode(list(ids[last + 1 :]), skip_special_tokens=False)
        return not str(rest).strip()

    def channel_at_the_end(self, prompt_ids: Sequence[int]) -> str | None:
        """The channel that a prompt opens for the reply; None if it opens none."""
        start, message = self.known.get(START), self.known.get(MESSAGE)
        if self.channel is None or start is None or start not in prompt_ids:
            return None
        last = len(prompt_ids) - 1 - list(reversed(prompt_ids)).index(start)
        tail = list(prompt_ids[last + 1 :])
        if self.channel not in tail or message not in tail:
            return None
        if any(self.known.get(end) in tail for end in _ENDS):
            return None
        return self._channel_name(tail[tail.index(self.channel) + 1 :])

    def _channel_name(self, ids: Sequence[int]) -> str:
        """First word of a header that ends with the message mark."""
        header = list(ids)
        message = self.known[MESSAGE]
        if message in header:
            header = header[: header.index(message)]
        return (self.text(header).split() or [""])[0].lower()

    def final_channel(self, ids: Sequence[int], opened: str | None) -> list[int] | None:
        """Ids of the last message on the final channel; None if there is none.

        Args:
            ids: The generated ids.
            opened: The channel whose message the prompt began.
        """
        message = self.known[MESSAGE]
        stops = {self.known[mark] for mark in (*_ENDS, START, CHANNEL) if mark in self.known}
        starts = [(0, opened)] if opened is not None else []
        for i, token in enumerate(ids):
            if token == self.channel and message in ids[i:]:
                starts.append((ids.index(message, i) + 1, self._channel_name(ids[i + 1 :])))
        finals = [begin for begin, name in starts if name == FINAL]
        if not finals:
            return None
        content = list(ids[finals[-1] :])
        end = next((i for i, token in enumerate(content) if token in stops), len(content))
        return content[:end]
