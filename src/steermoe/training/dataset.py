"""What is trained on what: from responses to rows, and from rows to micro-batches.

A row is one prompt with the completion it is trained on, and belongs to one objective (`objectives/`): `refusal` rows
learn a target refusal, `retention` rows hold the base model's own reply, which must stay as likely as it was.
Loss is taken on completion tokens only: prompt and padding have none.

Shape legend: B rows of a micro-batch, T tokens of its longest row, padded on the right.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from steermoe.config import DEFAULT_REFUSALS
from steermoe.errors import ConfigError, TrainingError, on_one_line
from steermoe.records import Label, Message, Output, Prompt, Verdict
from steermoe.turns import assistant_turn

TargetResponse = str | Sequence[str] | Callable[[Prompt], str]

IGNORED = -100
"""Label of a token without loss."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One prompt and the completion it is trained on.

    Attributes:
        prompt_id: The prompt it came from.
        label: Its side of the contrast.
        batch_idx: The mixed batch it trains in.
        objective: The name of the objective that it belongs to.
        messages: The chat turns of the prompt.
        completion: The text of the completion.
        prompt_token_ids: Tokens of the rendered prompt.
        completion_token_ids: Tokens of the completion; of a refusal, the end of turn is the last.
        pair_id: What its prompt shares with the other side of its pair; empty of one without.
        is_own_turn: Whether the completion is a turn as the model or its chat template writes one.
    """

    prompt_id: str
    label: Label
    batch_idx: int
    objective: str
    messages: tuple[Message, ...]
    completion: str
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    pair_id: str = ""
    is_own_turn: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_token_ids) + len(self.completion_token_ids)

    def as_sft(self) -> dict[str, object]:
        """The row in the conversational prompt/completion format that TRL reads."""
        return {
            "prompt": [dict(message) for message in self.messages],
            "completion": [{"role": "assistant", "content": self.completion}],
            "label": self.label,
            "batch_idx": self.batch_idx,
            "prompt_id": self.prompt_id,
            "objective": self.objective,
        }


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt of the train split, from which an objective may make a row.

    Attributes:
        prompt: The prompt.
        verdict: On the base model's reply.
        output: The base model's reply, with the tokens of both.
        batch_idx: The mixed batch of the analysis that it is in; `NO_BATCH` of a benign one.
        tokenizer: The model's.
        template_kwargs: What the chat template is passed.
        stop_token_ids: Tokens at which generation ends; by default the tokenizer's end token.
    """

    prompt: Prompt
    verdict: Verdict
    output: Output
    batch_idx: int
    tokenizer: Any
    template_kwargs: Mapping[str, Any]
    stop_token_ids: tuple[int, ...] = ()


def resolve_target(target: TargetResponse) -> Callable[[Prompt, int], str]:
    """Turn a target response into a function of the prompt and its position.

    Args:
        target: A text; several, which the rows take in turn; a callable of the prompt; or the name of one
            as `package.module:callable`.

    Returns:
        A function that raises `ConfigError` where a user's callable fails or returns no text.

    Raises:
        ConfigError: It is empty, or names nothing that can be called.
    """
    if isinstance(target, str) and names_callable(target):
        return _checked(_import_callable(target), f" {target!r}")
    if callable(target):
        return _checked(target, "")
    texts = [target] if isinstance(target, str) else list(target)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ConfigError(
            "train.target_response is empty: give a refusal, a list of them, or a callable"
        )
    return lambda _, position: texts[position % len(texts)]


def refusal_row(
    prompt: Prompt,
    output: Output,
    batch_idx: int,
    target: str,
    tokenizer: Any,
    template_kwargs: Mapping[str, Any] | None = None,
    stop_token_ids: Sequence[int] = (),
) -> TrainingRow:
    """A row that learns to answer a prompt with the target and then to end its turn, as the model ends its own.

    The prompt's tokens are those that the base model replied to: a template may write another date by now.
    """
    turn = assistant_turn(
        tokenizer, prompt.messages, output.prompt, target, template_kwargs, stop_token_ids
    )
    return TrainingRow(
        prompt.prompt_id,
        prompt.label,
        batch_idx,
        "refusal",
        tuple(prompt.messages),
        target,
        output.prompt_token_ids,
        turn.token_ids,
        is_own_turn=turn.by_template,
    )


def retention_row(
    prompt_id: str, label: Label, batch_idx: int, output: Output, max_tokens: int | None = None
) -> TrainingRow:
    """A row that keeps the base model's own reply, token for token, as likely as it was."""
    return TrainingRow(
        prompt_id,
        label,
        batch_idx,
        "retention",
        output.messages,
        output.generated_text,
        output.prompt_token_ids,
        output.generated_token_ids[:max_tokens],
    )


