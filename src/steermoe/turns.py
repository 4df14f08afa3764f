"""The assistant's turn that a model is taught: a text, written as its own chat template writes such a turn.

The conversation is rendered with the text as its last turn. What follows the generation prompt is the turn, up to and
with the mark that ends it. So a model is taught the end of turn that it was made with, the channel that its answers
are on, and the empty piece of reasoning that its template writes; a prompt that opens a piece of reasoning has it
closed first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from steermoe.chat import encode, render
from steermoe.errors import PromptError
from steermoe.reasoning import (
    CHANNEL,
    END,
    FINAL,
    MESSAGE,
    RETURN,
    Begun,
    after_reasoning,
    begun_reasoning,
    is_one_token,
)
from steermoe.records import Message

_NEXT_TURN: Message = {"role": "user", "content": "Thanks."}
_THOUGHT = "(what the model thinks)"


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant's turn after a prompt.

    Attributes:
        token_ids: What follows the prompt's tokens; the end of turn is the last, where the model has one.
        by_template: Whether the chat template wrote it. It did not where the template refuses a conversation that ends
            with the assistant's turn, does not begin that as its generation prompt does, or changes the text; then the
            turn is the text as it is, and the end of turn.
    """

    token_ids: tuple[int, ...]
    by_template: bool


class _Written(NamedTuple):
    """What stands before and after the text in an assistant's turn."""

    before: str
    after: str


def assistant_turn(
    tokenizer: Any,
    messages: Sequence[Message],
    prompt: str,
    text: str,
    template_kwargs: Mapping[str, Any] | None = None,
    stop_token_ids: Sequence[int] = (),
) -> Turn:
    """The turn with which a model would give a text as its answer.

    Args:
        tokenizer: The model's.
        messages: The conversation, the last turn the user's.
        prompt: What it was rendered to, and the model is fed; a template may write another date by now.
        text: The answer.
        template_kwargs: What the chat template is passed.
        stop_token_ids: Tokens at which generation ends; by default the tokenizer's end token.
    """
    kwargs = _with_the_clock_stopped(tokenizer, template_kwargs or {})
    stops = [i for i in (tokenizer.eos_token_id, *stop_token_ids) if i is not None]
    begun = begun_reasoning(prompt)
    written = _written(tokenizer, messages, text, kwargs)
    if written is None:
        closing = _closing(tokenizer, messages, text, kwargs, begun) if begun.closing else ""
        ids = _continued(tokenizer, prompt, closing + text.strip())
        return Turn((*ids, *stops[:1]), by_template=False)
    before, after = _on_the_final_channel(tokenizer, written)
    left = _after_what_is_begun(before, begun)
    if left is None:
        left = _closing(tokenizer, messages, text, kwargs, begun, before.removeprefix(begun.text))
    end = _end_within(tokenizer, after, stops)
    ids = _continued(tokenizer, prompt, left + text.strip() + end)
    if not end:
        ids += _beginning_of_the_next_turn(tokenizer, messages, text, kwargs, stops)
    return Turn(ids, by_template=True)


def _written(
    tokenizer: Any, messages: Sequence[Message], text: str, kwargs: Mapping[str, Any]
) -> _Written | None:
    """The assistant's turn as the template writes it after its generation prompt; None if it does not."""
    header = begun_reasoning(render(tokenizer, messages, kwargs)).header
    reply = {"role": "assistant", "content": text}
    try:
        whole = render(tokenizer, messages, kwargs, reply)
    except PromptError:
        return None
    before, found, after = whole[len(header) :].partition(text.strip())
    return _Written(before, after) if whole.startswith(header) and found else None


def _with_the_clock_stopped(tokenizer: Any, kwargs: Mapping[str, Any]) -> dict[str, object]:
    """Template arguments with which two renderings write the same time.

    A template is passed data and no functions, so a macro of the function's name stands before it.
    """
    template = kwargs.get("chat_template", tokenizer.chat_template)
    if not isinstance(template, str) or "strftime_now" not in template:
        return dict(kwargs)
    now = datetime.now()
    written = "".join(
        f" | replace('%{directive}', '{now.strftime(f'%{directive}')}')"
        for directive in ("-d", "-m", "-H", "-I", "-M", *"aAbBcdfHIjmMpSxXyY")
    )
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}"
    return {**kwargs, "chat_template": macro + template}


