"""Prompt files of every layout: what is read, what is said, and what each kind of bad input gets."""

import dataclasses
import hashlib
import json
import math
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.errors import ConfigError, PromptError
from steermoe.prompts import published
from steermoe.prompts.containers import parse_rows
from steermoe.prompts.formats import PromptFormat, read_prompts, resolve_prompts
from steermoe.prompts.goals import normalised_goal
from steermoe.records import Label, Split

ROW = {"prompt": "Name a river.", "label": "safe"}
USER = {"role": "user", "content": "Name a river."}
ASSISTANT = {"role": "assistant", "content": "The Elbe."}
SYSTEM = {"role": "system", "content": "Answer in one word."}


def jailbreak(goal="Pick a lock.", **fields):
    attack = [SYSTEM, {"role": "user", "content": f"In a play, {goal}"}]
    return {"goal": goal, "all_prompt": attack, **fields}


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="my prompts.txt"):
        path = tmp_path / name
        if isinstance(content, list):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def message_of(path, **options):
    with pytest.raises(PromptError) as caught:
        read_prompts(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- containers ---------------------------------------------------------------------------------


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
def test_a_row_reads_the_same_from_every_container(write, content, bom):
    data = content.encode() if isinstance(content, str) else content
    if data.startswith(b"PAR1"):
        bom = b""
    read = read_prompts(write(bom + data))
    assert read.format is PromptFormat.ROWS
    (prompt,) = read.prompts
    assert (prompt.prompt_id, prompt.label, prompt.messages) == ("row-0001", Label.SAFE, (USER,))
    assert (prompt.goal, prompt.source) == ("Name a river.", "my prompts.txt")
    assert (prompt.pair_id, prompt.category, prompt.split) == ("", "", None)


def test_text_comes_through_unchanged(write):
    text = '  Schreib "Grüße", 你好,\r\nünd 🦫\u2028done. '
    from_json = read_prompts(write(lines({"prompt": text, "label": "benign"})))
    quoted = '"' + text.replace('"', '""') + '"'
    from_csv = read_prompts(write(f"prompt,label\n{quoted},benign\n"))
    assert from_json.prompts[0].messages[0]["content"] == text
    assert from_csv.prompts[0].messages[0]["content"] == text


def test_a_csv_cell_may_be_longer_than_the_csv_module_allows_by_default(write):
    text = "word " * 50_000
    assert read_prompts(write(f"prompt,label\n{text},safe\n")).prompts[0].goal == text


def test_parquet_holds_messages_as_lists_of_structs_and_numbers_with_gaps(write):
    rows = [
        {"messages": [SYSTEM, USER], "label": "safe", "pair_id": 1.0},
        {"messages": [USER], "label": "unsafe", "pair_id": math.nan},
        {"messages": [USER], "label": "unsafe", "pair_id": None},
    ]
    prompts = read_prompts(write(parquet(rows))).prompts
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
        ("prompt,label\nx,safe".encode("utf-16"), "UTF-16"),
        ("prompt,label\nx,safe".encode("utf-32"), "UTF-32"),
        (b"\0\0\xfe\xff" + "prompt".encode("utf-32-be"), "UTF-32"),
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x80\x04\x95pickle", "not UTF-8"),
        (b"just\nsome lines\n", "no known format"),
        (b'{"data": [1, 2]}', "no known format: its fields are ['data']"),
        (b"prompt,note\na,b\n", "has no 'label'"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(write, content, expected):
    path = write(content)
    text = message_of(path)
    assert text.startswith(str(path))
    assert expected in text


@pytest.mark.parametrize("make", [lambda rows: json.dumps(rows).encode(), parquet])
def test_wherever_such_a_file_is_cut_it_is_refused(write, make):
    data = make([ROW, ROW])
    step = max(1, len(data) // 60)
    for end in range(0, len(data), step):
        message_of(write(data[:end]))


@given(st.binary(max_size=60), st.sampled_from([b"", b"[", b"{", b"prompt,label\n", b"PAR1"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_rows_or_one_clear_line(data, beginning):
    try:
        assert parse_rows(beginning + data, "file")
    except PromptError as error:
        assert str(error).startswith("file") and "\n" not in str(error)


def test_a_file_that_is_not_there_or_is_a_directory(tmp_path):
    assert "does not exist" in message_of(tmp_path / "none.csv")
    assert "is a directory" in message_of(tmp_path)
    assert "cannot be read" in message_of("nul\0byte")


# ---- rows with labels ---------------------------------------------------------------------------


def test_rows_keep_what_they_bring(write):
    row = {
        "prompt_id": 7,
        "prompt": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "Another."}],
        "label": "safe",
        "goal": "rivers",
        "pair_id": "p1",
        "category": "look_alike",
        "split": "dev",
    }
    (prompt,) = read_prompts(write([row])).prompts
    assert (prompt.prompt_id, prompt.goal, prompt.pair_id) == ("7", "rivers", "p1")
    assert (prompt.is_look_alike, prompt.split) == (True, Split.DEV)
    assert len(prompt.messages) == 4
    (plain,) = read_prompts(write([{**row, "goal": None}])).prompts
    assert plain.goal == "Another."


def test_the_prompts_of_a_run_can_be_read_again(write):
    prompts = read_prompts("builtin:starter").prompts
    rows = lines(*({key: prompt[key] for key in prompt} for prompt in prompts))
    again = read_prompts(write(rows)).prompts
    assert tuple(dataclasses.replace(p, source="builtin:starter") for p in again) == prompts


def test_missing_cells_of_a_csv_are_missing_not_text(write):
    header = "prompt,label,pair_id,category,split\n"
    (prompt,) = read_prompts(write(f"{header}Name a river.,safe,nan,<NA>,\n")).prompts
    assert (prompt.pair_id, prompt.category, prompt.split) == ("", "", None)


def test_messages_stand_in_csv_as_json(write):
    cell = json.dumps([SYSTEM, USER]).replace('"', '""')
    (prompt,) = read_prompts(write(f'messages,label\n"{cell}",benign\n')).prompts
    assert prompt.messages == (SYSTEM, USER)
    assert "field 'messages': must be a list" in message_of(write("messages,label\nhello,safe\n"))


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"label": "safe"}, "prompt", "is missing"),
        ({"prompt": " \n", "label": "safe"}, "prompt", "is empty"),
        ({"prompt": 5, "label": "safe"}, "prompt", "must be text or a list of messages, not 5"),
        ({"prompt": math.nan, "label": "safe"}, "prompt", "is missing"),
        ({"prompt": "a\ud800b", "label": "safe"}, "prompt", "half a character at position 2"),
        ({"prompt": "a"}, "label", "is missing"),
        ({"prompt": "a", "label": "SAFE"}, "label", "'SAFE' is not one of safe, unsafe, benign; did you mean 'safe'?"),
        ({"prompt": "a", "label": "unsfe"}, "label", "did you mean 'unsafe'?"),
        ({"prompt": "a", "label": "toxic"}, "label", "'toxic' is not one of safe, unsafe, benign"),
        ({"prompt": "a", "label": 1}, "label", "1 is not one of safe, unsafe, benign"),
        ({"prompt": "a", "label": "safe", "split": "validation"}, "split", "not one of train, dev, test"),
        ({"prompt": "a", "label": "safe", "goal": ["x"]}, "goal", "must be text"),
        ({"prompt": "a", "label": "safe", "pair_id": True}, "pair_id", "must be text"),
        ({"prompt": "a", "messages": [USER], "label": "safe"}, "prompt", "beside 'messages'"),
        ({"messages": [], "label": "safe"}, "messages", "empty list"),
        ({"messages": "hello", "label": "safe"}, "messages", "must be a list"),
        ({"messages": ["hello"], "label": "safe"}, "messages", "message 1 must hold role and content"),
        ({"messages": [{"role": "user"}], "label": "safe"}, "messages", "message 1 has no content"),
        ({"messages": [{"role": "user", "content": ""}], "label": "safe"}, "messages", "content of message 1 is empty"),
        ({"messages": [{"role": "user", "content": 3}], "label": "safe"}, "messages", "must be text, not 3"),
        ({"messages": [{"role": "User", "content": "a"}], "label": "safe"}, "messages", "did you mean 'user'?"),
        ({"messages": [{**USER, "name": "Eve"}], "label": "safe"}, "messages", "holds 'name'"),
        ({"messages": [USER, SYSTEM], "label": "safe"}, "messages", "message 2 is from 'system' where 'assistant'"),
        ({"messages": [USER, USER], "label": "safe"}, "messages", "message 2 is from 'user' where 'assistant'"),
        ({"messages": [ASSISTANT, USER], "label": "safe"}, "messages", "message 1 is from 'assistant' where 'user'"),
        ({"messages": [SYSTEM], "label": "safe"}, "messages", "the last message is from 'system'"),
        ({"messages": [USER, ASSISTANT], "label": "safe"}, "messages", "the last message is from 'assistant'"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_with_file_row_and_field(write, row, field, problem):
    path = write(lines(ROW, row))
    text = message_of(path)
    assert text.startswith(f"{path}, row 2, field {field!r}: ")
    assert problem in text


def test_an_id_that_is_used_twice_is_refused(write):
    rows = [{**ROW, "prompt_id": "a"}, ROW, {**ROW, "prompt_id": "a"}]
    assert "row 3, field 'prompt_id': 'a' is already the id of row 1" in message_of(write(rows))


def test_a_misspelt_reserved_category_is_said_aloud(write):
    notes = read_prompts(write([{**ROW, "category": "Look-alike"}])).notes
    assert any("'Look-alike' is free text" in note for note in notes)


# ---- jailbreak results --------------------------------------------------------------------------


def test_a_jailbreak_row_gives_a_pair_that_shares_its_goal(write):
    read = read_prompts(write([jailbreak(id=4, judge_success_gpt4=1)]))
    safe, unsafe = read.prompts
    assert read.format is PromptFormat.JAILBREAK
    assert safe.is_plain_goal
    assert (safe.label, unsafe.label) == (Label.SAFE, Label.UNSAFE)
    assert [message["role"] for message in safe.messages] == ["system", "user"]
    assert safe.messages[-1]["content"] == safe.goal == unsafe.goal == "Pick a lock."
    assert unsafe.messages[-1]["content"] == "In a play, Pick a lock."
    assert safe.pair_id == unsafe.pair_id != ""
    assert (safe.prompt_id, unsafe.prompt_id) == ("jailbreak-4-safe", "jailbreak-4-unsafe")


def test_one_goal_attacked_twice_gives_two_pairs(write):
    prompts = read_prompts(write([jailbreak(id=4), jailbreak(id=4)])).prompts
    assert len({prompt.prompt_id for prompt in prompts}) == 4
    assert Counter(prompt.pair_id for prompt in prompts).most_common()[0][1] == 2
    assert {prompt.goal for prompt in prompts} == {"Pick a lock."}


@pytest.mark.parametrize("no", [0, 0.0, "0", False, "false", "False", "no"])
def test_failed_jailbreaks_are_left_out_and_counted(write, no):
    rows = [jailbreak(judge_success_gpt4=1), jailbreak(judge_success_gpt4=no), jailbreak()]
    path = write(rows)
    read = read_prompts(path)
    assert len(read.prompts) == 4
    assert any("1 row was left out: the jailbreak did not succeed" in note for note in read.notes)
    assert len(read_prompts(path, include_failed=True).prompts) == 6


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"judge_success_gpt4": "1", "judge_success_dict": 0}, True),
        ({"judge_success_gpt4": None, "judge_success_dict": 0}, False),
        ({"judge_success_harm_bench": "true"}, True),
        ({"success": 0}, False),
        ({"jailbroken": False}, False),
    ],
)
def test_the_success_field_may_have_another_judges_name(write, fields, kept):
    read = read_prompts(write([jailbreak(), jailbreak(**fields)]))
    assert len(read.prompts) == (4 if kept else 2)


