"""Train, dev and test, divided by goal: what asks for the same thing is never on two sides."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from steermoe.errors import ConfigError, PromptError
from steermoe.prompts.goals import normalised_goal, plain_form, seeded_rank
from steermoe.prompts.rows import shown
from steermoe.records import Prompt, Split

DEFAULT_FRACTIONS = (5 / 9, 1 / 9, 3 / 9)
"""Shares of train, dev and test."""


def assign_splits(
    prompts: Sequence[Prompt],
    seed: int = 0,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
) -> tuple[Prompt, ...]:
    """Give every prompt a split.

    Prompts form a group when a chain of equal goals (by `normalised_goal`) and equal pair ids links
    them. A group has one split. Where a member brings its own, the group has that;
    the other groups are divided by `fractions`, separately for each kind (the labels and categories a group
    holds), so that each kind is spread. Within a kind, groups are taken largest first and equal ones in an
    order drawn from the seed; each goes where most prompts are still due. The order of the rows does not
    matter.

    Args:
        prompts: Prompts with or without a split.
        seed: Draws the order.
        fractions: Shares of train, dev and test; they add up to 1.

    Returns:
        The prompts in their order, each with a split.

    Raises:
        PromptError: The splits that prompts bring put a group on two sides.
        ConfigError: The fractions are no shares.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"split fractions {fractions} must be three shares of train, dev and test that add up to 1"
        )
    groups = goal_groups(prompts)
    _check_no_leak(prompts, groups)
    split_of: dict[int, Split] = {}
    kinds: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for group in groups:
        own = {split for i in group if (split := prompts[i].split) is not None}
        if own:
            split_of.update(dict.fromkeys(group, own.pop()))
        else:
            kinds[_kind(prompts[i] for i in group)].append(group)
    for same_kind in kinds.values():
        split_of.update(_divide(prompts, same_kind, seed, fractions))
    return tuple(dataclasses.replace(prompt, split=split_of[i]) for i, prompt in enumerate(prompts))


def goal_groups(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Positions of prompts that must share a split, one list a group, in order of first appearance."""
    parent = list(range(len(prompts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, prompt in enumerate(prompts):
        keys = [("goal", normalised_goal(prompt.goal))]
        if prompt.pair_id:
            keys.append(("pair", prompt.pair_id))
        for key in keys:
            parent[root(i)] = root(first.setdefault(key, i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(prompts)):
        groups[root(i)].append(i)
    return list(groups.values())


def _check_no_leak(prompts: Sequence[Prompt], groups: Sequence[Sequence[int]]) -> None:
    leaks = []
    for group in groups:
        own = {split for i in group if (split := prompts[i].split) is not None}
        if len(own) > 1:
            leaks.append((prompts[group[0]], [split for split in Split if split in own]))
    if leaks:
        prompt, sides = leaks[0]
        count = "1 goal is" if len(leaks) == 1 else f"{len(leaks)} goals are"
        raise PromptError(
            f"{count} in more than one split, counting pairs as one goal; the first is "
            f"{shown(prompt.goal)} of {prompt.source or 'the prompts'}, in {' and '.join(sides)}; "
            "give all its rows one split, or none to have them divided"
        )


def _kind(group: Iterable[Prompt]) -> tuple[str, ...]:
    """What a group is made of: its labels, with look-alikes and plain goals told from other safe prompts."""
    parts = set()
    for prompt in group:
        special = prompt.is_look_alike or prompt.is_plain_goal
        parts.add(f"{prompt.label}:{prompt.category}" if special else str(prompt.label))
    return tuple(sorted(parts))


def _divide(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[int]],
    seed: int,
    fractions: tuple[float, float, float],
) -> Mapping[int, Split]:
    """A split for each prompt of these groups."""

    def order(group: Sequence[int]) -> tuple[int, bytes]:
        return -len(group), seeded_rank(seed, min(plain_form(prompts[i].goal) for i in group))

    total = sum(map(len, groups))
    due = {split: share * total for split, share in zip(Split, fractions, strict=True)}
    split_of: dict[int, Split] = {}
    for group in sorted(groups, key=order):
        # Rounded, so that sums that are equal but for the last bit are a tie, which train wins.
        split = max(Split, key=lambda split: round(due[split], 9))
        due[split] -= len(group)
        split_of.update(dict.fromkeys(group, split))
    return split_of
