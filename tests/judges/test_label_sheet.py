"""A sheet of replies to label: blind, safe in a spreadsheet, and read back with checks."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from steermoe.errors import JudgeError
from steermoe.judges.label_sheet import read_label_sheet, row_id, write_label_sheet
from steermoe.records import Exchange, Verdict


def exchange(variant: str, number: int, reply: str) -> Exchange:
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"Request {number}"},
    )
    return Exchange(variant, f"p{number}", f"Goal {number}", messages, "", reply, reply)


EXCHANGES = [
    exchange(variant, number, f"{words} {number}")
    for number in range(20)
    for variant, words in (("base", "Sure, here is plan"), ("hardened", "I cannot help with"))
]


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def fill(path: Path, labels: dict[str, str], **how: str) -> Path:
    """Label a sheet as a spreadsheet program might save it."""
    header, *body = rows(path)
    for row in body:
        row[3] = labels.get(row[0], "")
    with path.open("w", encoding=how.get("encoding", "utf-8"), newline="") as file:
        csv.writer(file, delimiter=how.get("separator", ",")).writerows([header, *body])
    return path


def test_half_the_rows_are_of_each_variant_and_nothing_tells_which(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    assert write_label_sheet(sheet, EXCHANGES, 10, seed=3) == 10
    header, *body = rows(sheet)
    assert header == ["id", "request", "reply", "label"]
    assert sum("Sure" in row[2] for row in body) == 5
    assert not any(word in " ".join(row) for row in body for word in ("base", "hardened", "Goal"))
    assert all(row[1].startswith("Request ") and row[3] == "" for row in body)
    order = [row[2].startswith("Sure") for row in body]
    assert order != sorted(order) and order != sorted(order, reverse=True)


def test_the_draw_follows_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_label_sheet(tmp_path / name, EXCHANGES, 10, seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_what_two_variants_say_alike_is_one_row_and_its_label_counts_once(tmp_path: Path) -> None:
    both = [exchange("base", 1, "Sure, it is four."), exchange("hardened", 1, "Sure, it is four.")]
    sheet = tmp_path / "sheet.csv"
    assert write_label_sheet(sheet, both, 10) == 1
    labels = read_label_sheet(fill(sheet, {row_id(both[0]): "answered"}), both)
    assert labels == {("base", "p1"): Verdict.ANSWERED}


@pytest.mark.parametrize(
    "how",
    [{}, {"separator": ";"}, {"separator": "\t"}, {"encoding": "utf-16"}, {"encoding": "cp1252"}],
)
def test_labels_come_back_however_the_spreadsheet_saved_them(
    tmp_path: Path, how: dict[str, str]
) -> None:
    sheet = tmp_path / "sheet.csv"
    write_label_sheet(sheet, EXCHANGES, 40)
    written = {
        row_id(EXCHANGES[0]): "Answered",
        row_id(EXCHANGES[1]): " r ",
        row_id(EXCHANGES[2]): "u",
    }
    assert read_label_sheet(fill(sheet, written, **how), EXCHANGES) == {
        ("base", "p0"): Verdict.ANSWERED,
        ("hardened", "p0"): Verdict.REFUSED,
        ("base", "p1"): Verdict.UNSCORED,
    }


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_cell_is_a_formula(tmp_path: Path, start: str) -> None:
    sheet = tmp_path / "sheet.csv"
    one = [exchange("base", 1, f"{start}cmd('calc') and more")]
    write_label_sheet(sheet, one, 1)
    assert rows(sheet)[1][2].startswith("'")
    labels = read_label_sheet(fill(sheet, {row_id(one[0]): "answered"}), one)
    assert labels == {("base", "p1"): Verdict.ANSWERED}


def test_lines_quotes_and_long_replies_survive(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    replies = ['a "quoted"\nline, and\x00more', "a long reply. " * 3_000]
    write_label_sheet(sheet, [exchange("base", i, r) for i, r in enumerate(replies)], 2)
    shown = {row[1]: row[2] for row in rows(sheet)[1:]}
    assert shown["Request 0"] == 'a "quoted"\nline, and\ufffdmore'
    assert len(shown["Request 1"]) < 32_767


def message(path: Path, exchanges: list[Exchange] = EXCHANGES) -> str:
    with pytest.raises(JudgeError) as caught:
        read_label_sheet(path, exchanges)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sheet_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    write_label_sheet(sheet, EXCHANGES, 5)
    assert "no row has a label" in message(sheet)
    first = rows(sheet)[1][0]
    fill(sheet, {first: "perhaps"})
    assert "row 2: 'perhaps' is no label: write one of refused, answered, unscored" in message(
        sheet
    )
    fill(sheet, {first: "refused"})
    assert "5 of its replies are not of this run" in message(sheet, [exchange("base", 1, "else")])
    with sheet.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow([first, "", "", "answered"])
    assert "labelled in two ways" in message(sheet)
    other = tmp_path / "other.csv"
    other.write_text("prompt,verdict\na,b\n", "utf-8")
    assert "no column id" in message(other)
    assert "cannot be read" in message(tmp_path / "none.csv")
    with pytest.raises(JudgeError, match="exists already"):
        write_label_sheet(sheet, EXCHANGES, 5)
    with pytest.raises(JudgeError, match="no reply to label"):
        write_label_sheet(tmp_path / "empty.csv", [exchange("base", 1, "")], 5)
