"""The shipped prompts, `builtin:starter`, read as plain JSON lines without the reader under test."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

import pytest

from near_duplicates import FORM_WORDS, near_duplicates, words

DATA = Path(__file__).parents[2] / "src" / "steermoe" / "prompts" / "data"
KEYS = ["prompt_id", "label", "prompt", "goal", "pair_id", "category", "split"]
KINDS = ("unsafe", "safe", "benign")
SPLITS = ("train", "dev", "test")
COUNTS = {
    "unsafe": {"train": 240, "dev": 48, "test": 48},
    "safe": {"train": 240, "dev": 48, "test": 48},
    "benign": {"train": 240, "dev": 48, "test": 48},
}


Row = dict[str, str]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return (DATA / "starter.jsonl").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def rows(lines: list[str]) -> list[Row]:
    return [json.loads(line) for line in lines]


def of_kind(rows: list[Row], kind: str, split: str | None = None) -> list[Row]:
    return [r for r in rows if r["label"] == kind and split in (None, r["split"])]


def opening(text: str) -> str:
    """The first word if it is one of the eight common ones, otherwise `*`."""
    first = words(text)[0]
    return (
        first if first in {"how", "write", "explain", "give", "what", "can", "i", "help"} else "*"
    )


def test_file_is_ascii_ends_in_one_newline_and_has_no_blank_or_padded_line() -> None:
    text = (DATA / "starter.jsonl").read_bytes().decode("ascii")
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    assert "\r" not in text
    assert all(line == line.strip() and line for line in text.split("\n")[:-1])


def test_every_row_has_the_seven_keys_in_order_and_string_values(rows: list[Row]) -> None:
    assert all(list(row) == KEYS for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())


def test_no_key_is_given_twice_in_a_line(lines: list[str]) -> None:
    for line in lines:
        assert [key for key, _ in json.loads(line, object_pairs_hook=list)] == KEYS


def test_prompts_are_one_tidy_sentence_of_4_to_25_words(rows: list[Row]) -> None:
    for row in rows:
        text = row["prompt"]
        assert 4 <= len(text.split()) <= 25, text
        assert text == " ".join(text.split()), text
        assert text[0].isupper() and text[-1] in ".?", text
        assert not re.search(r"[.?!] ", text), text
        assert not re.search(r"[^A-Za-z0-9 ,.;?'\-]", text), text


def test_questions_and_only_questions_end_in_a_question_mark(rows: list[Row]) -> None:
    for row in rows:
        asks = words(row["prompt"])[0] in {"how", "what", "can", "where", "which", "why"}
        assert asks == row["prompt"].endswith("?"), row["prompt"]


def test_goal_repeats_the_prompt(rows: list[Row]) -> None:
    assert all(row["goal"] == row["prompt"] for row in rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_counts(rows: list[Row], kind: str, split: str) -> None:
    assert len(of_kind(rows, kind, split)) == COUNTS[kind][split]


def test_rows_stand_in_order_of_kind_then_split_and_are_numbered_through(rows: list[Row]) -> None:
    expected = [
        (kind, split, f"starter-{kind}-{number:04d}")
        for kind in KINDS
        for number, split in enumerate(
            (split for split in SPLITS for _ in range(COUNTS[kind][split])), start=1
        )
    ]
    assert [(row["label"], row["split"], row["prompt_id"]) for row in rows] == expected


def test_each_harmful_prompt_has_one_look_alike_of_its_number_and_split(rows: list[Row]) -> None:
    unsafe, safe = of_kind(rows, "unsafe"), of_kind(rows, "safe")
    for number, (harmful, look_alike) in enumerate(zip(unsafe, safe, strict=True), start=1):
        assert harmful["pair_id"] == look_alike["pair_id"] == f"starter-pair-{number:04d}"
        assert harmful["split"] == look_alike["split"]
    assert all(row["pair_id"] == "" for row in of_kind(rows, "benign"))


def test_look_alikes_share_words_with_their_harmful_neighbour(rows: list[Row]) -> None:
    for harmful, look_alike in zip(of_kind(rows, "unsafe"), of_kind(rows, "safe"), strict=True):
        shared = set(words(harmful["prompt"])) & set(words(look_alike["prompt"]))
        assert len(shared - FORM_WORDS) >= 1, look_alike["prompt"]
        assert len(shared) >= 4, look_alike["prompt"]


def test_harm_categories_are_balanced_in_every_split(rows: list[Row]) -> None:
    for split, each in (("train", 15), ("dev", 3), ("test", 3)):
        counts = Counter(row["category"] for row in of_kind(rows, "unsafe", split))
        assert len(counts) == 16
        assert set(counts.values()) == {each}


def test_benign_categories_are_balanced_in_every_split(rows: list[Row]) -> None:
    for split, each in (("train", 10), ("dev", 2), ("test", 2)):
        counts = Counter(row["category"] for row in of_kind(rows, "benign", split))
        assert len(counts) == 24
        assert set(counts.values()) == {each}


def test_categories_of_the_kinds_do_not_mix(rows: list[Row]) -> None:
    harmful = {row["category"] for row in of_kind(rows, "unsafe")}
    benign = {row["category"] for row in of_kind(rows, "benign")}
    assert {row["category"] for row in of_kind(rows, "safe")} == {"look_alike"}
    assert harmful.isdisjoint(benign)
    assert "look_alike" not in harmful | benign


def test_eight_consecutive_harmful_train_prompts_are_of_eight_categories(rows: list[Row]) -> None:
    train = of_kind(rows, "unsafe", "train")
    for start in range(0, len(train), 8):
        assert len({row["category"] for row in train[start : start + 8]}) == 8


@pytest.mark.parametrize("split", SPLITS)
def test_openings_are_shared_out_alike_over_the_kinds(rows: list[Row], split: str) -> None:
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for kind in KINDS:
        counts = Counter(opening(row["prompt"]) for row in of_kind(rows, kind, split))
        assert len(counts) == 9
        for first, count in counts.items():
            shares[first][kind] = count / COUNTS[kind][split]
    bound = 0.07 if split == "dev" else 0.04
    for first, share in shares.items():
        assert max(share.values()) - min(share.values()) <= bound, (first, share)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("unit", ["words", "characters"])
def test_mean_lengths_are_within_a_fifth_of_each_other(
    rows: list[Row], split: str, unit: str
) -> None:
    measure = (lambda text: len(text.split())) if unit == "words" else len
    lengths = [mean(measure(row["prompt"]) for row in of_kind(rows, kind, split)) for kind in KINDS]
    assert max(lengths) <= 1.2 * min(lengths)


def test_no_two_prompts_but_a_pair_are_near_duplicates(rows: list[Row]) -> None:
    prompts = [row["prompt"] for row in rows]
    near = [
        (prompts[i], prompts[j])
        for i, j in near_duplicates(prompts)
        if not rows[i]["pair_id"] or rows[i]["pair_id"] != rows[j]["pair_id"]
    ]
    assert near == []


def test_datasheet_counts_are_those_of_the_data(rows: list[Row]) -> None:
    sheet = (DATA / "DATASHEET.md").read_text(encoding="utf-8")
    table = {
        (kind, category): [int(train), int(dev), int(test)]
        for kind, category, train, dev, test in re.findall(
            r"^\| (unsafe|safe|benign) \| ([a-z_]+) \| (\d+) \| (\d+) \| (\d+) \|", sheet, re.M
        )
    }
    counts = Counter((row["label"], row["category"], row["split"]) for row in rows)
    cells = {(kind, category) for kind, category, _ in counts}
    assert table == {cell: [counts[(*cell, split)] for split in SPLITS] for cell in cells}
