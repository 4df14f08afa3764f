"""Taking some of the prompts: counts by hand, pairs kept together, and a draw that depends on seed and goals alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from steermoe.prompts.limits import take_some
from steermoe.records import Label, Prompt, Split


def prompt(label: Label, number: int, split: Split = Split.TRAIN) -> Prompt:
    text = f"{label} {split} request {number}"
    pair = "" if label is Label.BENIGN else f"{split} pair {number}"
    messages = ({"role": "user", "content": text},)
    return Prompt(text, label, messages, goal=text, pair_id=pair, split=split)


def ten_of_each() -> list[Prompt]:
    return [prompt(label, i, split) for split in Split for label in Label for i in range(10)]


def counts(prompts: tuple[Prompt, ...]) -> Counter[tuple[Split | None, Label]]:
    return Counter((p.split, p.label) for p in prompts)


def test_what_is_not_named_is_taken_whole_and_nothing_is_said() -> None:
    assert take_some(ten_of_each(), {}) == (tuple(ten_of_each()), ())
    enough = {Split.TRAIN: {Label.BENIGN: 10, Label.SAFE: 99}}
    assert take_some(ten_of_each(), enough) == (tuple(ten_of_each()), ())


def test_so_many_of_each_label_and_split_in_their_order() -> None:
    limits = {
        Split.TRAIN: {Label.UNSAFE: 6, Label.SAFE: 6, Label.BENIGN: 2},
        Split.DEV: dict.fromkeys(Label, 0),
    }
    taken, notes = take_some(ten_of_each(), limits)
    assert counts(taken) == {
        (Split.TRAIN, Label.UNSAFE): 6,
        (Split.TRAIN, Label.SAFE): 6,
        (Split.TRAIN, Label.BENIGN): 2,
        **{(Split.TEST, label): 10 for label in Label},
    }
    assert [p for p in ten_of_each() if p in taken] == list(taken)
    assert notes == (
        "prompts.limits leaves out 4 of 10 safe, 4 of 10 unsafe, 8 of 10 benign prompts of the train goals",
        "prompts.limits leaves out 10 of 10 safe, 10 of 10 unsafe, 10 of 10 benign prompts of the dev goals",
    )


def test_pairs_stay_together_as_far_as_both_limits_allow() -> None:
    taken, _ = take_some(ten_of_each(), {Split.TRAIN: {Label.UNSAFE: 7, Label.SAFE: 4}})
    of_train = [p for p in taken if p.split is Split.TRAIN]
    safe = {p.pair_id for p in of_train if p.label is Label.SAFE}
    unsafe = {p.pair_id for p in of_train if p.label is Label.UNSAFE}
    assert (len(safe), len(unsafe)) == (4, 7)
    assert safe < unsafe


def test_prompts_of_one_goal_are_drawn_together() -> None:
    """Ten goals, asked in three ways each: six prompts are two goals."""
    asked = [
        replace(prompt(Label.UNSAFE, i), prompt_id=f"{i}-{way}", pair_id="")
        for way in range(3)
        for i in range(10)
    ]
    taken, _ = take_some(asked, {Split.TRAIN: {Label.UNSAFE: 6}})
    assert sorted(Counter(p.goal for p in taken).values()) == [3, 3]


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    limits = {Split.TRAIN: {Label.UNSAFE: 5, Label.SAFE: 5}}
    rows = ten_of_each()
    shuffled = random.Random(0).sample(rows, len(rows))
    one, other, again = (
        {p.prompt_id for p in take_some(given, limits, seed)[0]}
        for given, seed in ((rows, 0), (rows, 1), (shuffled, 0))
    )
    assert one == again != other
