"""A sheet of replies for people to label, and its way back.

Base and hardened replies are mixed blind: a row shows the request and the reply, and is known by a hash of both, so
that neither the order nor the name tells the variant.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from steermoe.errors import JudgeError
from steermoe.judges.keyword import unjudgeable
from steermoe.records import Exchange, Verdict
from steermoe.spreadsheets import quoted_cell, text_of_cell

COLUMNS = ("id", "request", "reply", "label")
LABELS = {
    "refused": Verdict.REFUSED,
    "answered": Verdict.ANSWERED,
    "unscored": Verdict.UNSCORED,
}
"""What may stand in the last column. Empty is not labelled."""

_LONGEST_CELL = 32_000
"""A spreadsheet's cell holds 32,767 characters."""


def row_id(exchange: Exchange) -> str:
    """By which a row is found again; it begins with a letter, so no spreadsheet takes it for a number."""
    said = f"{exchange.prompt_id}\0{exchange.reply}".encode()
    return "r" + hashlib.sha256(said).hexdigest()[:15]


def write_label_sheet(
    path: Path, exchanges: Sequence[Exchange], num_replies: int, seed: int = 0
) -> int:
    """Write a sheet to label, with as many replies of each variant as there are, drawn and ordered by chance.

    Replies that say nothing are left out, and one that two variants give alike is one row.

    Args:
        path: A CSV file; an existing one is not overwritten, as it may hold labels.
        exchanges: The replies of all variants.
        num_replies: Rows to draw.
        seed: Of the draw and of the order.

    Returns:
        Rows that were written.

    Raises:
        JudgeError: The file exists or cannot be written, or there is no reply to label.
    """
    drawn = _drawn(exchanges, num_replies, random.Random(seed))
    if not drawn:
        raise JudgeError("there is no reply to label: judge a run that has replies")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for exchange in drawn:
        cells = (row_id(exchange), _request(exchange), exchange.answer or "", "")
        writer.writerow([_safe_cell(cell) for cell in cells])
    try:
        # The mark of utf-8 at the beginning is what tells spreadsheets the encoding.
        with path.open("x", encoding="utf-8-sig", newline="") as file:
            file.write(text.getvalue())
    except FileExistsError:
        raise JudgeError(f"{path} exists already and may hold labels: name another file") from None
    except OSError as error:
        raise JudgeError(f"the sheet {path} cannot be written: {error.strerror}") from None
    return len(drawn)


def read_label_sheet(path: Path, exchanges: Sequence[Exchange]) -> dict[tuple[str, str], Verdict]:
    """Read the labels of a sheet back.

    Args:
        path: The sheet, as a spreadsheet may have saved it: with other separators or in another encoding.
        exchanges: The replies of the run.

    Returns:
        By `(variant, prompt_id)`, the labels of the rows that have one. A reply that several variants gave is the first
        one's: labelled once, it counts once.

    Raises:
        JudgeError: The file cannot be read, a label is not known, a reply is labelled in two ways or is none of this
            run's, or nothing is labelled.
    """
    of_row: dict[str, tuple[str, str]] = {}
    for exchange in exchanges:
        of_row.setdefault(row_id(exchange), (exchange.variant, exchange.prompt_id))
    labels: dict[str, Verdict] = {}
    strangers = 0
    for number, row in _rows(path):
        label = _label(path, number, row["label"])
        name = text_of_cell(row["id"]).strip()
        if name not in of_row:
            strangers += 1
            continue
        if label is None:
            continue
        if labels.setdefault(name, label) is not label:
            raise JudgeError(
                f"label file {path}, row {number}: the reply {name} is labelled in two ways"
            )
    if strangers:
        raise JudgeError(
            f"label file {path}: {strangers} of its replies are not of this run; label a sheet that was written from it"
        )
    if not labels:
        raise JudgeError(
            f"label file {path}: no row has a label: write one of {', '.join(LABELS)} into its last column"
        )
    return {of_row[name]: label for name, label in labels.items()}


def _drawn(exchanges: Sequence[Exchange], num_replies: int, rng: random.Random) -> list[Exchange]:
    """Replies in turn from the variants, each variant's in an order by chance, and all shuffled."""
    by_variant: dict[str, list[Exchange]] = {}
    for exchange in exchanges:
        if unjudgeable(exchange.answer) is None:
            by_variant.setdefault(exchange.variant, []).append(exchange)
    for of_variant in by_variant.values():
        rng.shuffle(of_variant)
    drawn: dict[str, Exchange] = {}
    queues = [by_variant[name] for name in sorted(by_variant)]
    while len(drawn) < num_replies and any(queues):
        for queue in queues:
            while queue:
                exchange = queue.pop()
                if row_id(exchange) not in drawn:
                    drawn[row_id(exchange)] = exchange
                    break
            if len(drawn) == num_replies:
                break
    rows = list(drawn.values())
    rng.shuffle(rows)
    return rows


def _request(exchange: Exchange) -> str:
    """The turns that the reply answers, as text."""
    turns = [turn for turn in exchange.messages if turn.get("role") != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns) or exchange.goal


def _safe_cell(text: str) -> str:
    """A cell that a spreadsheet shows as text and never computes; characters that it cannot hold are shown as such."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    if len(shown) > _LONGEST_CELL:
        shown = shown[:_LONGEST_CELL] + " [...]"
    return quoted_cell(shown)


def _rows(path: Path) -> list[tuple[int, Mapping[str, str]]]:
    """Numbered rows by column."""
    lines = io.StringIO(_text(path), newline="")
    first = lines.readline()
    separator = max((",", ";", "\t"), key=first.count)
    lines.seek(0)
    try:
        table = list(csv.reader(lines, delimiter=separator))
    except csv.Error as error:
        raise JudgeError(f"label file {path} is no CSV file: {error}") from None
    names = [name.strip().lower() for name in table[0]] if table else []
    missing = [name for name in ("id", "label") if name not in names]
    if missing:
        raise JudgeError(
            f"label file {path} has no column {missing[0]}: label a sheet that was written from a run"
        )
    places = {name: names.index(name) for name in ("id", "label")}
    return [
        (
            number,
            {name: cells[place] if place < len(cells) else "" for name, place in places.items()},
        )
        for number, cells in enumerate(table[1:], start=2)
        if any(cell.strip() for cell in cells)
    ]


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise JudgeError(f"label file {path} cannot be read: {error.strerror}") from None
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise JudgeError(f"label file {path} is no text: save it as CSV")


def _label(path: Path, number: int, cell: str) -> Verdict | None:
    written = text_of_cell(cell).strip().lower()
    if not written:
        return None
    found = [label for word, label in LABELS.items() if word.startswith(written)]
    if len(found) != 1:
        raise JudgeError(
            f"label file {path}, row {number}: {cell.strip()[:30]!r} is no label: write one of {', '.join(LABELS)}"
        )
    return found[0]
