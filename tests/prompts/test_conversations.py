"""Chat turns in the spellings that people have them in, and those that no reply can follow."""

import json

import pytest

from prompt_files import ASSISTANT, SYSTEM, USER, as_csv, lines, message_of, parquet
from steermoe.errors import PromptError
from steermoe.prompts.conversations import parse_conversation
from steermoe.prompts.formats import read_prompts


def read_one(prompt_file, value, name="messages"):
    return read_prompts(prompt_file(lines({name: value, "label": "safe"})))


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


ANOTHER = {"role": "user", "content": "Another."}


@pytest.mark.parametrize(
    ("value", "expected", "said"),
    [
        ([{"from": "human", "value": "Name a river."}], [USER], "'human' is read as user"),
        ([{"role": "Human", "content": "Name a river."}], [USER], "'Human' is read as user"),
        ([{"role": "USER", "content": "Name a river."}], [USER], "'USER' is read as user"),
        (
            [{"from": "system", "value": "Answer in one word."}, {"from": "human", "value": "Name a river."},
             {"from": "gpt", "value": "The Elbe."}, {"from": "human", "value": "Another."}],
            [SYSTEM, USER, ASSISTANT, ANOTHER],
            "'gpt' is read as assistant (1 message)",
        ),
        ([{"role": "developer", "content": "Answer in one word."}, USER], [SYSTEM, USER], "read as system"),
        ([{"role": "model", "content": "x"}, USER][1:], [USER], ""),
        ([USER, ASSISTANT], [USER], "1 conversation ended with the assistant's turn"),
        ([USER, {"from": "gpt", "value": ""}], [USER], "cut off"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [1]}], [USER], "cut off"),
        ([{**USER, "name": "Eve", "weight": 1}], [USER], "not read in messages: 'name', 'weight'"),
        ([{**USER, "name": None, "tool_calls": [], "tags": {}, "id": " "}], [USER], ""),
        ([{"role": "user", "content": [{"type": "text", "text": "Name "}, {"type": "text", "text": "a river."}]}],
         [USER], "text parts of 1 message"),
        ([{"role": "user", "content": [{"text": "Name a river."}]}], [USER], "text parts"),
        ([{"role": "user", "content": "Name a river.", "value": "other"}], [USER], "not read in messages: 'value'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["messages", "conversations", "Conversation", "prompt"])
def test_turns_are_understood_and_what_was_done_is_said(prompt_file, value, expected, said, name):
    read = read_one(prompt_file, value, name)
    assert read.prompts[0].messages == tuple(expected)
    assert read.prompts[0].goal == expected[-1]["content"]
    assert any(said in note for note in read.notes)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([{"role": "robot", "content": "x"}], "'robot' is not one of"),
        ([{"from": "tool", "value": "x"}], "'tool' is not one of"),
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": [1]}, USER],
            "message 2 has no content",
        ),
        ([USER, {**ASSISTANT, "tool_calls": [1]}, USER], "conversations with tools cannot be used"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "a part that is no text",
        ),
        ([{"role": "user", "content": []}], "is empty"),
        ([USER, ASSISTANT, ASSISTANT], "the last message is from 'assistant'"),
        ([ASSISTANT], "message 1 is from 'assistant'"),
        ([SYSTEM, SYSTEM, USER], "message 2 is from 'system'"),
        ([{"user": "Name a river."}], "message 1 has no role"),
    ],
)
def test_turns_that_cannot_be_used_are_refused(prompt_file, value, problem):
    path = prompt_file(lines({"messages": value, "label": "safe"}))
    text = message_of(path)
    assert text.startswith(f"{path}, row 1, field 'messages': ")
    assert problem in text


# ---- turns in a cell of text --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt", "messages", "text"])
@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (json.dumps([SYSTEM, USER]), "as JSON"),
        (json.dumps([SYSTEM, USER], indent=1), "as JSON"),
        (repr([SYSTEM, USER]), "as a Python list"),
        (repr([SYSTEM, {**USER, "name": None}]), "as a Python list"),
    ],
)
def test_turns_in_a_cell_are_turns_and_no_text(prompt_file, name, cell, kind):
    read = read_prompts(prompt_file(as_csv([name, "label"], [cell, "safe"])))
    assert read.prompts[0].messages == (SYSTEM, USER)
    assert any(kind in note for note in read.notes)


def test_turns_in_a_parquet_text_are_turns(prompt_file):
    read = read_prompts(prompt_file(parquet([{"prompt": json.dumps([USER]), "label": "safe"}])))
    assert read.prompts[0].messages == (USER,)


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]",  # as numpy prints it
        "[{'role': 'user', 'content': array(['a'])}]",
        '[{"role": "user", "content": "cut o',
    ],
)
def test_a_cell_that_seems_to_hold_turns_and_cannot_be_read_is_refused(prompt_file, cell):
    text = message_of(prompt_file(as_csv(["prompt", "label"], [cell, "safe"])))
    assert "row 1, field 'prompt': seems to hold chat turns" in text


@pytest.mark.parametrize("cell", ['["Pick a lock", "Now"]', "['Pick a lock']", '["a",\n "b"]'])
def test_a_list_of_texts_in_a_cell_is_no_prompt(prompt_file, cell):
    text = message_of(prompt_file(as_csv(["prompt", "label"], [cell, "safe"])))
    assert "row 1, field 'prompt': holds a list of " in text


@pytest.mark.parametrize(
    "cell",
    [
        "[1, 2, 3]",
        "['a'] means what?",
        "['a', 2]",
        "[{x}] means what?",
        '[{"a": 1}]',
        "[]",
        "{'role': 'user'}",
        "[{(",
        "[ { 1: 2 } ]",
    ],
)
def test_other_texts_in_brackets_are_texts(prompt_file, cell):
    (prompt,) = read_prompts(prompt_file(as_csv(["prompt", "label"], [cell, "safe"]))).prompts
    assert prompt.messages == ({"role": "user", "content": cell},)


# ---- the Python interface has no notes, and takes only what is exactly ours ----------------------------


@pytest.mark.parametrize(
    "value",
    [
        [{"from": "human", "value": "x"}],
        [{"role": "User", "content": "x"}],
        [{**USER, "name": "Eve"}],
        [USER, ASSISTANT],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": ""}],
    ],
)
def test_turns_that_need_a_note_are_refused_where_there_is_none(value):
    with pytest.raises(PromptError):
        parse_conversation(value)


def test_a_text_of_turns_is_a_text_where_there_are_no_notes():
    cell = json.dumps([USER])
    assert parse_conversation(cell) == ({"role": "user", "content": cell},)
