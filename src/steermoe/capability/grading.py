"""From replies and likelihoods to right and wrong, and from those to accuracies and their changes.

Every item counts. An answer that cannot be read is wrong, and keeps the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from steermoe.analysis import rates
from steermoe.capability.checks import shown
from steermoe.capability.items import BUILTIN_CAPABILITY, CHOICE, Item
from steermoe.errors import RunDirectoryError, SteerMoEError
from steermoe.metrics import MeasureRow

ACCURACY = "capability"
"""Name of the measure: share of the items whose answer is right."""

SOURCE = "exact_check_and_likelihood"
"""Where the figure comes from, as `measures.parquet` says it."""

COLUMNS = ("item_id", "category", "scoring", "correct", "given", "reason")
"""Of a table of graded items."""


@dataclass(frozen=True, slots=True)
class Graded:
    """One item, and whether a model got it right.

    Attributes:
        item_id: Which item.
        category: Its category.
        scoring: `choice` or `exact`.
        correct: Whether it is right; what cannot be read is not.
        given: The reply, or the likeliest option.
        reason: What is wrong; empty where nothing is.
    """

    item_id: str
    category: str
    scoring: str
    correct: bool
    given: str
    reason: str


def score_items(
    items: Sequence[Item],
    replies: Mapping[str, str | None],
    likelihoods: Mapping[str, Sequence[float]],
) -> list[Graded]:
    """Grade every item.

    Args:
        items: The items.
        replies: Of each exact item, by its id, the final answer; None where a reply ended inside its reasoning.
        likelihoods: Of each choice, by its id, the natural log-probability of every option, in the item's order.

    Returns:
        One grade an item, in order.

    Raises:
        SteerMoEError: An item has no reply or no likelihoods: it has not been asked, which is not the same as wrong.
    """
    graded = []
    for item in items:
        given = likelihoods if item.scoring == CHOICE else replies
        if item.item_id not in given:
            raise SteerMoEError(
                f"capability item {item.item_id} has not been answered; ask it first"
            )
        if item.scoring == CHOICE:
            graded.append(_graded_choice(item, likelihoods[item.item_id]))
        else:
            graded.append(_graded_reply(item, replies[item.item_id]))
    return graded


def per_byte(option: str, log_prob: float) -> float:
    """Log-probability of an option per byte of its UTF-8 text: long options are not less likely for their length."""
    return log_prob / len(option.encode("utf-8"))


def _graded_choice(item: Item, log_probs: Sequence[float]) -> Graded:
    if len(log_probs) != len(item.options):
        raise SteerMoEError(
            f"capability item {item.item_id} has {len(item.options)} options and {len(log_probs)} likelihoods"
        )
    if not all(math.isfinite(value) for value in log_probs):
        return _grade(item, "", "likelihoods are not finite")
    values = [per_byte(o, value) for o, value in zip(item.options, log_probs, strict=True)]
    best = [o for o, value in zip(item.options, values, strict=True) if value == max(values)]
    if len(best) > 1:
        return _grade(item, best[0], f"{len(best)} options are equally likely")
    return _grade(item, best[0], "" if best[0] == item.answer else f"likeliest is {shown(best[0])}")


def _graded_reply(item: Item, reply: str | None) -> Graded:
    if reply is None:
        return _grade(item, "", "the reply ended inside its reasoning")
    assert item.check is not None, item.item_id
    if reply.split() == item.prompt.split():
        return _grade(item, reply, "repeats the question")
    return _grade(item, reply, item.check.fault(reply))


def _grade(item: Item, given: str, fault: str) -> Graded:
    return Graded(item.item_id, item.category, item.scoring, not fault, given, fault)


# ---- tables and figures -------------------------------------------------------------------------------


def accuracy_rows(
    variant: str, graded: pd.DataFrame, confidence: float = 0.95, set_name: str = BUILTIN_CAPABILITY
) -> list[MeasureRow]:
    """Share of right answers of one variant: over all items, and of each category, with Wilson intervals.

    Args:
        variant: Which model.
        graded: Its table, with `COLUMNS`.
        confidence: Level of the intervals.
        set_name: Name of the items; a category's rows are of the set `<name>/<category>`.
    """
    return [
        MeasureRow(
            variant,
            name,
            ACCURACY,
            rates.rate(
                list(part["correct"]),
                list(part["item_id"]),
                worse=False,
                confidence=confidence,
            ),
            SOURCE,
        )
        for name, part in _sets(graded, set_name)
    ]


def change_rows(
    variant: str,
    graded: pd.DataFrame,
    base: str,
    base_graded: pd.DataFrame,
    confidence: float = 0.95,
    num_bootstrap: int = 10_000,
    seed: int = 0,
    set_name: str = BUILTIN_CAPABILITY,
) -> list[MeasureRow]:
    """Change of the share of right answers, item by item: bootstrap interval and exact McNemar.

    Args:
        variant: The changed model.
        graded: Its table.
        base: What it is compared with.
        base_graded: The table of that, of the same items.
        confidence: Level of the intervals.
        num_bootstrap: Draws.
        seed: Seeds them.
        set_name: Name of the items.

    Returns:
        As `accuracy_rows`; `more` has `only_before`, `only_after` and `p_value`.

    Raises:
        RunDirectoryError: The tables are of different items.
    """
    if set(graded["item_id"]) != set(base_graded["item_id"]):
        raise RunDirectoryError(
            f"capability of {variant} and {base} is of different items; measure both again"
        )
    before = base_graded.set_index("item_id")["correct"]
    return [
        MeasureRow(
            variant,
            name,
            ACCURACY,
            rates.change(
                list(before.loc[part["item_id"]]),
                list(part["correct"]),
                list(part["item_id"]),
                confidence=confidence,
                num_bootstrap=num_bootstrap,
                seed=seed,
            ),
            SOURCE,
            compared_with=base,
        )
        for name, part in _sets(graded, set_name)
    ]


def _sets(graded: pd.DataFrame, name: str) -> list[tuple[str, pd.DataFrame]]:
    parts = graded.groupby("category", sort=True)
    return [(name, graded), *((f"{name}/{category}", part) for category, part in parts)]
