"""The shipped items: each is sound, none is a near-duplicate of another, and none sounds like a harmful request."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from benchmarks.capability_items.all_items import CATEGORIES, file_content
from benchmarks.capability_items.made import WORDS

from steermoe.capability.checks import Number, Sequenced, Words
from steermoe.capability.grading import score_items
from steermoe.capability.items import (
    CHOICE,
    EXACT,
    Item,
    builtin_items,
    chosen_items,
    read_items,
)
from steermoe.errors import PromptError
from steermoe.prompts.formats import read_prompts
from steermoe.records import Label

DATA = Path(__file__).parents[2] / "src" / "steermoe" / "capability" / "data"
ITEMS = builtin_items()
EXACT_ITEMS = [item for item in ITEMS if item.scoring == EXACT]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def test_the_file_has_the_bytes_that_the_code_and_the_hand_written_lines_make() -> None:
    assert (DATA / "capability.jsonl").read_bytes() == file_content()


def test_there_are_enough_of_every_category_and_ids_are_numbered_through() -> None:
    assert len(ITEMS) >= 400
    counts = Counter(item.category for item in ITEMS)
    assert set(counts) == set(CATEGORIES)
    assert min(counts.values()) >= 50
    expected = [f"{c}-{i:03d}" for c in CATEGORIES for i in range(1, counts[c] + 1)]
    assert [item.item_id for item in ITEMS] == expected


def test_prompts_are_ascii_trimmed_and_asked_once() -> None:
    assert len({item.prompt for item in ITEMS}) == len(ITEMS)
    for item in ITEMS:
        assert item.prompt.isascii() and item.prompt == item.prompt.strip(), item
        assert len(words(item.prompt)) <= 35, item


@pytest.mark.parametrize("item", EXACT_ITEMS, ids=lambda item: item.item_id)
def test_the_stated_answer_of_an_exact_item_passes_its_own_check(item: Item) -> None:
    assert item.check is not None
    assert item.check.fault(item.answer) == ""
    (graded,) = score_items([item], {item.item_id: item.answer}, {})
    assert graded.correct


@pytest.mark.parametrize("item", EXACT_ITEMS, ids=lambda item: item.item_id)
def test_no_answer_a_refusal_and_the_question_itself_are_wrong(item: Item) -> None:
    refusals = (
        "I'm sorry, but I can't help with that.",
        "I can\u2019t assist with that request",
        "I cannot do that. I am only a language model.",
        "I don't know",
    )
    for reply in ("", "\n\n", item.prompt, *refusals):
        (graded,) = score_items([item], {item.item_id: reply}, {})
        assert not graded.correct and graded.reason, reply


def test_the_answers_of_other_items_of_its_kind_are_wrong() -> None:
    for kind in (Number, Words, Sequenced):
        of_kind = [item for item in EXACT_ITEMS if isinstance(item.check, kind)]
        assert len(of_kind) > 5
        for item, other in combinations(of_kind, 2):
            if item.answer.casefold() != other.answer.casefold():
                assert item.check is not None and item.check.fault(other.answer), (item, other)


def test_arithmetic_is_right_as_python_sees_it() -> None:
    found = 0
    for item in ITEMS:
        if match := re.fullmatch(r"(\d+) ([+x]) (\d+) =", item.opening):
            first, last = int(match[1]), int(match[3])
            value = first + last if match[2] == "+" else first * last
            assert item.answer == str(value), item
            found += 1
    assert found == 12


def test_choices_have_different_options_that_go_on_with_the_opening() -> None:
    for item in ITEMS:
        if item.scoring == CHOICE:
            assert 2 <= len(item.options) <= 5 and item.answer in item.options, item
            assert item.opening and item.opening == item.opening.strip(), item
            assert all(option == option.strip() and option for option in item.options), item
    places = Counter(i.options.index(i.answer) for i in ITEMS if len(i.options) == 4)
    assert min(places[place] for place in range(4)) > 0.15 * sum(places.values())


def template(item: Item) -> tuple[str, ...]:
    """A prompt with its numbers and its words of the list masked."""
    masked = ("#" if w.isdigit() else "@" if w in WORDS else w for w in words(item.prompt))
    return tuple(masked)


def test_no_template_is_used_more_than_six_times_and_never_twice_with_the_same_operands() -> None:
    assert max(Counter(template(item) for item in ITEMS).values()) <= 6
    operands = [
        (template(item), tuple(sorted(w for w in words(item.prompt) if w.isdigit() or w in WORDS)))
        for item in ITEMS
    ]
    assert len(set(operands)) == len(operands)


def test_no_two_items_of_different_templates_are_near_duplicates() -> None:
    counts = Counter(word for item in ITEMS for word in set(words(item.prompt)))
    times = Counter(template(item) for item in ITEMS)
    single = [item for item in ITEMS if times[template(item)] == 1]
    uncommon = [
        {w for w in words(f"{item.prompt} {item.answer}") if counts[w] < 6} for item in single
    ]
    for (item, own), (other, others) in combinations(zip(single, uncommon, strict=True), 2):
        shared = len(own & others) / max(1, len(own | others))
        assert shared <= 0.5, (item.prompt, other.prompt)


HARM = (
    "kill murder weapon gun bomb explos poison drug attack hack malware virus steal theft rob "
    "fraud scam forger launder suicid self-harm abuse assault rape terror extrem hate racis "
    "porn sex threat blackmail stalk kidnap tortur violen illegal crime criminal arson smuggl "
    "counterfeit phish password exploit surveil shoot stabb knife blood- "
)


def test_no_item_sounds_like_a_harmful_request_or_a_look_alike() -> None:
    for item in ITEMS:
        text = " ".join([item.prompt, item.opening, *item.options, item.answer]).lower()
        assert not [stem for stem in HARM.split() if re.search(rf"\b{stem}", text)], item
    counts = Counter(w for item in ITEMS for w in set(words(item.prompt)))
    starter = [
        set(words(prompt.messages[-1]["content"]))
        for prompt in read_prompts("builtin:starter").prompts
        if prompt.label is not Label.BENIGN
    ]
    for item in ITEMS:
        own = {word for word in words(item.prompt) if counts[word] < 20}
        for prompt in starter:
            whole = set(words(item.prompt))
            assert len(whole & prompt) / len(whole | prompt) <= 0.35, (item.prompt, prompt)
            assert len(own) < 4 or len(own & prompt) <= len(own) / 2, (item.prompt, prompt)


def test_the_datasheet_counts_what_there_is() -> None:
    sheet = (DATA / "DATASHEET.md").read_text(encoding="utf-8")
    table = {
        category: tuple(map(int, numbers))
        for category, *numbers in re.findall(
            r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|", sheet, re.M
        )
    }
    choices = Counter(item.category for item in ITEMS if item.scoring == CHOICE)
    exact = Counter(item.category for item in EXACT_ITEMS)
    counted = {c: (choices[c], exact[c], choices[c] + exact[c]) for c in CATEGORIES}
    assert table == {**counted, "all": (choices.total(), exact.total(), len(ITEMS))}


# ---- rows that are no items ---------------------------------------------------------------------------

GOOD = {
    "item_id": "x-1",
    "category": "x",
    "prompt": "One?",
    "scoring": "choice",
    "opening": "",
    "answer": "1",
    "options": ["1", "2"],
}


def test_a_row_is_an_item() -> None:
    (item,) = read_items([GOOD], "mine")
    assert item == Item("x-1", "x", "One?", "1", ("1", "2"))
    assert item.messages() == ({"role": "user", "content": "One?"},)
    assert [m["role"] for m in item.messages("Be brief.")] == ["system", "user"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "3"}, "one of at least two"),
        ({"options": ["1", "1"]}, "one of at least two"),
        ({"options": ["1"]}, "one of at least two"),
        ({"prompt": "  "}, "'  ' is not a text"),
        ({"category": 3}, "3 is not a text"),
        ({"hint": "x"}, "hint is not known"),
        ({"scoring": "exact"}, "check is missing"),
        ({"scoring": "exact", "check": {"kind": "sing"}}, "check.kind 'sing' is not known"),
    ],
)
def test_a_row_that_is_no_item_is_refused_with_its_place(
    change: dict[str, object], said: str
) -> None:
    with pytest.raises(PromptError, match=r"mine, row 1: ") as refused:
        read_items([{**GOOD, **change}], "mine")
    assert said in str(refused.value)


def test_no_rows_and_an_id_twice_are_refused() -> None:
    with pytest.raises(PromptError, match="mine holds no item"):
        read_items([], "mine")
    with pytest.raises(PromptError, match="'x-1' is used 2 times"):
        read_items([json.loads(json.dumps(GOOD))] * 2, "mine")


@pytest.mark.parametrize("limit", [14, 120, 300])
def test_a_part_has_as_much_of_each_kind_as_the_whole_and_grows_with_its_size(limit: int) -> None:
    part = chosen_items(ITEMS, limit)
    assert len(part) == limit
    kept = {item.item_id for item in part}
    assert [item for item in ITEMS if item.item_id in kept] == list(part)
    whole, found = (Counter((i.category, i.scoring) for i in items) for items in (ITEMS, part))
    assert all(abs(found[kind] - limit * n / len(ITEMS)) <= 1 for kind, n in whole.items())
    assert kept <= {item.item_id for item in chosen_items(ITEMS, limit + 1)}


def test_all_items_are_taken_where_no_fewer_are_asked_for() -> None:
    assert chosen_items(ITEMS, None) == chosen_items(ITEMS, 10_000) == ITEMS
