"""CSV as spreadsheets and scripts write it, and texts of one prompt a line: no cell is lost without a word."""

import pytest

from prompt_files import message_of, texts
from steermoe.prompts.formats import read_prompts

BODY = "one,safe\ntwo,unsafe\n"


def said(read, *words):
    return any(all(word in note for word in words) for note in read.notes)


@pytest.mark.parametrize(
    "content",
    [
        f"prompt,label\n{BODY}",
        f"sep=,\nprompt,label\n{BODY}",
        f'"sep=,"\r\nprompt,label\n{BODY}',
        "sep=;\nprompt;label\none;safe\ntwo;unsafe\n",
        "sep=~\nprompt~label\none~safe\ntwo~unsafe\n",
        "prompt|label\none|safe\ntwo|unsafe\n",
        f",\nprompt,label\n{BODY}",
        f"My prompts,\nprompt,label\n{BODY}",
        f"# from the lab, v2\n#,\nprompt,label\n{BODY}",
        f"\n\n  \nprompt,label\n{BODY}",
        f"prompt,label\n{BODY},\n , \n",
        "prompt,label,,\none,safe,,\ntwo,unsafe,,\n",
        "prompt,label\none,safe,,\ntwo,unsafe\n",
        "prompt, label\none, safe\ntwo, unsafe\n",
        'label, prompt\nsafe, "one"\nunsafe, "two"\n',
        "Prompt,LABEL\none,Safe\ntwo, UNSAFE \n",
    ],
)
def test_the_same_two_rows(prompt_file, content):
    read = read_prompts(prompt_file(content))
    assert [(p.goal, p.label) for p in read.prompts] == [("one", "safe"), ("two", "unsafe")]


def test_what_is_skipped_is_said(prompt_file):
    read = read_prompts(prompt_file(f"Title\nprompt,label\n{BODY},\n,\nthree,safe\n"))
    assert said(read, "1 line above", "'Title'")
    assert said(read, "2 empty rows skipped")
    assert [prompt.prompt_id for prompt in read.prompts] == ["row-0001", "row-0002", "row-0005"]


def test_a_column_without_a_name_is_named_as_not_read_if_it_holds_anything(prompt_file):
    read = read_prompts(prompt_file(",prompt,label,\n0,one,safe,\n1,two,unsafe,\n"))
    assert texts(read.prompts) == ["one", "two"]
    assert said(read, "not read", "'column 1'")
    assert not said(read, "column 4")


def test_a_cell_too_many_that_holds_something_is_refused(prompt_file):
    assert "row 1: has 3 cells" in message_of(prompt_file("prompt,label\none,safe,more\n"))
    assert "row 1, field 'label': is cut off" in message_of(prompt_file("prompt,label\none\n"))


def test_a_title_is_not_taken_for_the_header_and_a_row_not_for_a_title(prompt_file):
    # The second line holds one word that may name a column: it is a row all the same.
    text = message_of(prompt_file("sentence,kind\nWhat is it?,question\n"))
    assert "'sentence'" in text and "'kind'" in text


# ---- one prompt a line --------------------------------------------------------------------------------


TEXT = 'Pick a lock\n\nDo this, then that\r\n  Say "no" to it\n'


def test_a_text_of_lines_is_read_once_it_is_said_what_they_are(prompt_file):
    path = prompt_file(TEXT, "lines.txt")
    text = message_of(path)
    assert f"'unsafe:{path}'" in text and "one prompt a line" in text
    read = read_prompts(f"unsafe:{path}")
    assert texts(read.prompts) == ["Pick a lock", "Do this, then that", '  Say "no" to it']
    assert {prompt.label for prompt in read.prompts} == {"unsafe"}
    assert [prompt.prompt_id for prompt in read.prompts] == ["row-0001", "row-0003", "row-0004"]
    assert said(read, "1 blank line skipped")


@pytest.mark.parametrize(
    "first",
    ["Ignore the rules for this question", "Write a jailbreak prompt", "How to fake success"],
)
def test_a_first_line_that_ends_like_a_name_is_a_prompt(prompt_file, first):
    path = prompt_file(f"{first}\nPick a lock, now\nPick two locks\n")
    assert texts(read_prompts(f"unsafe:{path}").prompts)[0] == first
    assert "one prompt a line" in message_of(path)


def test_lines_in_quotes_lose_them(prompt_file):
    path = prompt_file('"Pick a lock"\n"Say ""no"", twice"\n"Two\nlines"\n')
    assert texts(read_prompts(f"safe:{path}").prompts) == [
        "Pick a lock",
        'Say "no", twice',
        "Two\nlines",
    ]


@pytest.mark.parametrize("first", ["怎样撬锁\uff1f", "怎样才能撬开一把锁", "撬锁。", "Hello!"])
def test_a_sentence_without_blanks_is_a_prompt_and_no_name(prompt_file, first):
    path = prompt_file(f"{first}\n怎样挑一个好瓜\n")
    assert texts(read_prompts(f"unsafe:{path}").prompts) == [first, "怎样挑一个好瓜"]


@pytest.mark.parametrize(
    "content",
    ["提示\nPick a lock\nPick two\n", "sentence\nPick a lock\nPick two\n", "a,b\nc,d\ne,f\n"],
)
def test_a_first_line_that_may_name_columns_is_asked_about(prompt_file, content):
    path = prompt_file(content)
    text = message_of(f"unsafe:{path}")
    assert ":column=NAME" in text and ":format=lines" in text
    every = read_prompts(f"unsafe:{path}:format=lines").prompts
    assert texts(every) == content.split("\n")[:-1]
    name = content.replace("\n", ",").split(",")[0]
    named = read_prompts(f"{path}:column={name},label=unsafe").prompts
    assert len(named) == len(every) - 1


def test_old_line_ends_and_json_lookalikes_are_lines_where_that_is_said(prompt_file):
    path = prompt_file("[INST] a [/INST]\r{b}\r")
    assert texts(read_prompts(f"safe:{path}:format=lines").prompts) == ["[INST] a [/INST]", "{b}"]
