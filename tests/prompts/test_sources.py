"""What is written for a prompt file: its path, and how it is to be read."""

import unicodedata

import pytest

from prompt_files import as_csv, message_of, texts
from steermoe.errors import ConfigError, PromptError
from steermoe.prompts.formats import read_prompts
from steermoe.prompts.sources import content_hash, parse_source
from steermoe.records import Label


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path", "label", "columns"),
    [
        ("a.csv", "a.csv", None, {}),
        ("unsafe:a.csv", "a.csv", "unsafe", {}),
        ("a.csv:label=benign", "a.csv", "benign", {}),
        ("a.csv:column=text", "a.csv", None, {"prompt": "text"}),
        ("a.csv:column=My Text,goal=G", "a.csv", None, {"prompt": "my text", "goal": "g"}),
        ("safe:a.csv:column=a:b", "a.csv", "safe", {"prompt": "a:b"}),
        (r"C:\x y\a.csv", r"C:\x y\a.csv", None, {}),
        (r"C:\a.csv:column=text", r"C:\a.csv", None, {"prompt": "text"}),
        (r"unsafe:C:\a.csv", r"C:\a.csv", "unsafe", {}),
        ("https://x/y=z.csv", "https://x/y=z.csv", None, {}),
        ("builtin:starter", "builtin:starter", None, {}),
        ("Unsafe:a.csv", "a.csv", "unsafe", {}),
        ("BENIGN: a.csv", "a.csv", "benign", {}),
        (
            'a.csv:column="Prompt, English",goal=G',
            "a.csv",
            None,
            {"prompt": "prompt, english", "goal": "g"},
        ),
        (
            'a.csv:goal=g,column="The ""best"" one"',
            "a.csv",
            None,
            {"goal": "g", "prompt": 'the "best" one'},
        ),
        ('a.csv:column=5" nails,goal="g"h', "a.csv", None, {"prompt": '5" nails', "goal": '"g"h'}),
    ],
)
def test_a_source_is_taken_apart(here, text, path, label, columns):
    found = parse_source(text)
    assert (found.path, found.label, found.columns) == (path, label, columns)


@pytest.mark.parametrize("name", ["unsafe:a.csv", "a.csv:column=text", "b:label=safe"])
def test_a_path_that_exists_as_it_stands_is_that_file(here, name):
    (here / name).write_text("prompt,label\none,benign\n")
    assert parse_source(name).path == name
    (prompt,) = read_prompts(name).prompts
    assert (prompt.label, prompt.source) == (Label.BENIGN, name)


