"""Public sets of prompts beside the benchmarks, recognised by their columns.

Those that say of each prompt what it is are read as they are. Those that do not (their labels are of replies, or
lie in the name of the file) are read once the user has said it: `unsafe:FILE`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steermoe.errors import PromptError
from steermoe.prompts.conversations import TurnsTally, parse_conversation, read_conversation
from steermoe.prompts.labels import NO, YES, read_split
from steermoe.prompts.rows import (
    Reading,
    Row,
    Wanted,
    counted,
    plain_word,
    row_keys,
    shown,
    unknown_word,
    user_turn,
)
from steermoe.prompts.strict_json import load_json
from steermoe.records import JAILBREAK_FORMAT, LOOK_ALIKE, Label, Message, Prompt

OR_BENCH_CATEGORIES = frozenset(
    {"deception", "harassment", "harmful", "hate", "illegal"}
    | {"privacy", "self-harm", "sexual", "unethical", "violence"}
)

_WILDJAILBREAK = {
    "vanilla_harmful": (Label.UNSAFE, ""),
    "vanilla_benign": (Label.SAFE, LOOK_ALIKE),
    "adversarial_harmful": (Label.UNSAFE, "jailbreak"),
    "adversarial_benign": (Label.BENIGN, JAILBREAK_FORMAT),
}
"""Label and category of WildJailbreak's four kinds: its plain harmless prompts were written to look harmful."""

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def read_do_not_answer(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """Do-Not-Answer: `risk_area, question`, harmful requests only."""
    return _harmful(rows, wanted, "do-not-answer", "question", "risk_area")


def read_simple_safety_tests(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """SimpleSafetyTests: `harm_area, prompt`, harmful requests only."""
    return _harmful(rows, wanted, "simple-safety-tests", "prompt", "harm_area")


def read_sorry_bench(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """SORRY-Bench: `question_id, category, turns`, harmful requests in one turn.

    A question may come in many styles, of which the base one is its goal where the file has it.
    """
    texts = [_single_turn(row) for row in rows]
    goals = {
        row.identifier("question_id"): text
        for row, text in zip(rows, texts, strict=True)
        if not _is_styled(row)
    }
    prompts = []
    for row, text, key in zip(rows, texts, row_keys(rows, "question_id"), strict=True):
        question = row.identifier("question_id")
        prompts.append(
            Prompt(
                prompt_id=f"sorry-bench-{key}",
                label=Label.UNSAFE,
                messages=user_turn(text),
                goal=goals.get(question, text) if _is_styled(row) else text,
                category=row.identifier("category"),
                split=read_split(row),
                source=wanted.name,
            )
        )
    return prompts, []


def read_wildjailbreak(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """WildJailbreak: `vanilla, adversarial, data_type`, or its evaluation file without `vanilla`."""
    prompts = []
    tally = TurnsTally()
    for row in rows:
        kind = plain_word(row.text("data_type"))
        if kind not in _WILDJAILBREAK:
            raise row.error("data_type", unknown_word(row.text("data_type"), _WILDJAILBREAK))
        label, category = _WILDJAILBREAK[kind]
        column = "adversarial" if kind.startswith("adversarial") else "vanilla"
        messages = read_conversation(row, column, tally)
        _check_harm(row, label)
        prompts.append(
            Prompt(
                prompt_id=f"wildjailbreak-{row.padded_number}",
                label=label,
                messages=messages,
                goal=row.optional_text("vanilla") or messages[-1]["content"],
                category=category,
                split=read_split(row),
                source=wanted.name,
            )
        )
    return prompts, tally.notes()


def read_wildguard(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """WildGuardMix: `prompt, prompt_harm_label`, and `adversarial` where a prompt is in a jailbreak's wrapping."""
    prompts = []
    num_unlabelled = 0
    for row in rows:
        if not row.has("prompt_harm_label"):
            num_unlabelled += 1
            continue
        word = plain_word(row.value("prompt_harm_label"))
        if word not in ("harmful", "unharmful"):
            value = row.value("prompt_harm_label")
            raise row.error("prompt_harm_label", unknown_word(value, ["harmful", "unharmful"]))
        wrapped = row.has("adversarial") and _yes_or_no(row, "adversarial")
        text = row.text("prompt")
        label, category = Label.UNSAFE, row.optional_text("subcategory")
        if word == "unharmful":
            label, category = (
                (Label.BENIGN, JAILBREAK_FORMAT) if wrapped else (Label.SAFE, category)
            )
        prompts.append(
            Prompt(
                prompt_id=f"wildguard-{row.padded_number}",
                label=label,
                messages=user_turn(text),
                goal=text,
                category=category,
                split=read_split(row),
                source=wanted.name,
            )
        )
    if not prompts:
        raise PromptError(
            f"{rows[0].source}: no row has a 'prompt_harm_label'; name the label's column"
        )
    notes = [
        "'prompt_harm_label' is read: harmful as unsafe, unharmful as safe or, wrapped, as benign"
    ]
    if num_unlabelled:
        were = "row was" if num_unlabelled == 1 else "rows were"
        notes.append(f"{num_unlabelled} {were} left out: 'prompt_harm_label' is empty")
    return prompts, notes


def read_beavertails(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """BeaverTails: `prompt, response, is_safe`. The label is of the reply and says nothing of the prompt."""
    return _of_one_kind(rows, wanted, "beavertails", [_user(row, "prompt") for row in rows])


def read_alpaca(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """Alpaca and its kind: `instruction, input, output`. The input is what the instruction is about, below it."""
    conversations = []
    for row in rows:
        instruction, about = row.text("instruction"), row.optional_text("input")
        conversations.append(user_turn(f"{instruction}\n\n{about}" if about else instruction))
    return _of_one_kind(rows, wanted, "alpaca", conversations)


def read_hh(rows: Sequence[Row], wanted: Wanted) -> Reading:
    """HH-RLHF: `chosen, rejected`, two transcripts. The turns before the last reply of the first are the prompt.

    Some published transcripts do not alternate between the two speakers; they are left out and counted.
    """
    tally = TurnsTally()
    conversations = []
    kept = []
    left_out: list[int] = []
    for row in rows:
        turns = _transcript(row, "chosen")
        try:
            conversations.append(parse_conversation(turns, tally))
            kept.append(row)
        except PromptError as error:
            if len(left_out) == len(rows) - 1:
                raise row.error("chosen", str(error)) from None
            left_out.append(row.number)
    prompts, notes = _of_one_kind(kept, wanted, "hh", conversations)
    if left_out:
        were = f"{counted(len(left_out), 'transcript')} left out, the first in row {left_out[0]}"
        notes.append(f"{were}: its turns do not alternate, or one is empty")
    return prompts, [*notes, *tally.notes()]


def _harmful(
    rows: Sequence[Row], wanted: Wanted, prefix: str, field: str, category: str
) -> Reading:
    prompts = [
        Prompt(
            prompt_id=f"{prefix}-{key}",
            label=Label.UNSAFE,
            messages=_user(row, field),
            goal=row.text(field),
            category=row.optional_text(category),
            split=read_split(row),
            source=wanted.name,
        )
        for row, key in zip(rows, row_keys(rows, "id"), strict=True)
    ]
    return prompts, []


def _of_one_kind(
    rows: Sequence[Row],
    wanted: Wanted,
    prefix: str,
    conversations: Sequence[tuple[Message, ...]],
) -> Reading:
    """Prompts of the label that the user gives; `formats` sees to it that there is one."""
    assert wanted.label is not None
    prompts = [
        Prompt(
            prompt_id=f"{prefix}-{row.padded_number}",
            label=wanted.label,
            messages=messages,
            goal=messages[-1]["content"],
            category=wanted.category,
            split=read_split(row),
            source=wanted.name,
        )
        for row, messages in zip(rows, conversations, strict=True)
    ]
    return prompts, []


def _user(row: Row, field: str) -> tuple[Message, ...]:
    return user_turn(row.text(field))


def _single_turn(row: Row) -> str:
    """The only turn of a list of texts, which a CSV file holds as JSON."""
    value = row.value("turns")
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = load_json(value)
        except (ValueError, RecursionError):
            value = [value]
    turns = value if isinstance(value, list) else [value]
    if len(turns) != 1 or not isinstance(turns[0], str) or not turns[0].strip():
        raise row.error("turns", f"must be a list of one text, not {shown(row.value('turns'))}")
    messages = parse_conversation(turns[0])
    return messages[0]["content"]


def _is_styled(row: Row) -> bool:
    return row.has("prompt_style") and plain_word(row.value("prompt_style")) != "base"


def _check_harm(row: Row, label: Label) -> None:
    """WildJailbreak's evaluation file says twice what a prompt is."""
    if row.has("label") and _yes_or_no(row, "label") is not (label is Label.UNSAFE):
        kind = shown(row.value("data_type"))
        raise row.error("label", f"{shown(row.value('label'))} does not fit data_type {kind}")


def _yes_or_no(row: Row, field: str) -> bool:
    word = plain_word(row.value(field))
    if word not in (*YES, *NO):
        raise row.error(
            field, f"{shown(row.value(field))} is neither a yes (1, true) nor a no (0, false)"
        )
    return word in YES


def _transcript(row: Row, field: str) -> list[Message]:
    """The turns of a text in which each begins with a blank line and who speaks."""
    text = row.text(field)
    before, *pieces = _SPEAKER.split("\n\n" + text.lstrip("\n"))
    if before.strip() or not pieces:
        raise row.error(
            field, "must be a transcript whose turns begin with 'Human:' and 'Assistant:'"
        )
    return [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
