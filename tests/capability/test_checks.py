"""Checks of replies, on replies that were written by hand: right ones, wrong ones, and ones that cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from steermoe.capability.checks import Number, Sequenced, Words, check_of
from steermoe.capability.format_rules import RULES, Format


def right(check: Any, *replies: str) -> None:
    for reply in replies:
        assert check.fault(reply) == "", reply


def wrong(check: Any, *replies: str) -> None:
    for reply in replies:
        assert check.fault(reply) != "", reply


def test_a_number_is_read_from_an_equation_a_sentence_or_marks() -> None:
    right(
        Number(12),
        "12",
        "12.",
        "7 + 5 = 12",
        "7+5=12.",
        "The answer is 12. I counted 3 times.",
        "The answer is **12**.",
        r"\boxed{12}",
        "$12$",
        "`12`",
        "Answer: 12",
        "It is 12 eggs.",
        "\n\n12\n\nBecause 5 and 7 are 12, and 3 more would be 15.",
    )


def test_other_numbers_and_no_numbers_are_wrong() -> None:
    wrong(Number(12), "13", "-12", "12.5", "7 + 5", "112", "x12", "twelve", "", "12 + 1 = 13")
    wrong(Number(12), "12.12.2020")
    assert Number(12).fault("I do not know.") == "no number in 'I do not know.'"
    assert Number(12).fault("It is 13.") == "says 13, not 12"


def test_thousands_may_be_separated_and_signs_count() -> None:
    right(Number(1234), "1,234", "1234", "1234.0")
    right(Number(-5), "-5", "\u22125", "3 - 8 = -5")
    wrong(Number(-5), "5", "3-5")


def test_a_short_answer_may_stand_alone_or_in_a_frame() -> None:
    right(
        Words(("Paris",)),
        "Paris",
        "paris.",
        '"Paris"',
        "**Paris**",
        "The answer is Paris.",
        "The answer to this question is: Paris",
        "The capital of France is Paris.",
        "Paris is the capital of France.",
        "The capital of France is the city of Paris.",
        "It's Paris!",
        "Paris\n\nIt lies on the Seine.",
    )


def test_a_short_answer_that_names_more_or_something_else_is_wrong() -> None:
    wrong(
        Words(("Paris",)),
        "Lyon",
        "Paris or Lyon",
        "It is not Paris",
        "Paris is not the capital of France.",
        "I think of Paris when I hear this",
        "Comparis",
        "",
        "...",
        "Lyon\nParis",
    )
    assert Words(("Paris",)).fault("  \n") == "the reply is empty"


def test_a_letter_may_be_introduced_as_one() -> None:
    right(
        Words(("n",)),
        "n",
        "N",
        'The letter "n".',
        'It ends with the letter... it is "n"',
        'The letter "n" is the last letter of the word "kitten"',
    )
    wrong(Words(("n",)), 'The letter "k" is the last letter of the word "kitten"', "no", "n k")


def test_any_accepted_text_will_do() -> None:
    right(Words(("three", "3")), "three", "3", "It has three.".replace("has", "is"))
    wrong(Words(("three", "3")), "two", "33", "thirty-three")


def test_a_sequence_may_be_separated_and_introduced_in_many_ways() -> None:
    right(
        Sequenced(("3", "5", "9")),
        "3, 5, 9",
        "3 5 9",
        "3 < 5 < 9",
        "3, 5 and 9.",
        "Sorted: 3, 5, 9",
        "The list is 3, 5, 9.",
        "1. 3\n2. 5\n3. 9",
        "- 3\n- 5\n- 9",
        "Here you are:\n3, 5, 9\nI sorted them.",
    )
    right(
        Sequenced(tuple("cat")),
        "c-a-t",
        "C-A-T",
        "c a t",
        "c, a, t",
        'The word is spelled: "c-a-t"',
    )


def test_a_sequence_in_another_order_or_with_other_members_is_wrong() -> None:
    wrong(
        Sequenced(("3", "5", "9")), "9, 5, 3", "3, 5", "3, 5, 9, 12", "359", "", "three, five, nine"
    )
    wrong(Sequenced(tuple("cat")), "cat", "c-a-t-s", "k-a-t", "c-a")


ADA = {"name": "Ada"}

RULE_CASES: dict[str, tuple[tuple[Any, ...], list[str], list[str]]] = {
    "equals": (("ready",), ["ready", "Ready.", '"ready"'], ["I am ready", "read", ""]),
    "contains": (("river",), ["The river bends.", "RIVER"], ["rivers", "driver", "water"]),
    "lacks": (("cold",), ["It is warm."], ["It is cold.", "COLD"]),
    "lacks_character": ((",",), ["one and two"], ["one, two"]),
    "starts_with": (
        ("Dear friend",),
        ["Dear friend, hello", "dear friend"],
        ["My dear friend", ""],
    ),
    "ends_with": (("sofa",), ["on the sofa.", "Sofa!"], ["sofa bed", "so far"]),
    "ends_with_mark": (("?",), ["Who?", '"Who?"'], ["Who.", "Who? Me."]),
    "one_of": (("yes", "no"), ["Yes", "no."], ["Yes, it is", "maybe", ""]),
    "repeats": (
        ("tree", 3),
        ["tree tree tree", "Tree, tree, tree."],
        ["tree tree", "tree tree trees"],
    ),
    "words": ((3,), ["sour yellow fruit", "It's a well-made"], ["two words", "one two three four"]),
    "words_at_least": ((3,), ["one two three", "one two three four"], ["one two", ""]),
    "words_at_most": ((2,), ["one", "one two"], ["one two three"]),
    "sentences": ((2,), ["It rains. I stay.", "Who? Me!"], ["It rains.", "A. B. C.", ""]),
    "lines": ((2,), ["red\nblue", "red\n\nblue\n"], ["red", "red\nblue\ngreen"]),
    "upper_case": ((), ["VIOLIN", "A B, C!"], ["Violin", "123", ""]),
    "lower_case": ((), ["violin", "a b, c!"], ["Violin", "123", ""]),
    "in_quotes": (
        (),
        ['"Monday"', "\u201cMonday\u201d"],
        ["Monday", '"Monday', '"', 'He said "Monday"'],
    ),
    "in_double_angles": ((), ["<<Sea>>"], ["<Sea>", "<<Sea", "<<>>", "<<Sea>> is it"]),
    "bullets": ((2,), ["- a\n- b", "* a\n* b"], ["- a", "Here:\n- a\n- b", "a\nb", "-a\n-b"]),
    "numbered": (
        (2,),
        ["1. a\n2. b", "1) a\n2) b"],
        ["1. a", "2. a\n1. b", "1. a\n2. b\n3. c", "a\nb"],
    ),
    "json": (
        (ADA,),
        ['{"name": "Ada"}', '```json\n{"name": "Ada"}\n```'],
        ['{"name": "Bob"}', "{", '["Ada"]', 'Here: {"name": "Ada"}', '{"name": "Ada", "age": 3}'],
    ),
    "json_keys": (
        ("a", "b"),
        ['{"b": 1, "a": null}'],
        ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', "a, b"],
    ),
}


def test_every_rule_has_cases() -> None:
    assert set(RULE_CASES) == set(RULES)


@pytest.mark.parametrize("name", RULE_CASES)
def test_a_rule_holds_where_it_should_and_nowhere_else(name: str) -> None:
    given, kept, broken = RULE_CASES[name]
    check = Format(((name, *given),))
    right(check, *kept)
    wrong(check, *broken)


def test_all_rules_of_a_format_must_hold_and_the_first_broken_one_is_named() -> None:
    check = Format((("upper_case",), ("words", 2)))
    right(check, "GOOD DAY", "  GOOD DAY\n")
    assert check.fault("Good day") == "breaks: upper_case"
    assert check.fault("DAY") == "breaks: words 2"
    assert check.fault(" \n ") == "the reply is empty"


@pytest.mark.parametrize(
    "reply", ["I'm sorry, no.", "I can\u2019t say", "We cannot do so", "I do not know", "Unable to"]
)
def test_a_reply_that_declines_is_wrong_whatever_its_form(reply: str) -> None:
    assert Format((("words_at_least", 1),)).fault(reply) == "declines"


def test_a_check_is_made_from_what_is_stored_of_it() -> None:
    assert check_of({"kind": "number", "value": 3}) == Number(3)
    stored = {"kind": "format", "rules": [["words", 2], ["json", {"a": [1]}]]}
    assert check_of(stored) == Format((("words", 2), ("json", {"a": [1]})))


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"kind": "guess"},
        {"kind": "number"},
        {"kind": "number", "value": 1, "unit": "m"},
        {"kind": "format", "rules": [["sings"]]},
    ],
)
def test_what_is_no_check_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"check|format rule"):
        check_of(stored)
