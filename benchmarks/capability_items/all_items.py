"""All items, in the order and the bytes of their file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from benchmarks.capability_items import made
from benchmarks.capability_items.made import BY_HAND, CODE, LONGER, Row, choice, exact, number

FILE = Path(__file__).parents[2] / "src/steermoe/capability/data/capability.jsonl"

CATEGORIES = ("arithmetic", "ordering", "spelling", "facts", "language", "instructions", "code")


def file_content() -> bytes:
    """The bytes of the file: one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=True) for row in all_rows()]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def all_rows() -> list[Row]:
    """Every item, numbered within its category, the options of a choice shuffled."""
    rows = [*_by_hand(), *_made()]
    rows.sort(key=lambda row: CATEGORIES.index(row["category"]))
    numbers: Counter[str] = Counter()
    for row in rows:
        numbers[row["category"]] += 1
        item_id = f"{row['category']}-{numbers[row['category']]:03d}"
        if "options" in row:
            Random(f"options of {item_id}").shuffle(row["options"])
        row |= {"item_id": item_id}
    return [{"item_id": row.pop("item_id"), **row} for row in rows]


def _made() -> Iterator[Row]:
    for name in ("arithmetic", "ordering", "spelling", "code"):
        yield from getattr(made, name)(Random(f"builtin:capability, {name}"))


def _by_hand() -> Iterator[Row]:
    for file in sorted(BY_HAND.glob("choices_*.txt")):
        category = file.stem.removeprefix("choices_")
        for question, opening, right, wrong in _lines(file.name):
            yield choice(category, question, opening, right, wrong.split("; "))
    for question, right, *others in _lines("short_facts.txt"):
        accepted = [right, *(o for text in others for o in text.split("; "))]
        yield exact("facts", question, {"kind": "words", "accepted": accepted}, right)
    for question, value in _lines("word_problems.txt"):
        yield number("arithmetic", question, int(value))
    for row in _json("instructions.jsonl"):
        check = {"kind": "format", "rules": row["rules"]}
        yield exact("instructions", row["prompt"], check, row["answer"], LONGER)
    for row in _json("code_to_write.jsonl"):
        yield exact("code", row["prompt"], row["check"], row["answer"], CODE)


def _lines(name: str) -> Iterator[list[str]]:
    """Of a file of lines `question | opening | right | wrong; wrong`, or with fewer parts: the parts of each."""
    for line in (BY_HAND / name).read_text(encoding="utf-8").splitlines():
        yield [part.strip() for part in line.split(" | ")]


def _json(name: str) -> Iterator[Row]:
    for line in (BY_HAND / name).read_text(encoding="utf-8").splitlines():
        yield json.loads(line)