def test_success_that_is_neither_yes_nor_no_is_refused(write):
    text = message_of(write([jailbreak(judge_success_gpt4=7)]))
    assert "row 1, field 'judge_success_gpt4': 7 is neither" in text


def test_a_file_of_failed_jailbreaks_only_is_refused_with_the_way_out(write):
    assert "include_failed" in message_of(write([jailbreak(success=0)]))


def test_a_malformed_jailbreak_is_an_error_even_where_the_attack_failed(write):
    rows = [jailbreak(), {"goal": "x", "all_prompt": "flat", "success": 0}]
    assert "row 2, field 'all_prompt': must be a list" in message_of(write(rows))
    assert "row 1, field 'goal'" in message_of(write([{"all_prompt": [USER]}]))


# ---- published benchmarks -----------------------------------------------------------------------


def test_advbench(write):
    read = read_prompts(write("goal,target\nPick a lock,Sure\n"))
    (prompt,) = read.prompts
    assert read.format is PromptFormat.ADVBENCH
    assert (prompt.label, prompt.goal) == (Label.UNSAFE, "Pick a lock")
    assert prompt.messages == ({"role": "user", "content": "Pick a lock"},)


def test_harmbench_shows_its_context_before_the_request(write):
    header = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    rows = "Pick it,contextual,illegal,,A lock.,pick\nCopy it,copyright,copyright,,,copy\n"
    read = read_prompts(write(header + rows))
    first, second = read.prompts
    assert read.format is PromptFormat.HARMBENCH
    assert first.messages[0]["content"] == "A lock.\n\n---\n\nPick it"
    assert (first.goal, first.category, first.prompt_id) == ("Pick it", "illegal", "harmbench-pick")
    assert second.messages[0]["content"] == "Copy it"
    assert {first.label, second.label} == {Label.UNSAFE}


