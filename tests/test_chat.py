"""From messages to text: templates that refuse a system turn, and tokenizers that bring no template."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import CHATML, byte_tokenizer
from steermoe.chat import encode, ensure_chat_template, ids_that_stop, render
from steermoe.errors import ConfigError, PromptError

REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
REFUSES_EVERYTHING = "{{ raise_exception('nothing is good enough') }}"

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": "Hi"}


@pytest.fixture
def tokenizer() -> Any:
    return byte_tokenizer()


def test_a_conversation_is_rendered_up_to_where_the_reply_begins(tokenizer: Any) -> None:
    text = render(tokenizer, [SYSTEM, USER])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_system_turn_that_the_template_refuses_begins_the_user_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = REFUSES_SYSTEM
    given = [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "More"}]
    assert render(tokenizer, given) == (
        "<|im_start|>user\nBe brief.\n\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n"
        "<|im_start|>user\nMore<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert given[0] == SYSTEM and given[1] == USER, "the caller's messages are not touched"


LEAVES_OUT_SYSTEM = (
    "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML
)
LAST_TURN_ALONE = "{% set messages = messages[-1:] %}" + CHATML


def test_a_system_turn_that_the_template_leaves_out_begins_the_user_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = LEAVES_OUT_SYSTEM
    assert render(tokenizer, [SYSTEM, USER]) == (
        "<|im_start|>user\nBe brief.\n\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "Be brief.\n\nHello" in render(tokenizer, [SYSTEM, USER], reply=ASSISTANT)


def test_a_system_turn_that_the_template_writes_in_its_own_way_is_not_written_twice(
    tokenizer: Any,
) -> None:
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content'] | upper")
    assert render(tokenizer, [SYSTEM, USER]).count("BE BRIEF.") == 1


@pytest.mark.parametrize(
    ("template", "messages", "turn"),
    [
        ("{{ 'Hi' }}", [USER], "turn 1 of 1"),
        ("{{ 'Hi' }}", [SYSTEM, USER], "turn 1 of 1"),
        (LAST_TURN_ALONE, [USER, ASSISTANT, {"role": "user", "content": "More"}], "turn 1 of 3"),
    ],
)
def test_a_template_that_leaves_out_what_the_user_says_is_refused(
    tokenizer: Any, template: str, messages: list[dict[str, str]], turn: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=f"leaves out {turn}"):
        render(tokenizer, messages)
    tokenizer.chat_template = LAST_TURN_ALONE
    assert "Hello" in render(tokenizer, [USER])


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [SYSTEM]])
def test_a_template_that_refuses_everything_is_named_with_the_roles(
    tokenizer: Any, messages: list[dict[str, str]]
) -> None:
    tokenizer.chat_template = REFUSES_EVERYTHING
    roles = ", ".join(message["role"] for message in messages)
    with pytest.raises(PromptError, match=rf"\({roles}\): nothing is good enough") as caught:
        render(tokenizer, messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ m['role' }}{% endfor %}", "TemplateSyntaxError"),
        ("{{ messages.nothing.at_all }}", "UndefinedError"),
        ("{{ messages + 5 }}", "TypeError"),
    ],
)
@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER]])
def test_a_broken_template_is_not_blamed_on_the_roles(
    tokenizer: Any, template: str, fault: str, messages: list[dict[str, str]]
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=f"is broken: {fault}") as caught:
        render(tokenizer, messages)
    assert "roles" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kwargs",
    [{"tokenize": True}, {"tools": 5}, {"chat_template": 5}, {"continue_final_message": True}],
    ids=str,
)
def test_arguments_that_the_template_cannot_take_are_refused(
    tokenizer: Any, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="chat_template_kwargs") as caught:
        render(tokenizer, [USER], kwargs)
    assert next(iter(kwargs)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_template_gets_a_plain_one_and_that_is_told(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    assert ensure_chat_template(tokenizer) is True
    assert render(tokenizer, [SYSTEM, USER]) == "System: Be brief.\nUser: Hello\nAssistant:"
    assert ensure_chat_template(tokenizer) is False


def test_a_template_that_is_there_stays(tokenizer: Any) -> None:
    before = tokenizer.chat_template
    assert ensure_chat_template(tokenizer) is False
    assert tokenizer.chat_template == before


def test_template_arguments_reach_the_template(tokenizer: Any) -> None:
    assert "<think>" not in render(tokenizer, [USER])
    assert render(tokenizer, [USER], {"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")


def test_encoding_adds_no_special_token_of_its_own(tokenizer: Any) -> None:
    text = render(tokenizer, [USER])
    ids = encode(tokenizer, text)
    # One token a byte, and one a mark.
    assert len(ids) == len("user\nHello\nassistant\n") + 3
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("end", ["</s>", ["<|im_end|>"], 2.5])
def test_an_end_that_is_no_id_is_refused(tokenizer: Any, end: object) -> None:
    from types import SimpleNamespace

    with pytest.raises(PromptError, match=r"eos_token_id = .* is no number of a token"):
        ids_that_stop((SimpleNamespace(eos_token_id=end), None), tokenizer)