def test_options_begin_behind_the_file_that_exists(here):
    (here / "a:goal=x").write_text("text\none\n")
    found = parse_source("a:goal=x:column=text,label=safe")
    assert (found.path, found.columns, found.label) == ("a:goal=x", {"prompt": "text"}, Label.SAFE)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a.csv:colum=text", "no option 'colum'; did you mean 'column'?"),
        ("a.csv:column=", "option 'column' has no value"),
        ("a.csv:column=a,column=b", "'column' is given twice"),
        ("a.csv:column=a,prompt=b", "'prompt' is given twice"),
        ("a.csv:format=rows,format=rows", "'format' is given twice"),
        ("unsafe:a.csv:label=safe", "two labels are given, unsafe and safe"),
        ("unsafe:a.csv:unsafe=1", "say one or the other"),
        ("unsafe:a.csv:label=is_bad", "say one or the other"),
        ("unsafe:", "names no file"),
        ("", "'' names no file"),
        ("unsafe:b.csv", "b.csv does not exist"),
        ("harmful:a.csv", "begins with no label; write 'unsafe:a.csv'"),
        ("Harmless:b.csv", "begins with no label; write 'safe:b.csv' or 'benign:b.csv'"),
        (
            "evil:a.csv",
            "'evil' of 'evil:a.csv' is no label; write 'unsafe:a.csv', 'safe:a.csv' or ",
        ),
        ("evil:b.csv", "evil:b.csv does not exist"),
        ("unsafe\uff1ab.csv", "of full width; write 'unsafe:b.csv'"),
        ("harmful\uff1aa.csv", "write 'unsafe:a.csv'"),
        ("a.csv\uff1acolumn=text", "of full width; write 'a.csv:column=text'"),
        ("a\uff1ab\uff1dc.csv", "a\uff1ab\uff1dc.csv does not exist"),
        ("a.csv:column=Prompt, English", "in quotes: 'a.csv:column=\"NAME, WITH COMMA\"'"),
        ("a.csv:label=x,unsafe=no, fine", "in quotes"),
        ('a.csv:column="Prompt, English', "in quotes"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(here, text, problem):
    (here / "a.csv").write_text("text\none\n")
    assert problem in message_of(text)


def test_the_home_directory_is_found(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "a.csv").write_text("prompt,label\none,safe\n")
    assert texts(read_prompts("~/a.csv").prompts) == ["one"]
    assert texts(read_prompts("~/a.csv:ignore=label,label=benign").prompts) == ["one"]


def test_a_name_that_is_no_utf8_is_refused(here):
    assert "not UTF-8" in message_of("a\udcff.csv")


# ---- what the options do ------------------------------------------------------------------------------


ROWS = as_csv(
    ["my text", "Kind", "Topic", "who", "bad"],
    ["one", "x", "look_alike", "Be brief.", "1"],
    ["two", "y", "crime", "Be brief.", "0"],
)


def test_columns_words_and_what_to_leave_out(prompt_file):
    path = prompt_file(ROWS)
    options = "column=my text,label=bad,unsafe=1,safe=0,category=topic,system=who,ignore=kind"
    first, second = read_prompts(f"{path}:{options}").prompts
    assert (first.label, second.label) == (Label.UNSAFE, Label.SAFE)
    assert (first.goal, first.category, first.messages[0]["content"]) == (
        "one",
        "look_alike",
        "Be brief.",
    )


def test_what_is_left_out_or_not_meant_is_not_read(prompt_file):
    row = {"prompt": "a", "label": "safe", "goal": "g", "category": "c", "pair_id": "p", "id": "i"}
    path = prompt_file([{**row, "topic": "t"}])
    everything = ",".join(f"ignore={name}" for name in ("goal", "category", "pair_id", "id"))
    (prompt,) = read_prompts(f"{path}:{everything}").prompts
    assert (prompt.goal, prompt.category, prompt.pair_id) == ("a", "", "")
    assert prompt.prompt_id == "row-0001"
    (prompt,) = read_prompts(f"{path}:category=topic,goal=category").prompts
    assert (prompt.category, prompt.goal) == ("t", "c")
    (prompt,) = read_prompts(f"{path}:column=category").prompts
    assert (texts([prompt]), prompt.category, prompt.goal) == (["c"], "", "g")


def test_words_of_a_label_that_are_not_declared_keep_their_meaning_or_are_refused(prompt_file):
    path = prompt_file(as_csv(["prompt", "label"], ["a", "2"], ["b", "safe"], ["c", "toxic"]))
    assert "'2' is not one of" in message_of(f"{path}:unsafe=toxic")
    assert "no row has 'toxc'" in message_of(f"{path}:unsafe=toxic,benign=2,safe=toxc")
    read = read_prompts(f"{path}:unsafe=toxic,benign=2")
    assert [prompt.label for prompt in read.prompts] == ["benign", "safe", "unsafe"]
    assert any("'2' as benign (1 row)" in note for note in read.notes)


def test_a_category_with_a_meaning_may_be_given_to_all_rows(prompt_file):
    path = prompt_file(as_csv(["prompt", "category"], ["a", "privacy"]))
    (prompt,) = read_prompts(f"safe:{path}:category=look_alike").prompts
    assert prompt.is_look_alike


def test_a_name_or_a_word_may_hold_a_comma(prompt_file):
    path = prompt_file(as_csv(["Prompt, English", "kind"], ["a", "no, fine"], ["b", 'a "yes"']))
    options = 'column="Prompt, English",label=kind,safe="no, fine",unsafe="a ""yes"""'
    read = read_prompts(f"{path}:{options}")
    assert [(prompt.goal, prompt.label) for prompt in read.prompts] == [
        ("a", Label.SAFE),
        ("b", Label.UNSAFE),
    ]


def test_a_label_for_all_rows_that_the_file_contradicts_is_refused(prompt_file):
    path = prompt_file(as_csv(["prompt", "label"], ["a", "harmful"], ["b", "safe"]))
    assert "'label' seems to hold labels, and not unsafe alone" in message_of(f"unsafe:{path}")
    read = read_prompts(f"unsafe:{path}:ignore=label")
    assert {prompt.label for prompt in read.prompts} == {Label.UNSAFE}
    path = prompt_file(as_csv(["prompt", "label"], ["a", "harmful"], ["b", "Unsafe"]))
    assert len(read_prompts(f"unsafe:{path}").prompts) == 2


def test_a_label_for_a_benchmark_must_be_its_own(prompt_file):
    path = prompt_file("goal,target\nPick a lock,Sure\n")
    assert read_prompts(f"unsafe:{path}").prompts == read_prompts(path).prompts
    assert "holds unsafe prompts, not safe ones alone" in message_of(f"safe:{path}")
    (prompt,) = read_prompts(f"safe:{path}:format=rows").prompts
    assert (prompt.label, prompt.goal) == (Label.SAFE, "Pick a lock")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("column=nothing", "no column 'nothing'"),
        ("column=goals", "no column 'goals'; did you mean 'goal'?"),
        ("ignore=nothing", "no column 'nothing'"),
        ("category=look_alike", "where category cannot be given"),
        ("unsafe=1", "where words cannot be given"),
        ("success=target", "where success cannot be given"),
    ],
)
def test_an_option_that_would_be_void_is_refused(prompt_file, options, problem):
    path = prompt_file("goal,target\nPick a lock,Sure\n")
    assert problem in message_of(f"{path}:{options}")


