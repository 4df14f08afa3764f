"""What a file is packed, encoded and laid out in makes no difference to its rows; damage is one line."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_files import ROW, SYSTEM, USER, lines, message_of, parquet
from steermoe.errors import PromptError
from steermoe.prompts.containers import parse_rows
from steermoe.prompts.formats import read_prompts
from steermoe.prompts.layouts import PromptFormat
from steermoe.records import Label


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([ROW]),
        json.dumps([ROW], indent=2),
        lines(ROW),
        lines(ROW) + "\r\n\r\n",
        json.dumps(ROW, indent=2),
        "prompt,label\nName a river.,safe\n",
        "prompt,label\r\nName a river.,safe\r\n",
        '"prompt";"label"\n"Name a river.";"safe"',
        "\nLabel\tPROMPT \nsafe\tName a river.",
        parquet([ROW]),
    ],
    ids=[
        "json", "indented", "jsonl", "crlf-jsonl", "one-object", "csv", "crlf-csv", "semicolons", "tabs",
        "parquet",
    ],
)  # fmt: skip
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_a_row_reads_the_same_from_every_container(prompt_file, content, bom):
    data = content.encode() if isinstance(content, str) else content
    if data.startswith(b"PAR1"):
        bom = b""
    read = read_prompts(prompt_file(bom + data))
    assert read.format is PromptFormat.ROWS
    (prompt,) = read.prompts
    assert (prompt.prompt_id, prompt.label, prompt.messages) == ("row-0001", Label.SAFE, (USER,))
    assert (prompt.goal, prompt.source) == ("Name a river.", "my prompts.txt")
    assert (prompt.pair_id, prompt.category, prompt.split) == ("", "", None)


def test_text_comes_through_unchanged(prompt_file):
    text = '  Schreib "Grüße", 你好,\r\nünd 🦫\u2028done. '
    from_json = read_prompts(prompt_file(lines({"prompt": text, "label": "benign"})))
    quoted = '"' + text.replace('"', '""') + '"'
    from_csv = read_prompts(prompt_file(f"prompt,label\n{quoted},benign\n"))
    assert from_json.prompts[0].messages[0]["content"] == text
    assert from_csv.prompts[0].messages[0]["content"] == text


def test_a_csv_cell_may_be_longer_than_the_csv_module_allows_by_default(prompt_file):
    text = "word " * 50_000
    assert read_prompts(prompt_file(f"prompt,label\n{text},safe\n")).prompts[0].goal == text


def test_parquet_holds_messages_as_lists_of_structs_and_numbers_with_gaps(prompt_file):
    rows = [
        {"messages": [SYSTEM, USER], "label": "safe", "pair_id": 1.0},
        {"messages": [USER], "label": "unsafe", "pair_id": math.nan},
        {"messages": [USER], "label": "unsafe", "pair_id": None},
    ]
    prompts = read_prompts(prompt_file(parquet(rows))).prompts
    assert prompts[0].messages == (SYSTEM, USER)
    assert [prompt.pair_id for prompt in prompts] == ["1", "", ""]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n", "is empty"),
        (b"[]", "no rows"),
        (b"prompt,label\n", "no rows"),
        (parquet([ROW])[:0] + b"PAR1", "cut off"),
        (parquet([ROW])[:-9], "cut off"),
        (parquet([ROW])[:40] + parquet([ROW])[-4:], "Parquet"),
        (json.dumps([ROW, ROW]).encode()[:-20], "cut off: its JSON breaks off at line 1"),
        (b'[{"prompt": "a" "b"}]', "not valid JSON"),
        (b"[" * 100_000, "JSON"),
        ((lines(ROW, ROW) + '\n{"prompt": "x", "la').encode(), "row 3: is cut off"),
        ((lines(ROW, ROW) + "\n{'prompt': 1}\n" + lines(ROW)).encode(), "row 3: is not valid JSON"),
        ((lines(ROW) + '\n["a"]').encode(), "row 2: must be an object, not ['a']"),
        (b'prompt,label\nok,safe\n"never closed,safe\n', "row 2: is cut off inside a quoted cell"),
        (b"prompt,label\nok,safe\nhalf\n", "row 2, field 'label': is cut off"),
        (b"prompt,label\none, two,safe\n", "row 1: has 3 cells, but the header names 2"),
        (b'prompt,label\n"a" b,safe\n', "double the quotes"),
        (b"prompt,label,Prompt\na,safe,b\n", "two columns are named 'prompt'"),
        (b"prompt,label\na\x00b,safe\n", "is binary: character 15 is NUL"),
        ("prompt,label\né,safe\n".encode("latin-1"), "not UTF-8: byte 0xe9 at offset 13"),
        ("prompt,label\nsafe,é".encode()[:-1], "ends inside a character"),
        ("prompt,label\nx,safe".encode("utf-16")[:-1], "ends inside a character"),
        (b"\0\0\xfe\xff" + "prompt".encode("utf-32-be")[:-2], "ends inside a character"),
        (b"\x1f\x8b\x08rest", "compressed with gzip, and cut off or damaged"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x80\x04\x95pickle", "not UTF-8"),
        (b"just\nsome lines\n", "no known format"),
        (b'{"data": [1, 2]}', "no known format: its fields are ['data']"),
        (b"prompt,note\na,b\n", "has no 'label'"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(prompt_file, content, expected):
    path = prompt_file(content)
    text = message_of(path)
    assert text.startswith(str(path))
    assert expected in text


@pytest.mark.parametrize("make", [lambda rows: json.dumps(rows).encode(), parquet])
def test_wherever_such_a_file_is_cut_it_is_refused(prompt_file, make):
    data = make([ROW, ROW])
    step = max(1, len(data) // 60)
    for end in range(0, len(data), step):
        message_of(prompt_file(data[:end]))


@given(st.binary(max_size=60), st.sampled_from([b"", b"[", b"{", b"prompt,label\n", b"PAR1"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_rows_or_one_clear_line(data, beginning):
    try:
        assert parse_rows(beginning + data, "file")[0]
    except PromptError as error:
        assert str(error).startswith("file") and "\n" not in str(error)


def test_a_file_that_is_not_there_or_is_a_directory(tmp_path):
    assert "does not exist" in message_of(tmp_path / "none.csv")
    assert "is a directory" in message_of(tmp_path)
    assert "cannot be read" in message_of("nul\0byte")
