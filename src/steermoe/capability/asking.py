"""Asking an engine the items: replies to exact ones, likelihoods of the options of choices.

Items are asked in groups, planned from the items alone. A group that is answered is a batch of rows that can be stored,
so an interrupted measurement goes on with the next group; and since every model is asked the same groups, answers
differ by the model alone.

Shape legend: C completion tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from steermoe.capability.grading import COLUMNS, Graded, score_items
from steermoe.capability.items import CHOICE, Item
from steermoe.chat import encode, render
from steermoe.contracts import ScoringEngine
from steermoe.errors import RunDirectoryError
from steermoe.records import Continuation, Output, Sampling

GROUP_SIZE = 96
"""Items that are asked together."""


def measure_capability(
    engine: ScoringEngine,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    system_prompt: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    answer_of: Callable[[Output], str | None] | None = None,
    group_size: int = GROUP_SIZE,
    finished: Mapping[int, Sequence[Graded]] | None = None,
    on_group: Callable[[int, Sequence[Graded]], None] | None = None,
) -> pd.DataFrame:
    """Ask a model every item.

    Args:
        engine: The model.
        tokenizer: Its tokenizer.
        items: The items.
        system_prompt: Text of a system turn before each item; without one, None.
        template_kwargs: Passed to the chat template, as the engine passes them.
        answer_of: The part of a reply that is meant for the user; None where it ended inside its reasoning. By default
            the whole reply.
        group_size: Most items of a group.
        finished: Rows of groups that an earlier call has answered, by group.
        on_group: Takes each group's number and rows as soon as it is answered.

    Returns:
        One row an item, in the items' order: `item_id, category, scoring, correct, given, reason`.

    Raises:
        RunDirectoryError: The finished groups are of other items.
    """
    answered: dict[int, Sequence[Graded]] = dict(finished or {})
    for index, group in enumerate(plan_groups(items, group_size)):
        if index not in answered:
            answered[index] = ask_group(
                engine, tokenizer, group, system_prompt, template_kwargs, answer_of
            )
            if on_group is not None:
                on_group(index, answered[index])
    return capability_table(items, answered.values())


def plan_groups(items: Sequence[Item], group_size: int = GROUP_SIZE) -> list[list[Item]]:
    """Items that are asked together: choices with choices, replies with replies of the same greatest length.

    Within a kind they go by the length of their prompt, so that little is padding.
    """
    kinds = sorted({(item.scoring, item.max_tokens) for item in items})
    groups: list[list[Item]] = []
    for kind in kinds:
        of_kind = [item for item in items if (item.scoring, item.max_tokens) == kind]
        of_kind.sort(key=lambda item: (len(item.prompt), item.item_id))
        groups += [of_kind[i : i + group_size] for i in range(0, len(of_kind), group_size)]
    return groups


def ask_group(
    engine: ScoringEngine,
    tokenizer: Any,
    group: Sequence[Item],
    system_prompt: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    answer_of: Callable[[Output], str | None] | None = None,
) -> list[Graded]:
    """Ask the items of one group, and grade the answers. Arguments as of `measure_capability`."""
    replies: dict[str, str | None] = {}
    likelihoods: dict[str, list[float]] = {}
    if group[0].scoring == CHOICE:
        likelihoods = _option_log_probs(engine, tokenizer, group, system_prompt, template_kwargs)
    else:
        sampling = Sampling(max_tokens=group[0].max_tokens)
        outputs = engine.generate([item.messages(system_prompt) for item in group], sampling)
        for item, output in zip(group, outputs, strict=True):
            replies[item.item_id] = (
                output.generated_text if answer_of is None else answer_of(output)
            )
    return score_items(group, replies, likelihoods)


def capability_table(items: Sequence[Item], groups: Iterable[Sequence[Graded]]) -> pd.DataFrame:
    """The rows of all groups as one table, in the items' order.

    Raises:
        RunDirectoryError: They are not the rows of these items.
    """
    rows = {row.item_id: asdict(row) for group in groups for row in group}
    if set(rows) != {item.item_id for item in items}:
        raise RunDirectoryError(
            f"the stored answers are of {len(rows)} capability items, and not of the {len(items)} there are; "
            "remove them and measure again"
        )
    return pd.DataFrame([rows[item.item_id] for item in items], columns=list(COLUMNS))


def continuation_log_probs(
    engine: ScoringEngine, continuations: Sequence[Continuation]
) -> Iterator[tuple[Continuation, Any]]:
    """What a model expects at each place of a continuation, after everything before it.

    Returns:
        Each continuation that has tokens, in order, with natural log-probabilities `(C, V)` in fp32.
    """
    for continuation, logits in engine.score(continuations):
        yield continuation, logits.float().log_softmax(-1)


def _option_log_probs(
    engine: ScoringEngine,
    tokenizer: Any,
    group: Sequence[Item],
    system_prompt: str | None,
    template_kwargs: Mapping[str, Any] | None,
) -> dict[str, list[float]]:
    """Log-probability of every option of every item, by the item's id.

    Options that differ in their last token alone are read from one pass: what comes before it is the same text.
    """
    options: dict[str, list[tuple[int, ...]]] = {}
    fed: dict[tuple[str, tuple[int, ...]], Continuation] = {}
    for item in group:
        before, options[item.item_id] = option_tokens(
            tokenizer, item, system_prompt, template_kwargs
        )
        for option in options[item.item_id]:
            fed.setdefault((item.item_id, option[:-1]), Continuation(item.item_id, before, option))
    # Rows of similar length go through the model together.
    fed = dict(sorted(fed.items(), key=lambda pair: _length(pair[1])))
    found: dict[tuple[str, tuple[int, ...]], float] = {}
    passes = continuation_log_probs(engine, list(fed.values()))
    for (item_id, begin), (_, log_probs) in zip(fed, passes, strict=True):
        total = log_probs[range(len(begin)), list(begin)].sum().item()
        for option in options[item_id]:
            if option[:-1] == begin:
                found[item_id, option] = total + log_probs[-1, option[-1]].item()
    return {item_id: [found[item_id, o] for o in of_item] for item_id, of_item in options.items()}


def option_tokens(
    tokenizer: Any,
    item: Item,
    system_prompt: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Token ids of what comes before the options of a choice, and of each option.

    The text is tokenized as a whole: where the first token of an option reaches into the text before it, that token is
    part of the option, and what comes before it is shorter. Options of one item begin at the same place.
    """
    begin = render(tokenizer, item.messages(system_prompt), template_kwargs) + item.opening
    space = " " if item.opening else ""
    before = encode(tokenizer, begin)
    whole = [encode(tokenizer, f"{begin}{space}{option}") for option in item.options]
    shared = min(_num_shared(before, ids) for ids in whole)
    return tuple(before[:shared]), [tuple(ids[shared:]) for ids in whole]


def _num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with, of which `other` keeps at least one for itself."""
    shared = 0
    for a, b in zip(one, other[:-1], strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _length(continuation: Continuation) -> int:
    return len(continuation.prompt_token_ids) + len(continuation.completion_token_ids)
