"""The part of a reply that is meant for the user, found by token ids and by text."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from conftest import byte_tokenizer
from steermoe.reasoning import PAIRS, answer_of, final_answer

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")


def tokenizer_with(*marks: str, special: bool = True) -> Any:
    """A byte tokenizer in which each mark is one token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in marks])
    return tokenizer


def answer(tokenizer: Any, prompt: str, reply: str) -> str | None:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return answer_of(tokenizer, ids(prompt), ids(reply), prompt)


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
@pytest.mark.parametrize("special", [True, False, None])
def test_each_pair_of_marks_is_found_as_special_token_as_token_and_as_text(
    opening: str, closing: str, special: bool | None
) -> None:
    marks = () if special is None else (opening, closing)
    tokenizer = tokenizer_with(*marks, special=bool(special))
    thinks = f"{opening}I can't help with that.{closing}\nSure, here it is.<|im_end|>"
    assert answer(tokenizer, "Hi", thinks) == "Sure, here it is."
    assert answer(tokenizer, "Hi", f"{opening}I can't help") is None
    # The template opened the reasoning: no opening mark in the reply.
    assert answer(tokenizer, f"Hi{opening}\n", f"I can't.{closing}Sure.") == "Sure."
    assert answer(tokenizer, f"Hi{opening}\n", "I can't.") is None
    # The template opened and closed it: the whole reply is the answer.
    assert answer(tokenizer, f"Hi{opening}\n\n{closing}\n\n", "Sure.") == "Sure."
    # Cut while it thinks again.
    again = f"{opening}a{closing}Sure. {opening}or not"
    assert answer(tokenizer, "Hi", again) == "Sure."


def test_a_special_mark_is_lost_in_the_decoded_text_and_found_in_the_ids() -> None:
    tokenizer = tokenizer_with("<think>", "</think>")
    reply = "<think>I can't help with that.</think>Sure."
    ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded == "I can't help with that.Sure."
    assert final_answer("", decoded) == decoded
    assert answer_of(tokenizer, [], ids, "") == "Sure."


def test_a_text_that_quotes_a_mark_is_no_mark_where_the_mark_is_one_token() -> None:
    tokenizer = tokenizer_with("<think>", "</think>")
    quoted = [
        token
        for part in ("<thi", "nk> opens and </thi", "nk> closes it.")
        for token in tokenizer(part, add_special_tokens=False)["input_ids"]
    ]
    assert answer_of(tokenizer, [], quoted, "") == "<think> opens and </think> closes it."


def test_a_prompt_that_only_mentions_a_mark_opens_nothing() -> None:
    tokenizer = tokenizer_with("<think>", "</think>")
    assert answer(tokenizer, "What is <think> for?", "It opens the reasoning.") == (
        "It opens the reasoning."
    )


@pytest.mark.parametrize("marks", [HARMONY, ()])
def test_of_harmony_channels_only_the_final_one_is_the_answer(marks: tuple[str, ...]) -> None:
    tokenizer = tokenizer_with(*marks)
    thought = "<|channel|>analysis<|message|>I can't.<|end|><|start|>assistant"
    assert (
        answer(tokenizer, "Hi", f"{thought}<|channel|>final<|message|>Sure.<|return|>") == "Sure."
    )
    assert answer(tokenizer, "Hi", f"{thought}<|channel|>commentary<|message|>A tool.") is None
    assert answer(tokenizer, "Hi", "<|channel|>analysis<|message|>I can't") is None
    assert answer(tokenizer, "Hi", "<|channel|>final<|message|>analysis: fine") == "analysis: fine"


def test_a_prompt_may_have_opened_a_harmony_channel() -> None:
    tokenizer = tokenizer_with(*HARMONY)
    opened = "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>{}<|message|>"
    final = "<|end|><|start|>assistant<|channel|>final<|message|>Sure."
    assert answer(tokenizer, opened.format("analysis"), "I can't") is None
    assert answer(tokenizer, opened.format("analysis"), f"I can't{final}") == "Sure."
    assert answer(tokenizer, opened.format("final"), "Sure.<|return|>") == "Sure."
    # An earlier turn on a channel says nothing of this one.
    earlier = opened.format("final") + "Yes.<|end|><|start|>assistant"
    assert answer(tokenizer, earlier, "Sure.") == "Sure."


def test_a_header_that_was_cut_is_no_answer() -> None:
    tokenizer = tokenizer_with(*HARMONY)
    assert answer(tokenizer, "Hi", "<|channel|>fin") is None


def test_granites_headings_and_the_tags_around_an_answer() -> None:
    tokenizer = tokenizer_with()
    thought = "Here is my thought process: I can't. "
    assert answer(tokenizer, "Hi", f"{thought}Here is my response: Sure.") == "Sure."
    assert answer(tokenizer, "Hi", thought) is None
    assert answer(tokenizer, "Hi", "<think>a</think><response>Sure.</response>") == "Sure."
    assert answer(tokenizer, "Hi", "<think>a</think><answer>\nSure") == "Sure"


def test_an_answer_that_begins_with_the_word_analysis_is_an_answer() -> None:
    assert answer(tokenizer_with(), "Hi", "analysis of the text: it is long") == (
        "analysis of the text: it is long"
    )


def test_a_reply_without_reasoning_is_the_answer_without_special_tokens() -> None:
    assert answer(tokenizer_with("<think>", "</think>"), "Hi", " Sure.<|im_end|>") == "Sure."
    assert answer(tokenizer_with(), "Hi", "") == ""
