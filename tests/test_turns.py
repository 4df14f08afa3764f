"""The turn that is trained is the model's own: as its chat template writes one, up to and with its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from jinja2 import Environment

from chat_templates import FAMILIES, Family
from conftest import byte_tokenizer
from steermoe.chat import encode, ensure_chat_template, render
from steermoe.judges.keyword import KeywordJudge
from steermoe.reasoning import answer_of
from steermoe.records import Label, Output, Prompt, Verdict
from steermoe.training.dataset import IGNORED, collate, refusal_row
from steermoe.turns import assistant_turn

USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}

EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def turn_text(family: Family, text: str = "No.", messages: Any = (USER,), **how: Any) -> str:
    tokenizer = family.tokenizer(**how)
    prompt = render(tokenizer, messages, family.kwargs)
    stops = family.stop_ids(tokenizer)
    turn = assistant_turn(tokenizer, messages, prompt, text, family.kwargs, stops)
    assert turn.by_template
    return str(tokenizer.decode(turn.token_ids, skip_special_tokens=False))


@EACH
def test_the_turn_is_the_one_that_the_family_publishes(family: Family) -> None:
    tokenizer = family.tokenizer()
    assert render(tokenizer, [USER], family.kwargs).endswith(family.prompt)
    assert turn_text(family) == family.turn
    assert turn_text(family, special_reasoning=True) == family.turn


@EACH
def test_the_turn_is_the_same_behind_a_longer_conversation(family: Family) -> None:
    """A system turn, which some templates refuse and get with the first user turn, and an earlier reply."""
    earlier = {"role": "assistant", "content": "No."}
    messages = [SYSTEM, USER, earlier, {"role": "user", "content": "Hello"}]
    assert turn_text(family, messages=messages) == family.turn


@EACH
def test_prompt_and_turn_are_what_the_template_renders_without_us(family: Family) -> None:
    """Jinja alone, without transformers; where the prompt writes no reasoning that a finished turn lacks."""

    def fail(message: str) -> None:
        raise AssertionError(message)

    environment = Environment()
    environment.globals.update(raise_exception=fail, strftime_now=lambda _: "then")
    whole = environment.from_string(family.template).render(
        messages=[USER, {"role": "assistant", "content": "No."}],
        add_generation_prompt=False,
        bos_token=family.bos,
        eos_token=family.eos,
        **family.kwargs,
    )
    header = family.prompt.split("<think>")[0].split("</think>")[0]
    assert header in whole
    own = whole.rpartition(header)[2] if header.strip() else whole
    # A turn without an end of its own is ended by the next one's beginning.
    turn = family.turn.removesuffix("<|user|>")
    without = turn.split("</think>")[-1].strip()
    assert own.split("</think>")[-1].strip().startswith(without)
    if "<think>" not in family.prompt and "</think>" not in family.prompt:
        assert own.startswith(turn)


@EACH
def test_the_end_of_the_turn_is_learned(family: Family) -> None:
    tokenizer = family.tokenizer()
    prompt = render(tokenizer, [USER], family.kwargs)
    ids = tuple(encode(tokenizer, prompt))
    output = Output(prompt, (USER,), "Sure", ids, (1, 2), np.zeros((0, 1, 1), np.uint8))
    record = Prompt("p", Label.UNSAFE, (USER,), "Hello")
    stops = family.stop_ids(tokenizer)
    row = refusal_row(record, output, 0, "No.", tokenizer, family.kwargs, stops)
    assert row.prompt_token_ids == ids
    labels = collate([[row]], pad_token_id=0)["labels"][0]
    learned = labels[labels != IGNORED].tolist()
    assert tuple(learned) == row.completion_token_ids
    assert labels[-1] == learned[-1] and learned[-1] in stops
    assert sum(token in stops for token in learned) == 1


@EACH
@pytest.mark.parametrize("special", [True, False])
def test_the_verdict_on_a_learned_turn_is_a_refusal(family: Family, special: bool) -> None:
    tokenizer = family.tokenizer(special_reasoning=special)
    prompt = render(tokenizer, [USER], family.kwargs)
    text = "I can't help with that."
    turn = assistant_turn(
        tokenizer, [USER], prompt, text, family.kwargs, family.stop_ids(tokenizer)
    )
    answer = answer_of(tokenizer, encode(tokenizer, prompt), turn.token_ids, prompt)
    assert answer == text
    assert verdict(prompt, answer) is Verdict.REFUSED


def verdict(prompt: str, answer: str | None) -> Verdict:
    output = Output(prompt, (USER,), "", (1,), (2,), np.zeros((0, 1, 1), np.uint8), answer=answer)
    return KeywordJudge().judge([output])[0].verdict


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3-thinking", "deepseek-r1", "glm-4.5", "minimax-m2"]
)
@pytest.mark.parametrize("special", [True, False])
def test_the_verdict_is_read_from_the_answer_and_not_from_the_reasoning(
    name: str, special: bool
) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer(special_reasoning=special)
    prompt = render(tokenizer, [USER], family.kwargs)
    opening = "" if prompt.rstrip().endswith("<think>") else "<think>\n"
    reply = f"{opening}I can't help with that.\n</think>\n\nSure, here is how.{family.eos}"
    ids = encode(tokenizer, prompt), encode(tokenizer, reply)
    answer = answer_of(tokenizer, *ids, prompt)
    assert answer == "Sure, here is how."
    assert verdict(prompt, answer) is Verdict.ANSWERED
    cut = encode(tokenizer, f"{opening}I can't help with that.")
    assert answer_of(tokenizer, ids[0], cut, prompt) is None
    assert verdict(prompt, None) is Verdict.UNSCORED


# ---- templates that say less, or something else ---------------------------------------------------------


def test_a_short_harmony_template_gets_the_final_channel_and_its_end() -> None:
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    whole = FAMILIES["gpt-oss"]
    family = Family(template, whole.marks, whole.eos, whole.prompt, whole.turn, whole.stops)
    assert turn_text(family) == "<|channel|>final<|message|>No.<|return|>"


def test_a_template_shows_how_it_closes_reasoning_where_it_takes_some() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }} </think> -- {% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
    )
    family = Family(template, FAMILIES["chatml"].marks, "<|im_end|>", "", "")
    assert turn_text(family) == " </think> -- No.<|im_end|>"


def test_a_header_that_always_opens_reasoning_is_closed() -> None:
    """The assistant's header of every turn opens it, and nothing of the template closes it."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ '<think>\n' if m.role == 'assistant' else '' }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    family = Family(template, FAMILIES["chatml"].marks, "<|im_end|>", "", "")
    assert turn_text(family) == "\n</think>\n\nNo.<|im_end|>"