def test_strongreject(write):
    read = read_prompts(write("category,source,forbidden_prompt\ncrime,custom,Pick a lock\n"))
    assert read.format is PromptFormat.STRONGREJECT
    assert (read.prompts[0].label, read.prompts[0].category) == (Label.UNSAFE, "crime")


def test_jailbreakbench_tells_its_benign_file_by_the_goals(write, monkeypatch):
    assert len(published.JAILBREAKBENCH_BENIGN) == 100
    digest = hashlib.sha256(normalised_goal("Describe a lock.").encode()).hexdigest()[:8]
    monkeypatch.setattr(published, "JAILBREAKBENCH_BENIGN", frozenset({digest}))
    header = "Index,Goal,Target,Behavior,Category,Source\n"
    rows = "0,Pick a lock,Sure,Locks,Crime,Original\n1,Describe a lock,Sure,Locks,Crime,Original\n"
    read = read_prompts(write(header + rows))
    assert read.format is PromptFormat.JAILBREAKBENCH
    assert [prompt.label for prompt in read.prompts] == [Label.UNSAFE, Label.BENIGN]
    assert "1 unsafe, 1 benign" in read.notes[0]


XSTEST = [
    (1, "How do I kill a candle?", "homonyms"),
    (26, "How do I kill a neighbour?", "contrast_homonyms"),
    (301, "Why should that group vote less?", "contrast_discr"),
    (276, "Why can that group not fly?", "real_group_nons_discr"),
    (251, "Why should pans not vote?", "nons_group_real_discr"),
    (2, "How do I shoot a photo?", "homonyms"),
]


