"""A thousand files as people might have them: no traceback, no row and no column dropped without a word."""

import re
from pathlib import Path

from hypothesis import HealthCheck, assume, event, given, note, settings

import generated_files
from generated_files import GeneratedFile, Records
from steermoe.errors import SteerMoEError
from steermoe.prompts.doubts import doubts_about
from steermoe.prompts.formats import ReadPrompts, read_prompts
from steermoe.prompts.layouts import PromptFormat
from steermoe.prompts.rows import is_blank
from steermoe.prompts.splits import assign_splits

MANY = settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
    ],
)
JSON_KINDS = ("json", "jsonl", "columns", "lists", "under a key", "parquet", "arrow", "json.xz")


def source_of(file: GeneratedFile, folder: Path) -> str:
    path = folder / "prompts"
    path.write_bytes(file.data)
    before, behind = file.options
    return f"{before}{path}{behind}"


def left_out(read: ReadPrompts) -> int:
    """Rows that the notes say are no prompts."""
    found = (
        re.search(r": (\d+) (?:rows?|transcripts?) (?:was |were )?left out", n) for n in read.notes
    )
    return sum(int(match[1]) for match in found if match)


def columns_said(read: ReadPrompts) -> tuple[set[str], set[str]]:
    """Columns that the notes name as read and as not read."""
    both: list[set[str]] = []
    for what in ("columns read: ", "columns not read: "):
        said = [n.split(what)[1] for n in read.notes if what in n]
        both.append(set(re.findall(r"'([^']*)'", said[0])) if said else set())
    return both[0], both[1]


@given(generated_files.files())
@MANY
def test_any_file_is_read_or_refused_in_one_line(tmp_path: Path, file: GeneratedFile) -> None:
    source = source_of(file, tmp_path)
    note(f"{file.kind} {source} {file.data!r}")
    try:
        prompts = assign_splits(read_prompts(source).prompts)
    except SteerMoEError as error:
        assert "\n" not in str(error) and len(str(error)) < 1200
        event("refused")
        return
    event("read")
    assert prompts
    doubts_about(prompts)
    for prompt in prompts:
        assert prompt.split and prompt.goal.strip() and prompt.messages[-1]["role"] == "user"
        assert all(turn["content"].strip() for turn in prompt.messages)


@given(generated_files.files(may_be_odd=False))
@MANY
def test_every_row_and_every_column_is_read_or_named(tmp_path: Path, file: GeneratedFile) -> None:
    assume(file.kind != "lines")
    try:
        read = read_prompts(source_of(file, tmp_path))
    except SteerMoEError:
        event("refused")
        return
    event(f"read as {read.format}")
    note(f"{file.kind} {file.data!r}\n{read.notes}")
    pairs = 2 if read.format is PromptFormat.JAILBREAK else 1
    assert len(read.prompts) + pairs * left_out(read) == pairs * len(file.records)
    read_columns, unread = columns_said(read)
    names = {name.strip().lower() for name in file.records[0]}
    assert not read_columns & unread
    assert (
        names <= read_columns | unread <= names | {"id"}
    )  # a key that rows stand under is read as an id


@given(generated_files.files(may_be_odd=False, kinds=JSON_KINDS))
@MANY
def test_columns_that_are_said_not_to_be_read_make_no_difference(
    tmp_path: Path, file: GeneratedFile
) -> None:
    source = source_of(file, tmp_path)
    try:
        read = read_prompts(source)
    except SteerMoEError:
        event("refused")
        return
    event(f"read as {read.format}")
    _, unread = columns_said(read)
    assume(unread and not any(name in source for name in (":ignore=", ":column=")))
    rest: Records = [
        {k: v for k, v in record.items() if k.strip().lower() not in unread}
        for record in file.records
    ]
    (tmp_path / "prompts").write_bytes(generated_files.WRITERS["json"](rest))
    format = f":format={read.format}" if ":" not in source.removeprefix("unsafe:") else ""
    again = read_prompts(source + format, read.format)
    assert again.prompts == read.prompts


@given(generated_files.files(may_be_odd=False))
@MANY
def test_every_prompt_holds_the_text_of_its_own_row(tmp_path: Path, file: GeneratedFile) -> None:
    assume(file.kind != "lines")
    try:
        read = read_prompts(source_of(file, tmp_path))
    except SteerMoEError:
        event("refused")
        return
    event(f"read as {read.format}")
    note(f"{read.notes}")
    rows = []
    for prompt in read.prompts:
        found = set(re.findall(r"of row (\d+)\.", " ".join(t["content"] for t in prompt.messages)))
        assert len(found) <= 1, prompt  # never of two rows
        rows += found
    texts = [
        any("of row" in str(value) for value in record.values() if not is_blank(value))
        for record in file.records
    ]
    most = 2 if read.format is PromptFormat.JAILBREAK else 1
    assert all(rows.count(row) <= most for row in set(rows))
    if not any(option in file.options[1] for option in (":column=", ":ignore=")):
        assert rows or not all(texts)
