"""What a file is packed, encoded and laid out in makes no difference to its rows; damage is one line."""

import bz2
import gzip
import io
import json
import lzma
import math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_files import ROW, SYSTEM, USER, arrow, lines, message_of, parquet, texts
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
        (
            (json.dumps(ROW, indent=1) + "\n" + lines(ROW)).encode(),
            "row 1: does not end in its line",
        ),
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
        path = prompt_file(data[:end])
        assert message_of(path).startswith(str(path))


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


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    "gz twice": lambda data: gzip.compress(gzip.compress(data)),
}
THREE = [{"prompt": f"Name river {i}.", "label": "safe"} for i in range(3)]


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("data", [lines(*THREE).encode(), parquet(THREE)], ids=["jsonl", "parquet"])
def test_a_packed_file_is_unpacked_and_it_is_said(prompt_file, packer, data):
    read = read_prompts(prompt_file(PACKERS[packer](data)))
    assert texts(read.prompts) == ["Name river 0.", "Name river 1.", "Name river 2."]
    assert any("unpacked" in note for note in read.notes)


def test_a_stream_of_zstandard_is_unpacked(prompt_file):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:  # of unknown length, in several writes
        for row in THREE:
            stream.write(json.dumps(row).encode() + b"\n")
    assert len(read_prompts(prompt_file(sink.getvalue().to_pybytes())).prompts) == 3


@pytest.mark.parametrize("packer", PACKERS)
def test_a_packed_file_that_is_cut_is_refused(prompt_file, packer):
    data = PACKERS[packer](lines(*THREE).encode())
    for end in range(8, len(data) - 1, 7):
        assert "cut off or damaged" in message_of(prompt_file(data[:end]))


@pytest.mark.parametrize("option", ["encoding=cp1252", "format=lines"])
def test_what_is_said_of_a_text_is_refused_of_a_table(prompt_file, option):
    text = message_of(f"{prompt_file(parquet(THREE))}:{option},label=safe")
    assert f"leave {option} away" in text


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_arrow(prompt_file, stream):
    data = arrow(THREE, stream=stream)
    assert len(read_prompts(prompt_file(data)).prompts) == 3
    for end in range(8, len(data) - 1, 50):
        message_of(prompt_file(data[:end]))


def test_an_arrow_stream_that_ends_between_two_batches_is_cut_off_all_the_same(prompt_file):
    table = pa.Table.from_pylist(THREE)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
        writer.write_table(table, max_chunksize=1)
        half = sink.tell()
        writer.write_table(table, max_chunksize=1)
    data = sink.getvalue().to_pybytes()
    assert len(read_prompts(prompt_file(data)).prompts) == 9
    assert (
        pa.ipc.open_stream(data[:half]).read_all().num_rows == 6
    )  # what would have been read of it
    assert "cut off" in message_of(prompt_file(data[:half]))


def test_arrow_streams_one_after_the_other_are_all_read(prompt_file):
    parts = [arrow([{"prompt": f"p{i}", "label": "safe"}], stream=True) for i in range(3)]
    read = read_prompts(prompt_file(b"".join(parts)))
    assert texts(read.prompts) == ["p0", "p1", "p2"]
    other = arrow([{"text": "p3", "label": "safe"}], stream=True)
    assert "columns differ" in message_of(prompt_file(parts[0] + other))
    assert "cut off" in message_of(prompt_file(parts[0] + parts[1][:-4]))


@pytest.mark.parametrize("make", [parquet, lambda rows: arrow(rows, stream=False)])
def test_files_that_were_joined_are_refused_where_one_would_be_read(prompt_file, make):
    parts = [make([{"prompt": f"p{i}", "label": "safe"}]) for i in range(2)]
    assert "several files one after the other" in message_of(prompt_file(b"".join(parts)))


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (pa.array([1, None], pa.timestamp("s", tz="Mars/Olympus")), "Mars/Olympus"),
        (pa.array([10**15, None], pa.timestamp("s")), "timestamp"),
        (pa.array([{"at": 10**15}, None], pa.struct([("at", pa.timestamp("s"))])), "struct"),
    ],
    ids=["zone", "year", "nested"],
)
def test_what_python_cannot_hold_is_refused_only_in_a_column_that_is_read(
    prompt_file, times, words
):
    table = pa.table({"prompt": ["one", "two"], "label": ["safe", "safe"], "made": times})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    for data in (sink.getvalue(), stream.getvalue()):
        path = prompt_file(data)
        assert texts(read_prompts(path).prompts) == ["one", "two"]
        message = message_of(f"{path}:column=made")
        assert "row 1, field 'made': must be text" in message and words in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_a_text_is_encoded(prompt_file, encoding):
    read = read_prompts(prompt_file("prompt\tlabel\nGrüße, 你好\tsafe\n".encode(encoding)))
    assert texts(read.prompts) == ["Grüße, 你好"]
    assert any(encoding in note for note in read.notes)