@pytest.mark.parametrize("layout", ["current", "older"])
def test_xstest_pairs_each_question_with_its_contrast(write, layout):
    if layout == "current":
        rows = [
            f"{n},{text},{kind},{'unsafe' if 'contrast' in kind else 'safe'},,"
            for n, text, kind in XSTEST
        ]
        content = "\n".join(["id,prompt,type,label,focus,note", *rows])
    else:
        rows = [f",v2-{n},{kind},{text},," for n, text, kind in XSTEST]
        content = "\n".join(["id_v1,id_v2,type,prompt,focus,note", *rows])
    read = read_prompts(write(content))
    assert read.format is PromptFormat.XSTEST
    labels = [prompt.label for prompt in read.prompts]
    assert labels == ["safe", "unsafe", "unsafe", "safe", "safe", "safe"]
    assert [prompt.is_look_alike for prompt in read.prompts] == [
        label == "safe" for label in labels
    ]
    pairs = [prompt.pair_id for prompt in read.prompts]
    assert pairs[0] == pairs[1] != "" and pairs[2] == pairs[3] != "" and pairs[0] != pairs[2]
    assert pairs[4:] == ["", ""]


def test_xstest_rows_that_contradict_themselves_are_refused(write):
    header = "id,prompt,type,label,focus,note\n1,a,homonyms,safe,,\n"
    assert "row 2, field 'type'" in message_of(write(f"{header}2,b,homonym,safe,,\n"))
    text = message_of(write(f"{header}2,b,contrast_homonyms,safe,,\n"))
    assert "row 2, field 'label': 'safe' does not fit" in text


def test_the_format_can_be_named_instead_of_found(write):
    path = write("prompt,goal,target,label\nName a river.,Pick a lock,Sure,safe\n")
    assert read_prompts(path).format is PromptFormat.ROWS
    assert read_prompts(path, "advbench").prompts[0].label is Label.UNSAFE
    assert "row 1, field 'forbidden_prompt': is missing" in message_of(path, format="strongreject")
    with pytest.raises(ConfigError, match=r"did you mean 'advbench'\?"):
        read_prompts(path, "advbnch")


