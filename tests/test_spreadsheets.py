"""No cell of a CSV file is one that a spreadsheet computes, and every text comes back as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

from steermoe.cli.export import _write_csv
from steermoe.spreadsheets import quoted_cell, text_of_cell

COMPUTED = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1"]
OTHERS = ["'=1+1", "''", "", "a=1", " =1", "plain, with a comma"]


@pytest.mark.parametrize("text", [*COMPUTED, *OTHERS])
def test_there_and_back(text: str) -> None:
    assert text_of_cell(quoted_cell(text)) == text


def test_what_is_computed_begins_with_an_apostrophe_and_nothing_else_does() -> None:
    assert all(quoted_cell(text) == f"'{text}" for text in COMPUTED)
    assert [quoted_cell(text) for text in OTHERS[2:]] == OTHERS[2:]


def test_a_table_keeps_its_numbers_and_quotes_its_texts(tmp_path: Path) -> None:
    texts = [*COMPUTED, *OTHERS]
    table = pd.DataFrame({"reply": texts, "change": [-0.5] * len(texts)})
    _write_csv(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [text_of_cell(row["reply"]) for row in rows] == texts
    assert not any(row["reply"].startswith(tuple("=+-@\t\r\n\uff1d")) for row in rows)
    assert {row["change"] for row in rows} == {"-0.5"}
