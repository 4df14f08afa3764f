"""Goals that differ in form only are one goal, on one side of every split."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_files import as_csv
from steermoe.errors import PromptError
from steermoe.prompts.goals import normalised_goal, plain_form
from steermoe.prompts.resolve import resolve_prompts
from steermoe.prompts.splits import assign_splits

GOAL = "Comment faire un café ?"
SAME = {
    "case": "COMMENT FAIRE UN CAFÉ ?",
    "decomposed": unicodedata.normalize("NFD", GOAL),
    "zero width space": "Comment fai\u200bre un café ?",
    "zero width space inside a letter": "Comment faire un cafe\u200b\u0301 ?",
    "byte order mark": "\ufeffComment faire un café ?",
    "soft hyphen": "Com\u00adment faire un café ?",
    "direction marks": "\u202bComment faire un café\u202c ?\u200f",
    "no-break spaces": "Comment\u00a0faire\u202fun café\u2009?",
    "variation selector": "Comment faire un café\ufe0f ?",
    "tag characters": "Comment faire un café\U000e0041 ?",
    "control character": "Comment\x00 faire un café\x07 ?",
    "quoted": "\u201cComment faire un café ?\u201d",
    "guillemets": "\u00ab Comment faire un café ? \u00bb",
    "quoted word": "Comment faire un 'café' ?",
    "dash before": "- Comment faire un café ?",
    "long dash before": "\u2014 Comment faire un café ?",
    "bullet": "\u2022 Comment faire un café ?",
    "brackets": "(Comment faire un café ?)",
    "closing bracket": "Comment faire un café ?)",
    "dashes for blanks": "Comment\u2013faire un-café ?",
    "full width": "\uff23omment faire un café \uff1f",
    "ellipsis": "Comment faire un café\u2026",
}  # fmt: skip


@pytest.mark.parametrize("how", SAME)
def test_one_goal(how):
    assert normalised_goal(SAME[how]) == normalised_goal(GOAL) == "comment faire un café"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("don't", "don\u2019t"),
        ("don't", "don\u00b4t"),
        ("self-harm", "self\u2010harm"),
        ("self-harm", "self harm"),
        ("a \u2014 b", "a--b"),
        ('the "red" one', "the \u201ered\u201c one"),
        ("\u00bfqu\u00e9 es?", "qu\u00e9 es"),
    ],
)
def test_quotes_and_dashes_make_no_difference(first, second):
    assert normalised_goal(first) == normalised_goal(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("C", "C#"),
        ("100", "100%"),
        ("?", "!"),
        ("a b", "ab"),
        ("1.5", "15"),
        ("open it", "open them"),
    ],
)
def test_other_differences_remain(first, second):
    assert normalised_goal(first) != normalised_goal(second)


@given(st.text(max_size=40))
@settings(max_examples=500, deadline=None)
def test_a_normalised_goal_is_normal_and_never_empty(goal):
    normal = normalised_goal(goal)
    assert normalised_goal(normal) == normal
    assert bool(normal) is bool(" ".join(goal.split()))


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=500, deadline=None)
def test_goals_that_were_one_before_still_are(first, second):
    # Order within splits is drawn by the plain form: two groups of one plain form would tie.
    if plain_form(first) == plain_form(second):
        assert normalised_goal(first) == normalised_goal(second)


@pytest.mark.parametrize("how", SAME)
def test_a_goal_in_another_form_may_not_leak_into_another_split(prompt_file, how):
    content = as_csv(
        ["prompt", "label", "split"],
        [GOAL, "unsafe", "train"],
        [SAME[how].replace("\x00", "\x01"), "unsafe", "test"],
        ["other", "safe", "train"],
    )
    prompts = resolve_prompts([prompt_file(content)]).prompts
    with pytest.raises(PromptError, match="1 goal is in more than one split"):
        assign_splits(prompts)
