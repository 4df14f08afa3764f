"""Prompt files as hypothesis draws them: the structure of real ones, with anything that people put there."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Records = list[dict[str, Any]]

LAYOUTS = (
    ("prompt", "label"), ("text", "is_harmful"), ("messages", "label"), ("conversations", "label"),
    ("goal", "target"), ("goal", "target", "label"), ("goal", "all_prompt", "judge_success_gpt4"),
    ("prompt", "target", "attack_prompt", "inception_attack_score"), ("goal", "prompt", "jailbroken"),
    ("forbidden_prompt", "jailbroken_prompt", "score"), ("behavior", "behaviorid", "contextstring"),
    ("behaviorid", "test_case", "label"), ("index", "goal", "behavior", "category"), ("prompt", "type", "label"),
    ("risk_area", "question"), ("question_id", "category", "turns"), ("harm_area", "prompt"),
    ("vanilla", "adversarial", "data_type"), ("prompt", "adversarial", "prompt_harm_label"),
    ("prompt", "response", "is_safe"), ("chosen", "rejected"), ("instruction", "input", "output"), ("prompt",),
)  # fmt: skip
MORE_NAMES = (
    "split", "pair_id", "category", "id", "prompt_id", "system", "set", "source", "Pair ID", "class", "safe",
    "question", "request", "judge_success", "jailbreak_prompt", "Prompt ", "text", "note", "score", "0", "model",
    "attack", "prompt_fr", "part", "is_toxic", "input", "history", "verdict",
)  # fmt: skip
ODD_NAMES = (
    "",
    " ",
    "\n",
    "'",
    '"',
    "a,b",
    "[x]",
    "\ud800",
    "x" * 300,
    "пример",
    "label\u200b",
    "=1+1",
    "None",
)

WORDS = {
    "label": ("safe", "unsafe", "benign", "Unsafe", "harmful", "harmless", "1", "0", 1, 0, True, "toxic"),
    "is_harmful": (1, 0, "true", "0", True, "yes"),
    "is_safe": (1, 0, True, False),
    "prompt_harm_label": ("harmful", "unharmful", "", None),
    "adversarial": ("true", "false", True, ""),
    "data_type": ("vanilla_harmful", "vanilla_benign", "adversarial_harmful", "adversarial_benign"),
    "split": ("train", "dev", "test", "validation", "Train", "", None, "eval"),
    "set": ("train", "test", "A"),
    "type": ("homonyms", "contrast_homonyms", "other"),
    "judge_success_gpt4": (1, 0, "1", "0", True, None, 7),
    "judge_success": (1, 0, None),
    "jailbroken": (True, False, "true", None),
    "score": (0, 0.5, "0.9", None),
    "inception_attack_score": (0, 1, -1, 0.5, "2", None),
    "id": (1, 2, 3, "a", None),
    "index": (1, 2, 3),
    "category": ("violence", "look_alike", "privacy", "", None),
    "class": ("safe", "unsafe", "A"),
    "safe": (1, 0, "maybe"),
    "part": ("train", "test", "val", "A"),
    "is_toxic": (1, 0, "yes", None),
    "history": ([["Hi", "Hello"]], [], None, "none so far"),
    "verdict": ("safe", "harmful", "unclear"),
}  # fmt: skip
SOUND_WORDS = {
    **WORDS,
    "label": ("safe", "unsafe", "benign"),
    "prompt_harm_label": ("harmful", "unharmful", ""),
    "split": ("train", "dev", "test", "validation", ""),
    "type": ("homonyms",),
    "judge_success_gpt4": (1, 0, "1", None),
    "class": ("A", "B"),
    "safe": ("maybe", "never"),
}
"""Words that contradict neither each other nor the rest of a row."""
SOUND_NAMES = (
    "split",
    "pair_id",
    "category",
    "set",
    "source",
    "note",
    "model",
    "0",
    "class",
    "Categories",
    "safe",
)
"""Columns that may stand beside any layout: read, or named as not read."""

CONVERSATIONS = ("messages", "conversations", "all_prompt", "turns")
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(math.nan),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.sampled_from(["role", "a"]), st.text(max_size=3)),
)  # fmt: skip


@dataclass(frozen=True)
class GeneratedFile:
    """A file, and what is in it.

    Attributes:
        data: Its bytes.
        records: What was written; each row's texts hold `row N.`.
        options: What stands before and behind its path.
        is_damaged: Bytes were changed after writing.
        kind: The container.
    """

    data: bytes
    records: Records
    options: tuple[str, str]
    is_damaged: bool
    kind: str


def _turns(draw: st.DrawFn, text: str, sound: bool) -> Any:
    keys = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    user = draw(st.sampled_from(["user", "human", "User"]))
    turns = [{keys[0]: user, keys[1]: text}]
    if draw(st.booleans()):
        turns.insert(0, {keys[0]: "system", keys[1]: "Be brief."})
    if draw(st.booleans()):
        turns.append(
            {
                keys[0]: draw(st.sampled_from(["assistant", "gpt", "gpt" if sound else "robot"])),
                keys[1]: "No.",
            }
        )
    return draw(st.sampled_from([turns, json.dumps(turns), repr(turns)]))


def _cell(draw: st.DrawFn, name: str, row: int, names: tuple[str, ...], sound: bool) -> Any:
    if not sound and draw(st.integers(0, 20)) == 0:
        return draw(ANYTHING)
    plain = name.strip().lower()
    text = f"{plain[:9]} of row {row}."
    if sound and plain in ("id", "index", "question_id"):
        return row
    if sound and plain == "label" and "type" in names:
        return "safe"
    if sound and plain == "label" and "test_case" in names:
        return draw(st.sampled_from([0, 1, "1"]))
    if plain == "adversarial" and "data_type" in names:
        return text
    words = SOUND_WORDS if sound else WORDS
    if plain in words:
        return draw(st.sampled_from(words[plain]))
    if plain == "turns":
        return (
            [text] if sound else draw(st.sampled_from([[text], json.dumps([text]), [text, text]]))
        )
    if plain in CONVERSATIONS:
        return _turns(draw, text, sound)
    if plain in ("chosen", "rejected"):
        return f"\n\nHuman: {text}\n\nAssistant: No."
    dressed = [text] * 6 + [f' "{text}", ', f"{text}\nMore; of\tit|all", f"\u200b{text}\u2028"]
    return draw(st.sampled_from(dressed if sound else [*dressed, ""]))


@st.composite
def tables(draw: st.DrawFn, sound: bool) -> Records:
    """Rows of some layout, with more columns, in some order; anything may be in them where they are not sound."""
    more = SOUND_NAMES if sound else MORE_NAMES
    names = [*draw(st.sampled_from(LAYOUTS)), *draw(st.lists(st.sampled_from(more), max_size=3))]
    if not sound and draw(st.integers(0, 4)) == 0:
        names.append(draw(st.sampled_from(ODD_NAMES)))
    columns = tuple(draw(st.permutations(list(dict.fromkeys(names)))))
    rows = range(draw(st.integers(1, 5)))
    records = [{name: _cell(draw, name, row, columns, sound) for name in columns} for row in rows]
    if not sound and draw(st.integers(0, 9)) == 0:
        records[-1].pop(columns[0])
    return records


def _csv(records: Records, delimiter: str) -> bytes:
    sink = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.writer(sink, delimiter=delimiter)
    writer.writerow(names)
    for record in records:
        cells = [record.get(name) for name in names]
        writer.writerow(json.dumps(c) if isinstance(c, list | dict) else c for c in cells)
    return sink.getvalue().encode("utf-8", "surrogatepass")


def _arrow(records: Records, write: Callable[[Any, pa.Table], None]) -> bytes:
    sink = pa.BufferOutputStream()
    write(sink, pa.Table.from_pylist(records))
    return bytes(sink.getvalue().to_pybytes())


def _stream(sink: Any, table: pa.Table) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _columns(records: Records) -> dict[str, Any]:
    names = dict.fromkeys(name for record in records for name in record)
    return {n: {str(i): record.get(n) for i, record in enumerate(records)} for n in names}


WRITERS: dict[str, Callable[[Records], bytes]] = {
    "json": lambda r: json.dumps(r).encode(),
    "indented": lambda r: json.dumps(r, indent=2, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    ),
    "jsonl": lambda r: "\n".join(map(json.dumps, r)).encode(),
    "under a key": lambda r: json.dumps({"meta": {"v": 1}, "data": r}).encode(),
    "columns": lambda r: json.dumps(_columns(r)).encode(),
    "lists": lambda r: json.dumps({n: list(c.values()) for n, c in _columns(r).items()}).encode(),
    "index": lambda r: json.dumps({f"k{i}": record for i, record in enumerate(r)}).encode(),
    "csv": lambda r: _csv(r, ","),
    "semicolons": lambda r: _csv(r, ";"),
    "pipes": lambda r: b"sep=|\r\n" + _csv(r, "|"),
    "tabs in utf-16": lambda r: _csv(r, "\t").decode("utf-8", "replace").encode("utf-16"),
    "parquet": lambda r: _arrow(r, lambda sink, table: pq.write_table(table, sink)),
    "arrow": lambda r: _arrow(r, _stream),
    "jsonl.gz": lambda r: gzip.compress("\n".join(map(json.dumps, r)).encode()),
    "csv.bz2": lambda r: bz2.compress(_csv(r, ",")),
    "json.xz": lambda r: lzma.compress(json.dumps(r).encode()),
    "csv.zst": lambda r: bytes(pa.Codec("zstd").compress(_csv(r, ","), asbytes=True)),
    "lines": lambda r: "\n".join(str(next(iter(x.values()), "")) for x in r).encode(
        "utf-8", "replace"
    ),
}


def written(draw: st.DrawFn, records: Records, kinds: tuple[str, ...]) -> tuple[bytes, str]:
    """The records in some container; as JSON where the container cannot hold them."""
    kind = draw(st.sampled_from(kinds))
    try:
        return WRITERS[kind](records), kind
    except (pa.ArrowException, UnicodeError, csv.Error, OverflowError, TypeError, ValueError):
        return WRITERS["json"](records), "json"


def _damaged(draw: st.DrawFn, data: bytes) -> bytes:
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    what = draw(st.sampled_from(["cut", "flip", "insert", "repeat", "lose"]))
    if what == "cut":
        return data[:place]
    if what == "flip":
        return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    if what == "insert":
        return data[:place] + draw(st.binary(max_size=6)) + data[place:]
    length = draw(st.integers(1, 40))
    if what == "repeat":
        return data[: place + length] + data[place:]
    return data[:place] + data[place + length :]


@st.composite
def files(
    draw: st.DrawFn, may_be_odd: bool = True, kinds: tuple[str, ...] = tuple(WRITERS)
) -> GeneratedFile:
    """Files, with what a user might write around their paths; half of them sound, all if none may be odd."""
    sound = not may_be_odd or draw(st.booleans())
    records = draw(tables(sound))
    data, kind = written(draw, records, kinds)
    is_damaged = not sound and draw(st.integers(0, 3)) == 0
    if is_damaged:
        data = _damaged(draw, data)
    names = [name for name in records[0] if name.strip()] or ["x"]
    labelled = any(
        name in records[0] for name in ("label", "is_harmful", "prompt_harm_label", "data_type")
    )
    before = draw(st.sampled_from(["", "", "unsafe:", "unsafe:", "safe:", "benign:"]))
    if sound and labelled:
        before = ""
    options = ["", "", "", "", f":ignore={draw(st.sampled_from(names))}"]
    if not sound:
        options += [
            f":column={draw(st.sampled_from(names))}",
            ":format=lines",
            ":format=jailbreak",
            ":colum=x",
        ]
        options += [":encoding=cp1252", ":category=look_alike", ":label=unsafe", ":unsafe=1,safe=0"]
    behind = draw(st.sampled_from(options))
    return GeneratedFile(data, records, (before, behind), is_damaged, kind)
