"""The layouts that prompt files come in: how each is recognised, what is read of it, and by whom.

A layout is recognised by the names of its columns (XSTest's and OR-Bench's by what stands in them, too). The first
in `LAYOUTS` that fits is taken; rows with labels come where a label's column decides, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from steermoe.prompts import attacks, known_sets, published
from steermoe.prompts.columns import Role, meaning, role_of
from steermoe.prompts.labelled import read_rows
from steermoe.prompts.rows import Reading, Row, Wanted, plain_word


class PromptFormat(StrEnum):
    """Layouts that prompt files come in."""

    JAILBREAK = "jailbreak"
    ROWS = "rows"
    LINES = "lines"
    ADVBENCH = "advbench"
    HARMBENCH = "harmbench"
    HARMBENCH_RESULTS = "harmbench_results"
    JAILBREAKBENCH = "jailbreakbench"
    STRONGREJECT = "strongreject"
    XSTEST = "xstest"
    DO_NOT_ANSWER = "do_not_answer"
    SORRY_BENCH = "sorry_bench"
    SIMPLE_SAFETY_TESTS = "simple_safety_tests"
    WILDGUARD = "wildguard"
    WILDJAILBREAK = "wildjailbreak"
    BEAVERTAILS = "beavertails"
    HH = "hh"
    ALPACA = "alpaca"


Fits = Callable[[Sequence[str], Sequence[Row]], bool]
"""Whether a layout fits columns and rows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout.

    Attributes:
        format: Its name in settings.
        title: Its name in sentences.
        fits: Whether a file has it.
        read: Turns rows into prompts.
        reads: Columns that `read` looks at, beside a split.
        leaves: Columns that look like ours and are known to be something else here.
        asks: Why the user has to give the label, and how; empty where the file tells it.
        is_harmful: It holds harmful requests only, so the absence of a safe side is no mistake of the user's.
    """

    format: PromptFormat
    title: str
    fits: Fits
    read: Callable[[Sequence[Row], Wanted], Reading]
    reads: Collection[str] = ()
    leaves: Collection[str] = ()
    asks: str = ""
    is_harmful: bool = False

    def columns_read(self, fields: Sequence[str]) -> list[str]:
        """Those of a file's columns that are read."""
        reads = set(self.reads)
        if self.format is PromptFormat.JAILBREAK:
            goal, texts = attacks.goal_and_attacks(fields) or ("goal", ("all_prompt",))
            reads |= {goal, *texts, *attacks.success_fields(fields)}
        return [field for field in fields if field in reads]


def _has(*names: str) -> Fits:
    return lambda fields, _: set(names) <= set(fields)


def _has_label(fields: Sequence[str], rows: Sequence[Row]) -> bool:
    return any(role_of(field, rows) is Role.LABEL for field in fields)


def _is_labelled(fields: Sequence[str], rows: Sequence[Row]) -> bool:
    told = any(meaning(f) in (Role.PROMPT, Role.MESSAGES, Role.GOAL) for f in fields)
    return told and _has_label(fields, rows)


