"""Splits: no goal on two sides, whatever the file looks like; the right shares; the same every time."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steermoe.errors import ConfigError, PromptError
from steermoe.prompts.goals import normalised_goal
from steermoe.prompts.resolve import resolve_prompts
from steermoe.prompts.splits import assign_splits, goal_groups
from steermoe.records import LOOK_ALIKE, Label, Prompt, Split

TRAIN, DEV, TEST = Split.TRAIN, Split.DEV, Split.TEST


def prompt(i, goal=None, label=Label.SAFE, **fields):
    goal = f"goal {i}" if goal is None else goal
    return Prompt(f"p{i}", label, ({"role": "user", "content": goal},), goal, **fields)


def counts(prompts):
    return Counter(p.split for p in prompts)


prompt_lists = st.lists(
    st.tuples(
        st.sampled_from(
            ["Open it", "open  IT?", "close it", "Close it.", "Turn", "tuRn!", "x", "y"]
        ),
        st.sampled_from(Label),
        st.sampled_from(["", "", "", "1", "2"]),
    ),
    max_size=30,
).map(
    lambda rows: [
        prompt(i, goal, label, pair_id=pair) for i, (goal, label, pair) in enumerate(rows)
    ]
)


@given(prompt_lists, st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_no_goal_and_no_pair_is_ever_on_two_sides(prompts, seed, random):
    split = assign_splits(prompts, seed)
    assert [dataclasses.replace(p, split=None) for p in split] == prompts
    sides = {}
    for p in split:
        assert p.split in Split
        for key in [
            ("goal", normalised_goal(p.goal)),
            *([("pair", p.pair_id)] if p.pair_id else []),
        ]:
            assert sides.setdefault(key, p.split) is p.split
    shuffled = random.sample(prompts, len(prompts))
    by_id = {p.prompt_id: p.split for p in split}
    assert {p.prompt_id: p.split for p in assign_splits(shuffled, seed)} == by_id


@pytest.mark.parametrize(
    ("goal", "same"),
    [
        ("How do I open it?", "how do i  OPEN it"),
        ("Straße", "STRASSE"),
        ("\uff46\uff55\uff4c\uff4c width", "full width."),
        ("Wait ... !", "wait"),
        ("等一下。", "等一下"),
        ("naïve", "nai\u0308ve"),
    ],
)
def test_goals_that_differ_in_form_only_are_the_same(goal, same):
    assert normalised_goal(goal) == normalised_goal(same)


@pytest.mark.parametrize(("goal", "other"), [("open it", "open them"), ("C", "C#"), ("?", "!")])
def test_goals_that_differ_are_not_the_same(goal, other):
    assert normalised_goal(goal) != normalised_goal(other)


def test_a_chain_of_goals_and_pairs_is_one_group():
    prompts = [
        prompt(0, "a", pair_id="1"),
        prompt(1, "b", pair_id="1"),
        prompt(2, "B!"),
        prompt(3, "c"),
    ]
    assert goal_groups(prompts) == [[0, 1, 2], [3]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (4, (2, 1, 1)), (9, (5, 1, 3)), (144, (80, 16, 48))],
)
def test_shares_of_single_goals(count, expected):
    found = counts(assign_splits([prompt(i) for i in range(count)], seed=1))
    assert (found[TRAIN], found[DEV], found[TEST]) == expected


def test_each_kind_is_spread_by_itself():
    kinds = [
        (Label.SAFE, ""),
        (Label.SAFE, LOOK_ALIKE),
        (Label.UNSAFE, ""),
        (Label.BENIGN, "general"),
        (Label.BENIGN, "code"),
    ]
    prompts = [
        prompt(f"{k}-{i}", label=label, category=category)
        for k, (label, category) in enumerate(kinds)
        for i in range(18)
    ]
    found = Counter((p.label, p.is_look_alike, p.split) for p in assign_splits(prompts))
    assert found[Label.SAFE, False, TRAIN] == found[Label.SAFE, True, TRAIN] == 10
    assert found[Label.UNSAFE, False, DEV] == 2
    assert found[Label.BENIGN, False, TEST] == 12  # both categories: 36 prompts


def test_big_goals_do_not_upset_the_shares():
    prompts = [prompt(i, f"single {i}") for i in range(9)]
    prompts += [prompt(i, "attacked nine times") for i in range(9, 18)]
    found = counts(assign_splits(prompts))
    assert (found[TRAIN], found[DEV], found[TEST]) == (10, 2, 6)


def test_the_seed_changes_who_goes_where_but_not_how_many():
    prompts = [prompt(i) for i in range(90)]
    first, again, other = (assign_splits(prompts, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert counts(first) == counts(other)


def test_own_splits_are_kept_and_followed_by_the_rest_of_their_goal():
    prompts = [
        prompt(0, "a", split=TEST),
        prompt(1, "A."),
        prompt(2, "b", split=DEV, pair_id="1"),
        prompt(3, "c", pair_id="1"),
        prompt(4, "d"),
    ]
    assert [p.split for p in assign_splits(prompts)] == [TEST, TEST, DEV, DEV, TRAIN]


def test_own_splits_that_leak_are_refused_and_counted():
    prompts = [
        prompt(0, "Pick a lock", split=TRAIN, source="mine.csv"),
        prompt(1, "pick a lock!", split=TEST),
        prompt(2, "b", split=TRAIN, pair_id="1"),
        prompt(3, "c", split=DEV, pair_id="1"),
        prompt(4, "d", split=DEV),
    ]
    with pytest.raises(PromptError) as caught:
        assign_splits(prompts)
    text = str(caught.value)
    assert text.startswith("2 goals are in more than one split")
    assert "'Pick a lock' of mine.csv, in train and test" in text
    with pytest.raises(PromptError, match="1 goal is in more than one split"):
        assign_splits(prompts[:2])


def test_fractions_may_leave_a_split_out_but_must_add_up():
    prompts = [prompt(i) for i in range(7)]
    assert counts(assign_splits(prompts, fractions=(1, 0, 0))) == {TRAIN: 7}
    assert counts(assign_splits(prompts, fractions=(0.5, 0, 0.5)))[DEV] == 0
    for wrong in [(0.5, 0.5, 0.5), (1.5, -0.5, 0)]:
        with pytest.raises(ConfigError, match="add up to 1"):
            assign_splits(prompts, fractions=wrong)


def test_nothing_to_split():
    assert assign_splits([]) == ()


def test_the_builtin_prompts_keep_their_splits():
    prompts = resolve_prompts(["builtin:starter"]).prompts
    split = assign_splits(prompts, seed=5)
    assert split == prompts
    found = Counter((p.label, p.split) for p in split)
    assert found[Label.UNSAFE, TRAIN] >= 80 and found[Label.UNSAFE, TEST] >= 48
