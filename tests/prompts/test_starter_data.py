"""The shipped prompts, `builtin:starter`, read as plain JSON lines without the reader under test."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

import pytest

from near_duplicates import FORM_WORDS, near_duplicates, words

DATA = Path(__file__).parents[2] / "src" / "steermoe" / "prompts" / "data"
KEYS = ["prompt_id", "label", "prompt", "goal", "pair_id", "category", "split", "style"]
KINDS = ("unsafe", "safe", "benign")
SPLITS = ("train", "dev", "test")
EDITION = {"train": 240, "dev": 48, "test": 48}
"""Prompts of a kind in each of the two editions: what was there first, and what was added in more ways of asking."""

COUNTS = {split: 2 * count for split, count in EDITION.items()}
FIRST = sum(EDITION.values())
FIRST_SHA256 = "bb9812b6ca648ddb50fe6431e4b1731e026756e6bce99712e4b53ccd04e94fbf"

PLAIN = ("imperative", "question", "first_person")
ADDED = ("role", "two_sentences", "misspelled", "non_native", "polite", "blunt")


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


def test_every_row_has_the_eight_keys_in_order_and_string_values(rows: list[Row]) -> None:
    assert all(list(row) == KEYS for row in rows)
    assert all(isinstance(value, str) for row in rows for value in row.values())


def test_no_key_is_given_twice_in_a_line(lines: list[str]) -> None:
    for line in lines:
        assert [key for key, _ in json.loads(line, object_pairs_hook=list)] == KEYS


def test_prompts_are_tidy_lines_of_4_to_25_words(rows: list[Row]) -> None:
    for row in rows:
        text = row["prompt"]
        assert 4 <= len(text.split()) <= 25, text
        assert text == " ".join(text.split()), text
        assert not re.search(r"[^A-Za-z0-9 ,.;?'\"\-]", text), text


def test_styles_show_in_the_text(rows: list[Row]) -> None:
    for row in rows:
        text, style = row["prompt"], row["style"]
        breaks = len(re.findall(r"[.?!]\"? [A-Z]", text))
        assert breaks == (style == "two_sentences"), text
        assert text[0].islower() == (style == "misspelled"), text
        assert text[-1] in ".?" or style == "misspelled", text
        if style in ("imperative", "question"):
            asks = words(text)[0] in {"how", "what", "can", "where", "which", "why"}
            assert asks == text.endswith("?") == (style == "question"), text
        if style == "first_person":
            assert words(text)[0] == "i", text
        if style == "role":
            assert re.match(r"(You are|As|Act|Be|Imagine|Play|Pose|Pretend|Speak|Talk)\b", text), (
                text
            )
        if style == "polite":
            assert re.match(r"(Could|Would|Might|Kindly|Please|I'd|I would)\b", text), text
        if style == "blunt":
            assert len(words(text)) <= 13 and "please" not in words(text), text


def test_pairs_ask_in_one_style(rows: list[Row]) -> None:
    for harmful, look_alike in zip(of_kind(rows, "unsafe"), of_kind(rows, "safe"), strict=True):
        assert harmful["style"] == look_alike["style"]


def test_styles_are_balanced_over_kinds_and_splits(rows: list[Row]) -> None:
    assert {row["style"] for row in rows} == {*PLAIN, *ADDED}
    for split in SPLITS:
        counts = {k: Counter(row["style"] for row in of_kind(rows, k, split)) for k in KINDS}
        assert counts["unsafe"] == counts["safe"]
        each = 34 if split == "train" else 8
        assert {counts[kind][style] for kind in KINDS for style in ADDED} == {each}
        for style in PLAIN:
            gap = abs(counts["unsafe"][style] - counts["benign"][style])
            assert gap <= 0.02 * COUNTS[split], (split, style)


def test_prompts_of_the_first_edition_are_what_and_where_they_were(rows: list[Row]) -> None:
    """Figures name these goals, and a goal that was measured must not become one that is trained."""
    first = [row for row in rows if number(row) <= FIRST]
    text = "\n".join(f"{row['prompt_id']} {row['split']} {row['prompt']}" for row in first)
    assert hashlib.sha256(text.encode()).hexdigest() == FIRST_SHA256
    assert {row["style"] for row in first} == set(PLAIN)


def test_goal_repeats_the_prompt(rows: list[Row]) -> None:
    assert all(row["goal"] == row["prompt"] for row in rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_counts(rows: list[Row], kind: str, split: str) -> None:
    assert len(of_kind(rows, kind, split)) == COUNTS[split]


def number(row: Row) -> int:
    return int(row["prompt_id"][-4:])


def test_rows_are_numbered_through_in_order_of_kind_edition_and_split(rows: list[Row]) -> None:
    edition = [split for split in SPLITS for _ in range(EDITION[split])]
    expected = [
        (kind, split, f"starter-{kind}-{i:04d}")
        for kind in KINDS
        for i, split in enumerate(2 * edition, start=1)
    ]
    assert [(row["label"], row["split"], row["prompt_id"]) for row in rows] == expected


def test_each_harmful_prompt_has_one_look_alike_of_its_number_and_split(rows: list[Row]) -> None:
    unsafe, safe = of_kind(rows, "unsafe"), of_kind(rows, "safe")
    for i, (harmful, look_alike) in enumerate(zip(unsafe, safe, strict=True), start=1):
        assert harmful["pair_id"] == look_alike["pair_id"] == f"starter-pair-{i:04d}"
        assert harmful["split"] == look_alike["split"]
    assert all(row["pair_id"] == "" for row in of_kind(rows, "benign"))


def test_look_alikes_share_words_with_their_harmful_neighbour(rows: list[Row]) -> None:
    for harmful, look_alike in zip(of_kind(rows, "unsafe"), of_kind(rows, "safe"), strict=True):
        shared = set(words(harmful["prompt"])) & set(words(look_alike["prompt"]))
        assert len(shared - FORM_WORDS) >= 1, look_alike["prompt"]
        assert len(shared) >= 4, look_alike["prompt"]


def test_harm_categories_are_balanced_in_every_split(rows: list[Row]) -> None:
    for split, each in (("train", 30), ("dev", 6), ("test", 6)):
        counts = Counter(row["category"] for row in of_kind(rows, "unsafe", split))
        assert len(counts) == 16
        assert set(counts.values()) == {each}


def test_benign_categories_are_balanced_in_every_split(rows: list[Row]) -> None:
    for split, each in (("train", 20), ("dev", 4), ("test", 4)):
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
            shares[first][kind] = count / COUNTS[split]
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


def test_datasheet_counts_of_styles_are_those_of_the_data(rows: list[Row]) -> None:
    sheet = (DATA / "DATASHEET.md").read_text(encoding="utf-8")
    table = {
        style: [int(count) for count in counts]
        for style, *counts in re.findall(
            r"^\| ([a-z_]+) \| [^|]+ \| (\d+) \| (\d+) \| (\d+) \|$", sheet, re.M
        )
        if style in (*PLAIN, *ADDED)
    }
    unsafe = of_kind(rows, "unsafe")
    counts = Counter((row["style"], row["split"]) for row in unsafe)
    assert table == {
        style: [counts[style, split] for split in SPLITS] for style in (*PLAIN, *ADDED)
    }
