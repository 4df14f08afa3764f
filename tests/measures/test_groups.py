"""Rates by category and by style, each group a set of its own."""

from __future__ import annotations

from itertools import product

import pytest

from made_evidence import evidence, prompt, side
from steermoe.measures import MEASURES
from steermoe.measures.groups import BY_GROUP, parts_of_group_name

BY_CATEGORY, BY_STYLE = BY_GROUP
NO, YES = "I'm sorry, but I can't help with that.", "Of course, it is the third from the left."


def test_each_category_has_its_rates_and_changes() -> None:
    prompts = [
        *(prompt(f"t{i}", "unsafe", category="theft") for i in range(3)),
        *(prompt(f"h{i}", "unsafe", category="hate") for i in range(2)),
        prompt("b", "benign", category="cooking"),
        prompt("l", "safe", category="look_alike"),
        prompt("n", "unsafe"),
    ]
    before = side({found.prompt_id: YES for found in prompts})
    after = side(
        {
            found.prompt_id: NO if found.prompt_id in ("t0", "t1", "h0", "h1") else YES
            for found in prompts
        }
    )
    rows = BY_CATEGORY.of(evidence(prompts, after, before))
    own = {(row.set, row.measure): row.metric for row in rows if not row.compared_with}
    # Look-alikes are no kind of request, and what has no category is in no group.
    assert {key: (metric.value, metric.n) for key, metric in own.items()} == {
        ("test/category=cooking", "over_refusal_rate"): (0.0, 1),
        ("test/category=hate", "refusal_rate"): (1.0, 2),
        ("test/category=theft", "refusal_rate"): (pytest.approx(2 / 3), 3),
    }
    changes = {row.set: row.metric.value for row in rows if row.compared_with == "base"}
    assert changes["test/category=theft"] == pytest.approx(2 / 3)
    assert len(rows) == 6


def test_prompts_of_one_category_are_not_divided() -> None:
    prompts = [prompt(f"t{i}", "unsafe", category="theft") for i in range(3)]
    assert BY_CATEGORY.of(evidence(prompts, side({f"t{i}": NO for i in range(3)}))) == []


def test_styles_are_groups_too_where_prompts_have_one() -> None:
    prompts = [
        prompt(f"p{i}", label, style=style)
        for i, (style, label) in enumerate(product(("question", "story"), ("unsafe", "benign")))
    ]
    rows = BY_STYLE.of(evidence(prompts, side({f"p{i}": NO for i in range(4)})))
    assert [(row.set, row.measure, row.metric.value) for row in rows] == [
        ("test/style=question", "refusal_rate", 1.0),
        ("test/style=question", "over_refusal_rate", 1.0),
        ("test/style=story", "refusal_rate", 1.0),
        ("test/style=story", "over_refusal_rate", 1.0),
    ]
    assert BY_STYLE.of(evidence([prompt("a"), prompt("b")], side({"a": NO, "b": NO}))) == []


def test_the_name_of_a_group_says_what_it_is_a_part_of() -> None:
    assert parts_of_group_name("test/category=hate=speech") == ("test", "category", "hate=speech")
    assert parts_of_group_name("test") is None


def test_every_measure_has_its_words_once() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    for measure in MEASURES:
        assert measure.title and measure.meaning and measure.unit
        assert measure.better in ("higher", "lower", "")
