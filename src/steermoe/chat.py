"""From chat messages to the text and the tokens a model is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError, TemplateSyntaxError

from steermoe.errors import ConfigError, PromptError, on_one_line
from steermoe.records import Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Used, and said so, where a tokenizer brings no chat template; after its BOS, if it begins texts with one."""

_SOMETHING_ELSE = "(something else)"
_BROKEN = "the model's chat template is broken"
_MEND = "mend chat_template.jinja, or chat_template in tokenizer_config.json"


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without chat template the plain one.

    Returns:
        Whether it had none.
    """
    if tokenizer.chat_template:
        return False
    begins = "{{ bos_token }}" if _adds_bos(tokenizer) else ""
    tokenizer.chat_template = begins + PLAIN_TEMPLATE
    return True


def _adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer begins a text with its BOS by itself."""
    if tokenizer.bos_token is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None = None,
    reply: Message | None = None,
) -> str:
    """The text of a conversation up to where the reply begins, or up to the end of a given reply.

    A `system` turn that the template refuses, or leaves out without a word, becomes the beginning of the first user
    turn.

    Args:
        tokenizer: Has a chat template.
        messages: The turns, the last one the user's.
        template_kwargs: What the chat template is passed.
        reply: The assistant's turn that follows, if it is to be written as well.

    Raises:
        PromptError: The template refuses the conversation even so, leaves out what the user says, or is broken.
        ConfigError: The template cannot be given those arguments.
    """
    replies = [] if reply is None else [dict(reply)]
    turns = [*(dict(message) for message in messages), *replies]
    kwargs = dict(template_kwargs or {})
    has_system = turns[0]["role"] == "system" and len(turns) > 1
    try:
        text = _apply(tokenizer, turns, kwargs, reply is not None)
    except TemplateError as error:
        if not has_system:
            raise PromptError(_refused(turns, error)) from None
    else:
        if not has_system or not _is_left_out(0, tokenizer, turns, kwargs, text):
            return _with_all_user_turns(tokenizer, turns, kwargs, text)
    first_user = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
    others = [first_user, *turns[2:]]
    try:
        text = _apply(tokenizer, others, kwargs, reply is not None)
    except TemplateError as error:
        raise PromptError(_refused(turns, error)) from None
    return _with_all_user_turns(tokenizer, others, kwargs, text)


def _with_all_user_turns(
    tokenizer: Any, turns: list[dict[str, str]], kwargs: Mapping[str, object], text: str
) -> str:
    """A rendered conversation, after checking that all that the user says is in it."""
    for place, turn in enumerate(turns):
        if turn["role"] == "user" and _is_left_out(place, tokenizer, turns, kwargs, text):
            raise PromptError(
                f"the model's chat template leaves out turn {place + 1} of {len(turns)}, which the user says; {_MEND}"
            )
    return text


def _is_left_out(
    place: int, tokenizer: Any, turns: list[dict[str, str]], kwargs: Mapping[str, object], text: str
) -> bool:
    """Whether a rendered conversation is the same whatever one of its turns says."""
    if turns[place]["content"].strip() in text:
        return False
    others = [{**turn} for turn in turns]
    others[place]["content"] = _SOMETHING_ELSE
    try:
        return _apply(tokenizer, others, kwargs, turns[-1]["role"] == "assistant") == text
    except TemplateError:
        return False


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered text: the template has already written every special token."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a turn: the generation config's, the model config's and the tokenizer's.

    Raises:
        PromptError: There is none.
    """
    return ids_that_stop(configs_of(model), tokenizer)


def configs_of(model: Any) -> tuple[Any, Any]:
    """A model's generation config, if it has one, and its text config."""
    return getattr(model, "generation_config", None), model.config.get_text_config()


def ids_that_stop(configs: Sequence[Any], tokenizer: Any) -> list[int]:
    """Ids that end a turn, as configs and tokenizer name them.

    Raises:
        PromptError: They name none, or something that is no id.
    """
    found: list[int] = []
    for source in (*(getattr(c, "eos_token_id", None) for c in configs), tokenizer.eos_token_id):
        ids = source if isinstance(source, list) else [source]
        if wrong := [i for i in ids if not isinstance(i, int | None)]:
            raise PromptError(
                f"eos_token_id = {wrong[0]!r} of the model is no number of a token; correct it in "
                "generation_config.json or config.json"
            )
        found += [int(i) for i in ids if i is not None and int(i) not in found]
    if not found:
        raise PromptError(
            "the model names no end-of-turn token, so replies would never end; set eos_token_id"
        )
    return found


def _apply(
    tokenizer: Any, turns: list[dict[str, str]], kwargs: Mapping[str, object], ends_with_reply: bool
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=not ends_with_reply,
            **kwargs,
        )
    except TemplateError:
        raise
    except Exception as error:  # a template is code, and its arguments are anything
        problem = f"{type(error).__name__}: {on_one_line(error)}"
        if kwargs:
            raise ConfigError(
                f"model.chat_template_kwargs = {kwargs} cannot be passed to the chat template: {problem}"
            ) from error
        raise PromptError(f"{_BROKEN}: {problem}; {_MEND}") from error
    return str(text)


def _refused(turns: list[dict[str, str]], error: TemplateError) -> str:
    """What to do about it: a template says no with a bare `TemplateError`; its own faults are of a subclass."""
    if isinstance(error, TemplateSyntaxError | TemplateRuntimeError):
        return f"{_BROKEN}: {type(error).__name__}: {on_one_line(error)}; {_MEND}"
    roles = ", ".join(turn["role"] for turn in turns)
    return (
        f"the model's chat template refuses a conversation of ({roles}): {error}; change its roles"
    )
