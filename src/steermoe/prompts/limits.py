"""Taking some of the prompts: so many of each label and split, pairs kept together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from steermoe.prompts.goals import plain_form, seeded_rank
from steermoe.prompts.splits import goal_groups
from steermoe.records import Label, Prompt, Split

Limits = Mapping[Split, Mapping[Label, int]]
"""Of each split the most prompts of a label; of what is not named, all are taken."""


def take_some(
    prompts: Sequence[Prompt], limits: Limits, seed: int = 0
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Leave out what is above the limits.

    Prompts of one goal or pair are one draw, so with equal limits of both sides no pair is torn. The draw depends on
    the seed and on the goals, and not on the order of the rows.

    Args:
        prompts: Prompts with a split.
        limits: The most of each label and split.
        seed: Draws which.

    Returns:
        The prompts that are taken, in their order, and a sentence on each split of which some are left out.
    """

    def rank(group: Sequence[int]) -> bytes:
        return seeded_rank(seed, min(plain_form(prompts[i].goal) for i in group))

    taken: set[int] = set()
    left_out: Counter[tuple[Split, Label]] = Counter()
    count: Counter[tuple[Split, Label]] = Counter()
    for group in sorted(goal_groups(prompts), key=rank):
        for i in group:
            split, label = prompts[i].split, prompts[i].label
            assert split is not None
            most = limits.get(split, {}).get(label)
            if most is not None and count[split, label] >= most:
                left_out[split, label] += 1
                continue
            count[split, label] += 1
            taken.add(i)
    notes = []
    for split in Split:
        parts = [
            f"{left_out[split, label]} of {left_out[split, label] + count[split, label]} {label}"
            for label in Label
            if left_out[split, label]
        ]
        if parts:
            notes.append(
                f"prompts.limits leaves out {', '.join(parts)} prompts of the {split} goals"
            )
    return tuple(prompt for i, prompt in enumerate(prompts) if i in taken), tuple(notes)