def needs_refusal(prompt: Prompt, verdict: Verdict) -> bool:
    """Whether a train prompt must be refused from now on.

    Unsafe prompts must. A plain harmful goal is kept as it is where the base model refused it, and gets the
    refusal target where the base model did not.
    """
    return prompt.label is Label.UNSAFE or (prompt.is_plain_goal and verdict is not Verdict.REFUSED)


class MicroBatches(Dataset[list[TrainingRow]]):
    """The training set: each item is the rows of one micro-batch, all of one mixed batch.

    Mixed batches keep the composition of the analysis; benign rows, which belong to none, are spread over
    them, other ones in each epoch. Shuffling items therefore shuffles batches and never rows.

    Args:
        rows: Rows with a `batch_idx`.
        benign: Rows to spread.
        batch_size: Most rows of a mixed batch in one micro-batch; each part keeps the mix. None: all.
        benign_per_batch: Benign rows added to each mixed batch in one epoch; None spreads all.
        seed: Seeds the order in which benign rows are used.
    """

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        benign: Sequence[TrainingRow] = (),
        batch_size: int | None = None,
        benign_per_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        if not rows:
            raise TrainingError("there is nothing to train on: no row has a completion")
        by_batch: dict[int, list[TrainingRow]] = {}
        for row in rows:
            by_batch.setdefault(row.batch_idx, []).append(row)
        self._parts = [part for i in sorted(by_batch) for part in _cut(by_batch[i], batch_size)]
        self._benign = list(benign)
        self._seed = seed
        self._chosen: list[list[TrainingRow]] = []
        wanted = len(self._benign) if benign_per_batch is None else benign_per_batch * len(by_batch)
        self._benign_per_epoch = min(wanted, len(self._benign))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the benign rows of an epoch: the next ones of an endless, ever reshuffled row of them."""
        self.epoch = epoch
        num_parts, num_benign = len(self._parts), len(self._benign)
        needed = self._benign_per_epoch
        if needed == num_benign:
            self._chosen = [self._benign[i::num_parts] for i in range(num_parts)]
            return
        picks = []
        for position in range(epoch * needed, (epoch + 1) * needed):
            shuffle, offset = divmod(position, num_benign)
            order = np.random.default_rng([self._seed, shuffle]).permutation(num_benign)
            picks.append(self._benign[int(order[offset])])
        self._chosen = [picks[i::num_parts] for i in range(num_parts)]

    def rows(self) -> list[TrainingRow]:
        """Every row of any epoch."""
        return [*(row for part in self._parts for row in part), *self._benign]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> list[TrainingRow]:
        return self._parts[index] + self._chosen[index]


def collate(items: Sequence[Sequence[TrainingRow]], pad_token_id: int) -> dict[str, Any]:
    """Pad one micro-batch on the right.

    Returns:
        `input_ids`, `attention_mask` `(B, T)`; `labels` `(B, T)`: at each position the id of the *next* token
        if that is a completion token, else -100; `token_position` `(B, T)`: which completion token that is;
        `is_unsafe`, `batch_idx` `(B,)`; `objective`, `prompt_id`, lists of B.
    """
    rows = [row for item in items for row in item]
    lengths = [row.num_tokens for row in rows]
    # The last token predicts nothing, so it need not be fed.
    width = max(lengths) - 1
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    token_position = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids = torch.tensor(row.prompt_token_ids + row.completion_token_ids)
        start = len(row.prompt_token_ids) - 1
        input_ids[i, : length - 1] = ids[:-1]
        attention_mask[i, : length - 1] = 1
        labels[i, start : length - 1] = ids[start + 1 :]
        token_position[i, start : length - 1] = torch.arange(length - 1 - start)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "token_position": token_position,
        "is_unsafe": torch.tensor([row.label is Label.UNSAFE for row in rows]),
        "batch_idx": torch.tensor([row.batch_idx for row in rows]),
        "objective": [row.objective for row in rows],
        "prompt_id": [row.prompt_id for row in rows],
    }


def distinct_rows(rows: Iterable[TrainingRow]) -> list[TrainingRow]:
    """One row for each prompt id, by which what was computed for a row is kept.

    Raises:
        TrainingError: Rows of one id have different tokens: what is kept of one would be taken for the other's.
    """
    found: dict[str, TrainingRow] = {}
    for row in rows:
        same = found.setdefault(row.prompt_id, row)
        if (same.prompt_token_ids, same.completion_token_ids) != (
            row.prompt_token_ids,
            row.completion_token_ids,
        ):
            raise TrainingError(
                f"two training rows have the prompt id {row.prompt_id!r} and different tokens; give each its own id"
            )
    return list(found.values())


def prepare_sft_dataset(
    unsafe_outputs: Iterable[Output],
    tokenizer: Any,
    target_response: TargetResponse = DEFAULT_REFUSALS,
    batch_idx: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[TrainingRow]:
    """Rows that teach a model to refuse the prompts it answered.

    Args:
        unsafe_outputs: Outputs of unsafe prompts. Their prompt tokens are trained on as they are; their replies are
            not used.
        tokenizer: The model's tokenizer.
        target_response: A text, a list of texts taken in turn, or a callable of the prompt record, as in a run; by
            default the refusals that a run trains towards.
        batch_idx: The mixed batch they came from.
        template_kwargs: What the chat template was passed for the outputs: it also writes the targets' turns.

    Returns:
        One row an output; `row.as_sft()` is its line in `sft_dataset.jsonl`.

    Raises:
        ConfigError: The target response is empty, or a callable fails or returns no text.

    Example:
        >>> rows = prepare_sft_dataset([], None, "I can't help with that.")
        >>> rows
        []
    """
    target = resolve_target(target_response)
    rows = []
    for position, output in enumerate(unsafe_outputs):
        prompt = Prompt(
            f"unsafe-{position}", Label.UNSAFE, output.messages, goal=output.messages[-1]["content"]
        )
        text = target(prompt, position)
        rows.append(refusal_row(prompt, output, batch_idx, text, tokenizer, template_kwargs))
    return rows


def _cut(rows: list[TrainingRow], batch_size: int | None) -> list[list[TrainingRow]]:
    """Cut a mixed batch into parts that keep its mix and tear no pair apart, unless it is larger than a part.

    Pairs are dealt out first, then single rows, one objective after the other, each to the part that has fewest.
    """
    if batch_size is None or len(rows) <= batch_size:
        return [rows]
    units = _units(rows, batch_size)
    num_parts = -(-len(rows) // batch_size)
    while (parts := _dealt(units, num_parts, batch_size)) is None:
        num_parts += 1
    place = {id(row): i for i, row in enumerate(rows)}
    return [sorted(part, key=lambda row: (row.objective, place[id(row)])) for part in parts]


def _units(rows: Sequence[TrainingRow], most: int) -> list[list[TrainingRow]]:
    """Rows that stay together, the larger first, single ones by objective."""
    pairs: dict[str, list[TrainingRow]] = {}
    units: list[list[TrainingRow]] = []
    for row in rows:
        unit = pairs.get(row.pair_id) if row.pair_id else None
        if unit is None or len(unit) == most:
            unit = []
            units.append(unit)
            if row.pair_id:
                pairs[row.pair_id] = unit
        unit.append(row)
    return sorted(units, key=lambda unit: (-len(unit), unit[0].objective))


def _dealt(
    units: Sequence[list[TrainingRow]], num_parts: int, most: int
) -> list[list[TrainingRow]] | None:
    """The units in so many parts of at most so many rows; None where they do not fit."""
    parts: list[list[TrainingRow]] = [[] for _ in range(num_parts)]
    for unit in units:
        part = min(parts, key=len)
        if len(part) + len(unit) > most:
            return None
        part += unit
    return parts


def names_callable(text: str) -> bool:
    """Whether a target response is `package.module:callable`, and no text to be learned."""
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(p.isidentifier() for p in module.split("."))


def _import_callable(text: str) -> Callable[[Prompt], str]:
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module raises whatever is wrong with it
        raise ConfigError(
            f"train.target_response = {text!r} cannot be imported: {on_one_line(error)}"
        ) from error
    if not callable(found):
        raise ConfigError(f"train.target_response = {text!r} is not callable")
    return found  # type: ignore[no-any-return]  # imported by name: its type cannot be known


def _checked(function: Callable[[Prompt], str], name: str) -> Callable[[Prompt, int], str]:
    """A user's callable, whose failures and returned values are the user's errors."""

    def target(prompt: Prompt, _: int) -> str:
        try:
            text: object = function(prompt)
        except Exception as error:
            raise ConfigError(
                f"the target response callable{name} failed with {type(error).__name__}: {on_one_line(error)}; it is "
                "given the prompt record and must return a text"
            ) from error
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(
                f"the target response callable{name} returned {text!r}; it must return a text"
            )
        return text

    return target