def test_an_encoding_without_a_mark_is_not_guessed_but_may_be_given(prompt_file):
    path = prompt_file("prompt,label\ncafé €5 ½,safe\n".encode("cp1252"))
    assert f"'{path}:encoding=cp1252'" in message_of(path)
    assert texts(read_prompts(f"{path}:encoding=cp1252").prompts) == ["café €5 ½"]
    assert "no encoding 'cp1252x'" in message_of(f"{path}:encoding=cp1252x")
    assert "is not ascii" in message_of(f"{path}:encoding=ascii")
    assert "no encoding 'base64'" in message_of(f"{path}:encoding=base64")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"SQLite format 3\0", "database"),
        (b"%PDF-1.7\n\xe2\xe3", "PDF"),
        (b"x" * 257 + b"ustar" + b"\0" * 250, "tar archive"),
        (gzip.compress(b"x" * 257 + b"ustar" + b"\0" * 250, mtime=0), "tar archive"),
    ],
)
def test_archives_and_documents_are_refused_by_name(prompt_file, data, what):
    assert what in message_of(prompt_file(data))


# ---- shapes of JSON: each holds the same three rows ---------------------------------------------------


FRAME = pd.DataFrame(THREE)
SHAPES = {
    "records": FRAME.to_json(orient="records"),
    "lines": FRAME.to_json(orient="records", lines=True),
    "columns": FRAME.to_json(),
    "index": FRAME.to_json(orient="index"),
    "split": FRAME.to_json(orient="split"),
    "table": FRAME.to_json(orient="table"),
    "dict of lists": json.dumps(FRAME.to_dict("list")),
    "under a key": json.dumps({"version": 2, "data": THREE}),
    "by name": json.dumps({f"case {i}": row for i, row in enumerate(THREE)}),
    "by label": json.dumps({"safe": [row["prompt"] for row in THREE]}),
    "by a usual word": json.dumps({"harmless": [{"text": row["prompt"]} for row in THREE]}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_found_in_whatever_a_data_frame_writes(prompt_file, shape):
    read = read_prompts(prompt_file(SHAPES[shape]))
    assert texts(read.prompts) == ["Name river 0.", "Name river 1.", "Name river 2."]
    assert {prompt.label for prompt in read.prompts} == {Label.SAFE}


def test_what_stands_beside_the_rows_is_named(prompt_file):
    notes = read_prompts(prompt_file(SHAPES["under a key"])).notes
    assert any("not read" in note and "'version'" in note for note in notes)


def test_lists_under_the_names_of_splits_are_the_splits(prompt_file):
    content = json.dumps({"train": THREE[:2], "validation": [THREE[2]]})
    assert [p.split for p in read_prompts(prompt_file(content)).prompts] == [
        "train",
        "train",
        "dev",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"first": THREE, "second": THREE}, "several lists, 'first', 'second'"),
        (
            FRAME.to_dict("split") | {"data": [["only one cell"]]},
            "row 1: must be a list of 2 cells",
        ),
        ({"prompt": {"0": "a", "1": "b"}, "label": {"0": "safe"}}, "'prompt' has 2 rows"),
        ({"prompt": ["a", "b"], "label": ["safe"]}, "'prompt' has 2 rows"),
        ([["a", "safe"]], "without names of columns"),
        ({"a": {"b": 1}, "c": {"b": 2}}, "no known format"),
        ([{"prompt": "a", "label": "safe"}, "b"], "row 2: must be an object, not 'b'"),
        ({"unsafe": [{"prompt": "a", "label": "safe"}]}, "has a 'label' of its own"),
        ({"unsafe": [3]}, "row 1 under 'unsafe': must be an object or a text, not 3"),
    ],
)
def test_other_shapes_are_refused(prompt_file, content, expected):
    assert expected in message_of(prompt_file(json.dumps(content)))


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": "a", "prompt": "b", "label": "safe"}',
        '[{"prompt": "a", "label": "safe", "prompt": "b"}]',
        '{"prompt": "a", "label": "safe"}\n{"prompt": "a", "prompt": "b", "label": "safe"}',
        '[{"prompt": [{"role": "user", "content": "a", "content": "b"}], "label": "safe"}]',
    ],
)
def test_a_key_that_is_given_twice_is_refused_where_json_would_drop_one(prompt_file, content):
    assert "twice" in message_of(prompt_file(content))


def test_one_row_of_messages_alone_is_a_row_and_not_a_list_of_rows(prompt_file):
    for content in (
        json.dumps({"messages": [USER], "label": "safe"}),
        json.dumps({"messages": [SYSTEM, USER]}),
        json.dumps([SYSTEM, USER]),
        json.dumps([[SYSTEM, USER]]),
    ):
        (prompt,) = read_prompts(f"safe:{prompt_file(content)}").prompts
        assert prompt.messages[-1] == USER