def test_an_unknown_format_of_one_file_is_refused(prompt_file):
    with pytest.raises(ConfigError, match="did you mean 'rows'"):
        read_prompts(f"{prompt_file(ROWS)}:format=row")


# ---- one file by several names ------------------------------------------------------------------------


def test_a_files_hash_goes_by_content_and_reading_not_by_its_path(here):
    (here / "a.csv").write_text(ROWS)
    (here / "b.csv").write_text(ROWS)
    plain = content_hash("a.csv")
    assert plain == content_hash("./a.csv") == content_hash(here / "b.csv")
    both = content_hash("a.csv:column=my text,label=safe")
    assert both == content_hash("safe:b.csv:column=my text") != plain
    (here / "b.csv").write_text(ROWS + " ")
    assert content_hash("b.csv") != plain
    with pytest.raises(PromptError, match="does not exist"):
        content_hash("c.csv")


# ---- one word in two spellings --------------------------------------------------------------------------


@pytest.mark.parametrize("of_file", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_an_accent_apart_from_its_letter_makes_no_other_name_or_word(
    prompt_file, of_file, typed, kind
):
    def put(form, text):
        return unicodedata.normalize(form, text)

    names = [put(of_file, "プロンプト"), put(of_file, "Größe"), "note"]
    row = ["Öffne es", put(of_file, "gefährlich"), "x"]
    content = as_csv(names, row) if kind == "csv" else [dict(zip(names, row, strict=True))]
    options = put(typed, "column=プロンプト,label=Größe,unsafe=Gefährlich,ignore=note")
    (prompt,) = read_prompts(f"{prompt_file(content)}:{options}").prompts
    assert (prompt.label, texts([prompt])) == (Label.UNSAFE, ["Öffne es"])