def _on_the_final_channel(tokenizer: Any, written: _Written) -> _Written:
    """In the harmony format, an answer is on the final channel, and `<|return|>` ends it.

    Templates leave both out of the turns of a conversation's past, and short ones of every turn.
    """
    channel = f"{CHANNEL}{FINAL}{MESSAGE}"
    if not all(is_one_token(tokenizer, mark) for mark in (CHANNEL, MESSAGE)):
        return written
    before, after = written
    if MESSAGE in before and CHANNEL not in before:
        before = before.replace(MESSAGE, channel, 1)
    if after.startswith(END) and is_one_token(tokenizer, RETURN):
        after = after.replace(END, RETURN, 1)
    return _Written(before, after)


def _after_what_is_begun(before: str, begun: Begun) -> str | None:
    """What of the template's writing before the text is not in the prompt yet; None if that leaves reasoning open."""
    if begun.text and before.startswith(begun.text):
        left = before.removeprefix(begun.text)
        return left if not begun.closing or begun.closing in left else None
    if begun.closing:
        at = before.find(begun.closing)
        return None if at < 0 else before[at:]
    if not begun.text:
        return before
    # The prompt has closed the reasoning: what the template writes of it is not written twice.
    after = after_reasoning(before)
    if after is None:
        return before
    return after.lstrip() if begun.text[-1].isspace() else after


def _closing(
    tokenizer: Any,
    messages: Sequence[Message],
    text: str,
    kwargs: Mapping[str, Any],
    begun: Begun,
    before: str = "",
) -> str:
    """What closes the reasoning that a prompt opened, and stands before the text behind it.

    As the template closes some that it is given, if it takes any; else the mark, and what it writes before the text
    without reasoning (some put a tag there).
    """
    names = ("reasoning_content", "reasoning", "thinking")
    reply = {"role": "assistant", "content": text, **dict.fromkeys(names, _THOUGHT)}
    try:
        whole = render(tokenizer, messages, kwargs, reply)
    except PromptError:
        whole = ""
    between = whole.rpartition(_THOUGHT)[2].partition(text.strip())[0]
    if begun.closing in between:
        return between
    return ("\n" if begun.text.endswith("\n") else "") + f"{begun.closing}\n\n{before.lstrip()}"


def _end_within(tokenizer: Any, after: str, stops: Sequence[int]) -> str:
    """What follows a text up to the mark that ends the turn: the first that stops generation, else the first mark."""
    for marks in (_texts(tokenizer, stops), _special_texts(tokenizer)):
        ends = [after.index(mark) + len(mark) for mark in marks if mark and mark in after]
        if ends:
            return after[: min(ends)]
    return ""


def _beginning_of_the_next_turn(
    tokenizer: Any,
    messages: Sequence[Message],
    text: str,
    kwargs: Mapping[str, Any],
    stops: Sequence[int],
) -> tuple[int, ...]:
    """The token that ends a turn which the template ends with no mark: with some models, the next turn's first.

    Returns:
        It, or else the tokenizer's end token, or the first at which generation ends; nothing if there is none.
    """
    reply = {"role": "assistant", "content": text}
    try:
        more = render(tokenizer, [*messages, reply, _NEXT_TURN], kwargs)
    except PromptError:
        more = ""
    following = more.rpartition(text.strip())[2].lstrip()
    for stop, mark in zip(stops, _texts(tokenizer, stops), strict=True):
        if mark and following.startswith(mark):
            return (stop,)
    return tuple(stops[:1])


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [str(tokenizer.decode([i], skip_special_tokens=False)) for i in ids]


def _special_texts(tokenizer: Any) -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    return [str(token.content) for token in added if token.special]


def _continued(tokenizer: Any, prompt: str, text: str) -> tuple[int, ...]:
    """Token ids of a text behind a prompt: as in one text, unless a token would reach over from the prompt."""
    before, whole = encode(tokenizer, prompt), encode(tokenizer, prompt + text)
    if whole[: len(before)] == before:
        return tuple(whole[len(before) :])
    return tuple(encode(tokenizer, text))
