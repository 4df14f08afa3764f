"""Prompt files that people have: whether each is read as it is meant, or refused in a line that says what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.cases.room import LATE, READ, REFUSED, SILENT, TRACEBACK, Case, Outcome, Room
from steermoe.config import load_config
from steermoe.errors import SteerMoEError
from steermoe.prompts.describe import Description, describe

Counts = Mapping[str, int]

ALL = {"unsafe": 20, "safe": 20, "benign": 20}
UNSAFE = {"unsafe": 20}
FIRST = "user: Unsafe request 0"


@dataclass(frozen=True)
class Known:
    """What is known of a prompt file.

    Attributes:
        before: The class of its outcome before any case was known.
        kind: What it stands for.
        counts: How many prompts of each label it holds, by its options: without any, `{}`, it is meant to be read as
            it is. A file without an entry for `{}` is meant to be refused.
        refusal: Words that its refusal has to say.
        said: Words that a note has to say where it is read.
        first: The first unsafe prompt, turn by turn; empty if any will do.
        splits: The splits that its prompts have; empty if they are made.
    """

    before: str
    kind: str
    counts: Mapping[str, Counts] = field(default_factory=lambda: {"{}": ALL})
    refusal: str = ""
    said: str = ""
    first: str = FIRST
    splits: tuple[str, ...] = ()


def _of_one_kind(before: str, kind: str) -> Known:
    """Refused, because the file does not say what its prompts are; the label before its name reads it."""
    return Known(before, kind, {"unsafe:{}": UNSAFE}, "'unsafe:")


def _turns(kind: str, before: str = REFUSED, **more: str) -> Known:
    return Known(before, kind, **more)  # type: ignore[arg-type]  # texts alone are given


_TWO_SIDES = {"{}:unsafe=1,safe=0": {"unsafe": 20, "safe": 20}}
_STORY = "user: Once upon a time: Unsafe request 0"
_PAIRS = {"{}": {"unsafe": 10, "safe": 10}}

KNOWN: dict[str, Known] = {
    # names of columns, words of labels
    "c01-lines.txt": _of_one_kind(LATE, "one prompt a line"),
    "c01-strings.json": _of_one_kind(REFUSED, "a list of texts"),
    "c01-text.json": _of_one_kind(REFUSED, "one column, `text`"),
    "c01-text.parquet": _of_one_kind(REFUSED, "one column, `text`"),
    "c02-instruction.jsonl": _of_one_kind(REFUSED, "one column, `instruction`"),
    "c02-prompt-source-category.csv": _of_one_kind(REFUSED, "prompts without a label"),
    "c02-prompt-target.csv": _of_one_kind(REFUSED, "prompts without a label"),
    "c02-label-01.csv": Known(
        REFUSED, "labels 1 and 0", {"{}:unsafe=1,safe=0": {"unsafe": 20, "safe": 40}}, ":unsafe=1,safe=0"
    ),
    "c02-label-int.jsonl": Known(REFUSED, "labels 1 and 0", _TWO_SIDES, ":unsafe=1,safe=0"),
    "c02-label-Unsafe.csv": Known(REFUSED, "labels in capitals"),
    "c02-label-harmful.csv": Known(REFUSED, "`harmful` for unsafe"),
    "c02-prompt-harmful.csv": Known(
        REFUSED, "`Is_Harmful` for a label", {"{}": {"unsafe": 20, "safe": 20}}
    ),
    # conversations
    "c03-conversations-rolecontent.jsonl": Known(
        REFUSED, "turns under `conversations`", {"unsafe:{}": UNSAFE}, "no prompt is labelled safe"
    ),
    "c03-messages-fromvalue.jsonl": Known(
        REFUSED, "turns with from and value", {"unsafe:{}": UNSAFE}, "no prompt is labelled safe"
    ),
    "c03-messages-human.jsonl": Known(
        REFUSED, "role `human`", {"unsafe:{}": UNSAFE}, "no prompt is labelled safe"
    ),
    "c03-sharegpt.json": _of_one_kind(REFUSED, "ShareGPT without labels"),
    "c04-emptytools.jsonl": _turns("turns with empty tool calls"),
    "c04-lastassistant.jsonl": _turns("a last turn of the assistant", said="cut off"),
    "c04-name.jsonl": _turns("turns with a name", said="name"),
    "c04-nullextra.jsonl": _turns("turns with empty extras", READ),
    "c04-promptlist.jsonl": _turns("turns under `prompt`, a completion", READ),
    "c04-struct.parquet": _turns("turns as structs", first=f"{FIRST} | assistant: Hi | {FIRST}"),
    "c04-struct2.parquet": _turns("turns as structs"),
    "c04-weight.jsonl": _turns("turns with a weight", said="weight"),
    "c05-nullcontent.jsonl": Known(REFUSED, "calls of tools", {}, "message 2"),
    "c06-assistantfirst.jsonl": Known(REFUSED, "the assistant's turn first", {}, "message 1"),
    "c06-twosystem.jsonl": Known(REFUSED, "two system turns", {}, "message 2"),
    "c06-useruser.jsonl": Known(REFUSED, "two user turns", {}, "message 2"),
    "c06-onesystem.jsonl": Known(READ, "a system turn", first=f"system: a | {FIRST}"),
    "c07-ids-ok.jsonl": Known(READ, "ids of mixed types"),
    "c07-ids.jsonl": Known(REFUSED, "7 and '7' as ids", {}, "already the id of row 1"),
    # CSV as it is
    "c08-comma.csv": Known(REFUSED, "a comma without quotes", {}, "row 2"),
    "c08-short.csv": Known(REFUSED, "a short row", {}, "row 1"),
    "c09-blankfirst.csv": Known(READ, "blank lines above the header"),
    "c09-commafirst.csv": Known(LATE, "an empty row above the header"),
    "c09-cp1252.csv": Known(
        REFUSED, "another encoding", {"{}:encoding=cp1252": ALL}, ":encoding=cp1252", first=f"{FIRST} café"
    ),
    "c09-emptyrows.csv": Known(LATE, "empty rows at the end", said="empty"),
    "c09-index.csv": Known(READ, "an index column"),
    "c09-sep.csv": Known(LATE, "a line `sep=;`"),
    "c09-title.csv": Known(LATE, "a title above the header", said="above"),
    "c09-trailing1.csv": Known(READ, "an empty column"),
    # containers
    "c10-file.arrow": Known(LATE, "an Arrow file"),
    "c10.arrow": Known(LATE, "an Arrow stream"),
    "c10.jsonl.bz2": Known(LATE, "compressed"),
    "c10.jsonl.gz": Known(REFUSED, "compressed"),
    "c10.jsonl.zst": Known(LATE, "compressed"),
    "c11-columns.json": Known(REFUSED, "what DataFrame.to_json writes"),
    "c11-data.json": Known(LATE, "rows under a key"),
    "c11-dict.json": Known(LATE, "rows by key"),
    "c11-split.json": Known(LATE, "a mapping of lists"),
    "c11-jbb-artifact.json": Known(LATE, "JailbreakBench artifact", _PAIRS, first=_STORY),
    "c11-list-jb.json": Known(SILENT, "its rows as a list", _PAIRS, first=_STORY),
    # what was read without a word
    "o01-goal-label.csv": Known(SILENT, "a label beside a goal"),
    "o01-goal-target-label.csv": Known(SILENT, "a label in a known layout", said="target"),
    "o01-jbb-label.csv": Known(SILENT, "a label in a known layout", said="target"),
    "o02-goal-target-split.csv": Known(
        SILENT, "a split in a known layout", {"{}": UNSAFE}, splits=("test", "train")
    ),
    "o04-prompt-json.csv": Known(SILENT, "turns in a CSV cell", first=f"system: Be brief. | {FIRST}"),
    "o04-prompt-repr.csv": Known(SILENT, "turns as Python prints them"),
    "o07-strongreject-results.csv": Known(
        SILENT, "the attack beside its goal", {"{}": {"unsafe": 20, "safe": 20}}, first=_STORY
    ),
    "o08-system-column.csv": Known(
        SILENT, "a column `system`", first=f"system: You are a pirate. | {FIRST}"
    ),
    "o08-unsafe-lookalike.csv": Known(SILENT, "a category without effect", said="look_alike"),
    # spellings
    "o06-csv-space-after-comma.csv": Known(REFUSED, "blanks behind commas"),
    "o06-csv-space-quote.csv": Known(REFUSED, "blanks before quotes", first=f"{FIRST}, now"),
    "o06-label-space.csv": Known(REFUSED, "blanks around labels"),
    "o06-order-caps.csv": Known(READ, "columns in another order and case"),
    "o06-pipe.csv": Known(REFUSED, "`|` between columns"),
    "o06-type.csv": Known(SILENT, "a column `type`", said="type"),
    # public sets
    "o09-alpaca.csv": _of_one_kind(REFUSED, "Alpaca"),
    "o09-hh.csv": _of_one_kind(REFUSED, "HH-RLHF"),
    "o09-orbench.csv": _of_one_kind(REFUSED, "OR-Bench"),
    "o09-donotanswer.csv": Known(REFUSED, "Do-Not-Answer", {"{}": UNSAFE}),
    "o09-sorrybench.csv": Known(REFUSED, "SORRY-Bench", {"{}": UNSAFE}),
    "o09-sst.csv": Known(REFUSED, "SimpleSafetyTests", {"{}": UNSAFE}),
    "o09-wildguard.csv": Known(
        REFUSED, "WildGuard, harmful rows alone", {"{} builtin:starter": UNSAFE}, "builtin:starter"
    ),
    # goals and texts
    "o30-nfd.csv": Known(SILENT, "one goal in two forms of Unicode, in two splits", {}, "more than one split"),
    "o30-quote.csv": Known(SILENT, "one goal with and without a quote, in two splits", {}, "more than one split"),
    "o31-dup.csv": Known(SILENT, "every row twice", {"{}": {k: 40 for k in ALL}}, said="repeat"),
    "o32-scripts.csv": Known(READ, "other scripts", first="user: 第0号请求"),
    "o32-special.csv": Known(READ, "marks of the template in prompts", first=""),
    "o32-surrogate.jsonl": Known(REFUSED, "half a character", {}, "half a character"),
    "o50-html.csv": Known(READ, "HTML in prompts", first=""),
    "o50-markup.csv": Known(READ, "terminal markup in prompts", first=""),
    "o50-markup2.csv": Known(REFUSED, "a misspelt label, one id for all rows", {}, "row "),
    "o63-cat.parquet": Known(READ, "categories of pandas", first=""),
    "o63-comment.csv": Known(LATE, "a comment above the header", said="above"),
    "o63-empty.csv": Known(REFUSED, "an empty file", {}, "is empty"),
    "o63-header.csv": Known(REFUSED, "a header alone", {}, "no rows"),
    "o63-mixed.parquet": Known(READ, "dates and float pair ids", first=""),
    "o63-tie.csv": Known(REFUSED, "`Train`", first="user: x 0"),
    "o63-val.csv": Known(REFUSED, "`validation`", first="user: x 0"),
    "ok.csv": Known(READ, "a sound file", splits=("dev", "test", "train")),
}  # fmt: skip


def file_cases(folder: Path) -> list[Case]:
    """A case for each prompt file of a folder; those that are not known are read or refused, whatever is in them."""
    skipped = {".md", ".jinja"}
    unknown = Known(READ, "prompt file", {}, first="")
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in skipped or "generation_config" in path.name:
            continue
        known = KNOWN.get(path.name, unknown)
        found.append(Case(path.name, known.kind, known.before, partial(_try, path, known)))
    return found


def _try(path: Path, known: Known, room: Room) -> Outcome:
    """As it stands, and then with each option that is said to read it."""
    outcome = _read(path, "{}", known)
    for options in known.counts:
        if options == "{}" or outcome.kind not in (READ, REFUSED):
            continue
        with_options = _read(path, options, known)
        if with_options.kind != READ:
            return Outcome(LATE, f"{options.format(path.name)}: {with_options.words}")
        outcome = Outcome(
            outcome.kind, f"{outcome.words}. {options.format(path.name)}: {with_options.words}"
        )
    return outcome


def _read(path: Path, options: str, known: Known) -> Outcome:
    sources = options.format(path).split(" ")
    counts = known.counts.get(options)
    try:
        found = describe(load_config(overrides={"prompts": {"sources": sources}}))
    except SteerMoEError as error:
        return _refusal(str(error), known)
    except Exception as error:
        return Outcome(TRACEBACK, f"{type(error).__name__}: {error}")
    if found.problem is not None:
        return _refusal(str(found.problem), known)
    if counts is None and known.refusal:
        return Outcome(SILENT, "is read")
    wrong = _wrong(found, path.name, counts, known)
    read = Counter(str(p.label) for p in found.prompts if p.source == path.name)
    summary = ", ".join(f"{n} {label}" for label, n in sorted(read.items()))
    return Outcome(SILENT, wrong) if wrong else Outcome(READ, summary)


def _wrong(found: Description, name: str, counts: Counts | None, known: Known) -> str:
    """What is not as it is meant; empty where all is."""
    own = [prompt for prompt in found.prompts if prompt.source == name]
    read = dict(Counter(str(prompt.label) for prompt in own))
    if counts is not None and read != dict(counts):
        return f"read as {read}"
    first = next((p for p in own if p.label == "unsafe"), None)
    turns = " | ".join(f"{t['role']}: {t['content']}" for t in first.messages) if first else ""
    if known.first and turns != known.first:
        return f"its first prompt is read as {turns!r}"
    splits = tuple(sorted({str(prompt.split) for prompt in own}))
    if known.splits and splits != known.splits:
        return f"its splits are {splits}"
    if known.said and not any(known.said in line for line in found.lines):
        return f"nothing says {known.said!r}"
    return ""


def _refusal(message: str, known: Known) -> Outcome:
    if "\n" in message:
        return Outcome(LATE, message)
    if "{}" in known.counts:
        return Outcome(LATE, f"refused though it could be read: {message}")
    if known.refusal not in message:
        return Outcome(LATE, f"does not say {known.refusal!r}: {message}")
    return Outcome(REFUSED, message)
