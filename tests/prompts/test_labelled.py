"""Rows with labels: what they bring is kept, and what is malformed is named."""

import dataclasses
import json
import math

import pytest

from prompt_files import ASSISTANT, ROW, SYSTEM, USER, lines, message_of
from steermoe.prompts.formats import read_prompts
from steermoe.records import Split


def test_rows_keep_what_they_bring(prompt_file):
    row = {
        "prompt_id": 7,
        "prompt": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "Another."}],
        "label": "safe",
        "goal": "rivers",
        "pair_id": "p1",
        "category": "look_alike",
        "split": "dev",
        "style": "polite",
    }
    (prompt,) = read_prompts(prompt_file([row])).prompts
    assert (prompt.prompt_id, prompt.goal, prompt.pair_id) == ("7", "rivers", "p1")
    assert (prompt.is_look_alike, prompt.split, prompt.style) == (True, Split.DEV, "polite")
    assert len(prompt.messages) == 4
    (plain,) = read_prompts(prompt_file([{**row, "goal": None}])).prompts
    assert plain.goal == "Another."


def test_the_prompts_of_a_run_can_be_read_again(prompt_file):
    prompts = read_prompts("builtin:starter").prompts
    rows = lines(*({key: prompt[key] for key in prompt} for prompt in prompts))
    again = read_prompts(prompt_file(rows)).prompts
    assert tuple(dataclasses.replace(p, source="builtin:starter") for p in again) == prompts


def test_missing_cells_of_a_csv_are_missing_not_text(prompt_file):
    header = "prompt,label,pair_id,category,split\n"
    (prompt,) = read_prompts(prompt_file(f"{header}Name a river.,safe,nan,<NA>,\n")).prompts
    assert (prompt.pair_id, prompt.category, prompt.split) == ("", "", None)


def test_messages_stand_in_csv_as_json(prompt_file):
    cell = json.dumps([SYSTEM, USER]).replace('"', '""')
    (prompt,) = read_prompts(prompt_file(f'messages,label\n"{cell}",benign\n')).prompts
    assert prompt.messages == (SYSTEM, USER)
    assert "field 'messages': must be a list" in message_of(
        prompt_file("messages,label\nhello,safe\n")
    )


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"label": "safe"}, "prompt", "is missing"),
        ({"prompt": " \n", "label": "safe"}, "prompt", "is empty"),
        ({"prompt": 5, "label": "safe"}, "prompt", "must be text or a list of messages, not 5"),
        ({"prompt": math.nan, "label": "safe"}, "prompt", "is missing"),
        ({"prompt": "a\ud800b", "label": "safe"}, "prompt", "half a character at position 2"),
        ({"prompt": "a"}, "label", "is missing"),
        ({"prompt": "a", "label": "unsfe"}, "label", "did you mean 'unsafe'?"),
        ({"prompt": "a", "label": "toxic"}, "label", "'toxic' is not one of safe, unsafe, benign"),
        ({"prompt": "a", "label": 1}, "label", "1 may mean either side"),
        ({"prompt": "a", "label": "safe", "split": "eval"}, "split", "not one of train, dev, test"),
        ({"prompt": "a", "label": "safe", "goal": ["x"]}, "goal", "must be text"),
        ({"prompt": "a", "label": "safe", "pair_id": True}, "pair_id", "must be text"),
        ({"prompt": "a", "messages": [USER], "label": "safe"}, "prompt", "beside 'messages'"),
        ({"messages": [], "label": "safe"}, "messages", "empty list"),
        ({"messages": "hello", "label": "safe"}, "messages", "must be a list"),
        ({"messages": ["hello", "you"], "label": "safe"}, "messages", "holds 2 texts without roles"),
        ({"messages": [USER, "hello"], "label": "safe"}, "messages", "message 2 must hold role and content"),
        ({"messages": [{"role": "user"}], "label": "safe"}, "messages", "message 1 has no content"),
        ({"messages": [{"role": "user", "content": ""}], "label": "safe"}, "messages", "content of message 1 is empty"),
        ({"messages": [{"role": "user", "content": 3}], "label": "safe"}, "messages", "must be text, not 3"),
        ({"messages": [{"role": "usr", "content": "a"}], "label": "safe"}, "messages", "did you mean 'user'?"),
        ({"messages": [{**USER, "tool_calls": [1]}], "label": "safe"}, "messages", "holds 'tool_calls'"),
        ({"messages": [USER, SYSTEM], "label": "safe"}, "messages", "message 2 is from 'system' where 'assistant'"),
        ({"messages": [USER, USER], "label": "safe"}, "messages", "message 2 is from 'user' where 'assistant'"),
        ({"messages": [ASSISTANT, USER], "label": "safe"}, "messages", "message 1 is from 'assistant' where 'user'"),
        ({"messages": [SYSTEM], "label": "safe"}, "messages", "the last message is from 'system'"),
        ({"messages": [SYSTEM, ASSISTANT], "label": "safe"}, "messages", "the last message is from 'system'"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_with_file_row_and_field(prompt_file, row, field, problem):
    path = prompt_file(lines(ROW, row))
    text = message_of(path)
    assert text.startswith(f"{path}, row 2, field {field!r}: ")
    assert problem in text


def test_an_id_that_is_used_twice_is_refused(prompt_file):
    rows = [{**ROW, "prompt_id": "a"}, ROW, {**ROW, "prompt_id": "a"}]
    assert "row 3, field 'prompt_id': 'a' is already the id of row 1" in message_of(
        prompt_file(rows)
    )


def test_a_misspelt_reserved_category_is_said_aloud(prompt_file):
    notes = read_prompts(prompt_file([{**ROW, "category": "Look-alike"}])).notes
    assert any("'Look-alike' is free text" in note for note in notes)


def test_a_category_with_a_meaning_is_said_to_have_none_on_other_labels(prompt_file):
    rows = [{**ROW, "label": label, "category": "look_alike"} for label in ("safe", "unsafe")]
    (note,) = [n for n in read_prompts(prompt_file(rows)).notes if "look_alike" in n]
    assert "1 unsafe prompt" in note