def _is_xstest(fields: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether most rows are of one of its types: a column `type` may mean anything."""
    if not {"prompt", "type"} <= set(fields):
        return False
    known = sum(plain_word(row.value("type")) in published.XSTEST_TYPES for row in rows)
    return 2 * known >= len(rows)


def _is_sorry_bench(fields: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether it has styles, or categories that are numbers: harmless benches of turns have words there."""
    if not {"question_id", "category", "turns"} <= set(fields):
        return False
    numbered = all(plain_word(row.value("category")).isdecimal() for row in rows)
    return "prompt_style" in fields or numbered


def _is_harmbench(fields: Sequence[str], _: Sequence[Row]) -> bool:
    return "behavior" in fields and bool({"semanticcategory", "behaviorid"} & set(fields))


def _is_beavertails(fields: Sequence[str], rows: Sequence[Row]) -> bool:
    return {"prompt", "response", "is_safe"} <= set(fields) and "label" not in fields


def _is_alpaca(fields: Sequence[str], _: Sequence[Row]) -> bool:
    return {"instruction", "output"} <= set(fields)


def _is_hh(fields: Sequence[str], rows: Sequence[Row]) -> bool:
    return {"chosen", "rejected"} <= set(fields) and not {"prompt", "messages"} & set(fields)


PLAIN_ROWS = Layout(PromptFormat.ROWS, "rows with labels", _is_labelled, read_rows)

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        PromptFormat.JAILBREAK,
        "results of attacks",
        _has("all_prompt"),
        attacks.read_jailbreaks,
        reads=("id", "category"),
        leaves=("behavior",),
    ),
    Layout(
        PromptFormat.XSTEST,
        "XSTest",
        _is_xstest,
        published.read_xstest,
        reads=("id", "id_v2", "prompt", "type", "label"),
    ),
    Layout(
        PromptFormat.WILDJAILBREAK,
        "WildJailbreak",
        _has("adversarial", "data_type"),
        known_sets.read_wildjailbreak,
        reads=("adversarial", "vanilla", "data_type", "label"),
    ),
    Layout(
        PromptFormat.WILDGUARD,
        "WildGuardMix",
        _has("prompt", "prompt_harm_label"),
        known_sets.read_wildguard,
        reads=("prompt", "adversarial", "prompt_harm_label", "subcategory"),
    ),
    Layout(
        PromptFormat.BEAVERTAILS,
        "BeaverTails",
        _is_beavertails,
        known_sets.read_beavertails,
        reads=("prompt",),
        leaves=("is_safe",),
        asks="whose 'is_safe' is of the reply and says nothing of the prompt",
    ),
    Layout(
        PromptFormat.HARMBENCH_RESULTS,
        "HarmBench results",
        _has("behaviorid", "test_case"),
        attacks.read_harmbench_results,
        reads=("behaviorid", "test_case", "label"),
        is_harmful=True,
    ),
    PLAIN_ROWS,
    Layout(
        PromptFormat.JAILBREAK,
        "results of attacks",
        lambda fields, _: attacks.goal_and_attacks(fields) is not None,
        attacks.read_jailbreaks,
        reads=("id", "category"),
        leaves=("behavior",),
    ),
    Layout(
        PromptFormat.STRONGREJECT,
        "StrongREJECT",
        _has("forbidden_prompt"),
        published.read_strongreject,
        reads=("category", "forbidden_prompt"),
        is_harmful=True,
    ),
    Layout(
        PromptFormat.HARMBENCH,
        "HarmBench",
        _is_harmbench,
        published.read_harmbench,
        reads=("behavior", "behaviorid", "contextstring", "semanticcategory", "imagefilename"),
        is_harmful=True,
    ),
    Layout(
        PromptFormat.JAILBREAKBENCH,
        "JailbreakBench",
        _has("goal", "behavior", "category"),
        published.read_jailbreakbench,
        reads=("index", "goal", "category"),
        leaves=("behavior",),
        is_harmful=True,
    ),
    Layout(
        PromptFormat.ADVBENCH,
        "AdvBench",
        _has("goal", "target"),
        published.read_advbench,
        reads=("goal",),
        is_harmful=True,
    ),
    Layout(
        PromptFormat.DO_NOT_ANSWER,
        "Do-Not-Answer",
        _has("risk_area", "question"),
        known_sets.read_do_not_answer,
        reads=("id", "question", "risk_area"),
        is_harmful=True,
    ),
    Layout(
        PromptFormat.SORRY_BENCH,
        "SORRY-Bench",
        _is_sorry_bench,
        known_sets.read_sorry_bench,
        reads=("question_id", "category", "turns", "prompt_style"),
        is_harmful=True,
    ),
    Layout(
        PromptFormat.SIMPLE_SAFETY_TESTS,
        "SimpleSafetyTests",
        _has("harm_area", "prompt"),
        known_sets.read_simple_safety_tests,
        reads=("id", "harm_area", "prompt"),
        is_harmful=True,
    ),
    Layout(
        PromptFormat.HH,
        "HH-RLHF",
        _is_hh,
        known_sets.read_hh,
        reads=("chosen",),
        asks="which says which of two replies is better, and nothing of the prompt",
    ),
    Layout(
        PromptFormat.ALPACA,
        "Alpaca",
        _is_alpaca,
        known_sets.read_alpaca,
        reads=("instruction", "input"),
        leaves=("text",),  # instruction, input and output in one
        asks="which does not say what its instructions are",
    ),
)
"""In the order in which they are tried."""


def find_layout(fields: Sequence[str], rows: Sequence[Row]) -> Layout:
    """The first layout that fits; rows with labels where none does, so that their reader says what is missing."""
    return next((layout for layout in LAYOUTS if layout.fits(fields, rows)), PLAIN_ROWS)


def layout_named(format: PromptFormat) -> Layout:
    """The layout of that name. A text of one prompt a line is read like rows."""
    wanted = PromptFormat.ROWS if format is PromptFormat.LINES else format
    return next(layout for layout in LAYOUTS if layout.format is wanted)


def looks_like_or_bench(fields: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether a file without labels is one of OR-Bench's, whose names alone say which is harmful."""
    if set(fields) != {"prompt", "category"}:
        return False
    return all(plain_word(row.value("category")) in known_sets.OR_BENCH_CATEGORIES for row in rows)