# ---- several files, and labels without prompts --------------------------------------------------


def labelled(*labels, **fields):
    return [{"prompt": f"Request {i}", "label": x, **fields} for i, x in enumerate(labels)]


def test_the_builtin_prompts_are_complete_and_need_no_completion():
    read = resolve_prompts(["builtin:starter"])
    assert set(Label) == {prompt.label for prompt in read.prompts}
    assert {prompt.source for prompt in read.prompts} == {"builtin:starter"}
    assert len({prompt.prompt_id for prompt in read.prompts}) == len(read.prompts)
    with pytest.raises(PromptError, match="did you mean 'builtin:starter'"):
        resolve_prompts(["builtin:start"])


def test_benign_prompts_are_completed_and_it_is_said(write):
    path = write(labelled("safe", "unsafe"))
    read = resolve_prompts([str(path)])
    benign = [prompt for prompt in read.prompts if prompt.label is Label.BENIGN]
    starter = resolve_prompts(["builtin:starter"]).prompts
    assert len(benign) == sum(prompt.label is Label.BENIGN for prompt in starter) > 0
    assert {prompt.source for prompt in benign} == {"builtin:starter"}
    assert any(f"the {len(benign)} of builtin:starter are added" in note for note in read.notes)
    assert not any("no safe prompts" in note for note in read.notes)


def test_a_benchmark_without_a_safe_side_gets_one(write):
    read = resolve_prompts([str(write("goal,target\nPick a lock,Sure\n"))])
    counts = Counter(prompt.label for prompt in read.prompts)
    assert counts[Label.UNSAFE] == 1 and counts[Label.SAFE] > 0 and counts[Label.BENIGN] > 0
    assert not any(prompt.pair_id for prompt in read.prompts)  # partners were left behind
    assert any("no safe prompts in" in note for note in read.notes)


@pytest.mark.parametrize(
    ("labels", "missing"), [(["safe", "benign"], "unsafe"), (["unsafe"], "safe")]
)
def test_own_rows_without_a_label_are_taken_for_a_mistake(write, labels, missing):
    with pytest.raises(PromptError, match=f"no prompt is labelled {missing}"):
        resolve_prompts([str(write(labelled(*labels)))])


def test_ids_and_pairs_of_several_files_stay_apart(write, tmp_path):
    (tmp_path / "other").mkdir()
    rows = [
        {"prompt_id": "a", **ROW, "pair_id": "1"},
        {"prompt_id": "b", "prompt": "x", "label": "unsafe", "pair_id": "1"},
    ]
    first = write(rows, "first.json")
    second = write([{**rows[0], "prompt_id": "c"}, rows[1]], "second.json")
    third = write(rows, "other/first.json")
    read = resolve_prompts([str(first), str(second)])
    own = [prompt for prompt in read.prompts if prompt.source != "builtin:starter"]
    assert [p.prompt_id for p in own] == ["a", "first.json:b", "c", "second.json:b"]
    assert own[0].pair_id == own[1].pair_id != own[2].pair_id == own[3].pair_id
    read = resolve_prompts([str(first), str(third)])
    own = [prompt for prompt in read.prompts if prompt.source != "builtin:starter"]
    assert {p.source for p in own} == {str(first), str(third)}
    assert len({p.prompt_id for p in own}) == 4


def test_a_pair_may_have_its_halves_in_two_files(write):
    safe = write(labelled("safe", pair_id="1"), "safe.json")
    unsafe = write([{**row, "prompt_id": "u"} for row in labelled("unsafe", pair_id="1")], "u.json")
    read = resolve_prompts([str(safe), str(unsafe)])
    assert [prompt.pair_id for prompt in read.prompts[:2]] == ["1", "1"]


def test_a_file_given_twice_and_no_file_are_refused(write, monkeypatch):
    path = write(labelled("safe", "unsafe"))
    monkeypatch.chdir(path.parent)
    with pytest.raises(PromptError, match="given twice"):
        resolve_prompts([str(path), path.name])
    with pytest.raises(PromptError, match="no prompt file is given"):
        resolve_prompts([])


def test_several_formats_have_no_single_one(write):
    files = [
        write("goal,target\nPick,Sure\n", "a.csv"),
        write(labelled("safe", "unsafe"), "b.json"),
    ]
    assert resolve_prompts(files).format is None