def test_arguments_that_are_not_passed_again_do_not_write_the_reasoning_twice() -> None:
    """The prompt has closed the reasoning already, though the template would write it again."""
    family = FAMILIES["qwen3"]
    tokenizer = family.tokenizer()
    prompt = render(tokenizer, [USER], {"enable_thinking": False})
    turn = assistant_turn(tokenizer, [USER], prompt, "No.")
    assert tokenizer.decode(turn.token_ids, skip_special_tokens=False) == "No.<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[-1].role == 'assistant' %}{{ raise_exception('ends with a reply') }}{% endif %}"
        + FAMILIES["chatml"].template,
        # The reply is written under another header than the generation prompt's.
        FAMILIES["chatml"].template.replace("{{ m.role }}", "{{ m.role | upper }}"),
        FAMILIES["chatml"].template.replace("{{ m.content }}", "{{ m.content | upper }}"),
    ],
    ids=["refuses", "other-header", "other-text"],
)
def test_where_the_template_writes_no_such_turn_it_is_the_text_and_its_end_and_that_is_known(
    template: str,
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    prompt = render(tokenizer, [USER])
    turn = assistant_turn(tokenizer, [USER], prompt, "No.")
    assert not turn.by_template
    assert tokenizer.decode(turn.token_ids, skip_special_tokens=False) == "No.<|im_end|>"


def test_a_tokenizer_without_end_token_ends_as_its_template_does() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    turn = assistant_turn(tokenizer, [USER], render(tokenizer, [USER]), "No.")
    assert tokenizer.decode(turn.token_ids, skip_special_tokens=False) == "No.<|im_end|>"


# ---- base models ----------------------------------------------------------------------------------------


def test_a_base_model_gets_its_bos_if_its_tokenizer_writes_one_and_ends_with_its_end_token() -> (
    None
):
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|endoftext|>"
    ensure_chat_template(tokenizer)
    assert render(tokenizer, [USER]) == "User: Hello\nAssistant:"
    tokenizer.chat_template = None
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    ensure_chat_template(tokenizer)
    prompt = render(tokenizer, [USER])
    assert prompt == "<|endoftext|>User: Hello\nAssistant:"
    assert encode(tokenizer, prompt)[:2] == [bos, *encode(tokenizer, "U")]
    turn = assistant_turn(tokenizer, [USER], prompt, "No.")
    assert tokenizer.decode(turn.token_ids, skip_special_tokens=False) == " No.<|im_end|>"


# ---- the clock ------------------------------------------------------------------------------------------


def test_a_template_that_writes_the_time_writes_the_turn_of_an_older_prompt() -> None:
    family = FAMILIES["llama-3.1"]
    tokenizer = family.tokenizer()
    prompt, later = render(tokenizer, [USER]), render(tokenizer, [USER])
    assert prompt != later, "it writes the microsecond"
    turn = assistant_turn(tokenizer, [USER], prompt, "No.")
    assert turn.by_template
    assert tokenizer.decode(turn.token_ids, skip_special_tokens=False) == "No.<|eot_id|>"
