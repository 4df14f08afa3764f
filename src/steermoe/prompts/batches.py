"""Mixed batches: so many safe and so many unsafe prompts each, with pairs kept together.

Also how a prompt of the Python interface (text, messages, or a record) becomes a record.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from steermoe.errors import ConfigError, PromptError
from steermoe.prompts.conversations import parse_conversation
from steermoe.prompts.goals import seeded_rank
from steermoe.records import Label, Prompt, PromptLike, Split

Pair = tuple[Prompt, Prompt]
"""A safe prompt and its unsafe partner."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which prompts go into which mixed batch.

    Attributes:
        batches: Each holds its safe prompts first, then its unsafe ones. Pairs come first on both sides, in
            the same order, so the i-th safe prompt belongs to the i-th unsafe one.
        leftovers: Safe and unsafe prompts that fill no batch.
        num_torn_pairs: Pairs of which only one half is in a batch.
    """

    batches: tuple[tuple[Prompt, ...], ...]
    leftovers: tuple[Prompt, ...]
    num_torn_pairs: int = 0

    def notes(self, prompts: str, fate: str) -> tuple[str, ...]:
        """What to say aloud: leftovers, and pairs that could not stay together.

        Args:
            prompts: What the leftovers are called.
            fate: What becomes of them; only the caller knows.
        """
        notes = []
        if self.leftovers:
            num_safe = sum(prompt.label is Label.SAFE for prompt in self.leftovers)
            notes.append(
                f"{len(self.leftovers)} {prompts} fill no batch ({num_safe} safe, "
                f"{len(self.leftovers) - num_safe} unsafe) and {fate}"
            )
        if self.num_torn_pairs:
            notes.append(
                f"pairs of which only one half found room in a batch: {self.num_torn_pairs}"
            )
        return tuple(notes)


def batch_counts(batch_size: int, safe_ratio: float) -> tuple[int, int]:
    """Safe and unsafe prompts of a mixed batch.

    `floor(batch_size * safe_ratio + 0.5)` are safe and the rest unsafe, at least one of each.

    Raises:
        ConfigError: The batch is smaller than 2, or the ratio is not between 0 and 1.
    """
    if batch_size < 2:
        raise ConfigError(f"batch_size {batch_size} is too small; a mixed batch needs 2 or more")
    if not 0 < safe_ratio < 1:
        raise ConfigError(
            f"safe_ratio {safe_ratio} is out of range; it must lie between 0 and 1, without the ends"
        )
    num_safe = min(max(math.floor(batch_size * safe_ratio + 0.5), 1), batch_size - 1)
    return num_safe, batch_size - num_safe


def plan_batches(
    prompts: Sequence[Prompt],
    batch_size: int = 16,
    safe_ratio: float = 0.5,
    num_batches: int | None = None,
    seed: int = 0,
) -> BatchPlan:
    """Place the safe and unsafe training prompts into mixed batches.

    A batch can hold as many pairs as the smaller of its two sides has places, so `num_batches` times that
    bounds the pairs that stay together, and so does the number of pairs. The smaller of the bounds is
    always reached: once that many pairs are placed, what remains of either side still fills the other
    places. They are dealt out evenly over the batches. Prompts without partner fill the rest, and only
    then the halves of pairs that found no room together.

    Args:
        prompts: Only safe and unsafe prompts of the train split, or of none, are used.
        batch_size: Prompts of a batch.
        safe_ratio: Share of safe prompts, between 0 and 1.
        num_batches: How many to make; None for as many as can be filled.
        seed: Draws the order, which depends on prompt ids and not on the order of the rows.

    Raises:
        ConfigError: Batch size, ratio or number of batches make no sense.
        PromptError: There are too few prompts for one batch, or for `num_batches`.
    """
    num_safe, num_unsafe = batch_counts(batch_size, safe_ratio)
    if num_batches is not None and num_batches < 1:
        raise ConfigError(f"num_batches {num_batches} is too small; it must be 1 or more")
    pairs, safe, unsafe = _sides(prompts, seed)
    have = len(pairs) + len(safe), len(pairs) + len(unsafe)
    count = _num_batches(num_batches, (num_safe, num_unsafe), have)

    placed = min(len(pairs), count * min(num_safe, num_unsafe))
    broken = pairs[placed:]
    safe += [pair[0] for pair in broken]
    unsafe += [pair[1] for pair in broken]
    batches = []
    for i in range(count):
        together = pairs[i:placed:count]
        wanted = num_safe - len(together), num_unsafe - len(together)
        batches.append(
            (
                *(pair[0] for pair in together),
                *safe[: wanted[0]],
                *(pair[1] for pair in together),
                *unsafe[: wanted[1]],
            )
        )
        safe, unsafe = safe[wanted[0] :], unsafe[wanted[1] :]
    leftovers = (*safe, *unsafe)
    outside = {prompt.prompt_id for prompt in leftovers}
    torn = sum(any(prompt.prompt_id not in outside for prompt in pair) for pair in broken)
    return BatchPlan(tuple(batches), leftovers, torn)


def as_prompt(prompt: PromptLike, label: Label, index: int) -> Prompt:
    """A record for a prompt of the Python interface.

    Args:
        prompt: Text, chat messages, or a record, which keeps all but its label and its split: the caller has chosen it.
        label: The side that the caller puts it on.
        index: Position among the prompts of that side; names it.

    Raises:
        PromptError: It is empty, or its messages are malformed; the message names label and index.
    """
    if isinstance(prompt, Prompt):
        return dataclasses.replace(prompt, label=label, split=None)
    try:
        messages = parse_conversation(prompt)
    except PromptError as error:
        raise PromptError(f"{label} prompt {index}: {error}") from None
    return Prompt(
        prompt_id=f"{label}-{index}", label=label, messages=messages, goal=messages[-1]["content"]
    )


def _sides(prompts: Sequence[Prompt], seed: int) -> tuple[list[Pair], list[Prompt], list[Prompt]]:
    """Pairs, and the safe and unsafe prompts in none, each in the order of the seed.

    Where more than two prompts share a pair id, they are matched one to one, and the rest is in no pair.
    """
    usable = [p for p in prompts if p.label is not Label.BENIGN and p.split in (None, Split.TRAIN)]
    usable.sort(key=lambda prompt: seeded_rank(seed, prompt.prompt_id))
    members: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, prompt in enumerate(usable):
        if prompt.pair_id:
            members[prompt.pair_id][prompt.label is Label.UNSAFE].append(i)
    matched = [pair for sides in members.values() for pair in zip(*sides, strict=False)]
    paired = {i for pair in matched for i in pair}
    alone = [prompt for i, prompt in enumerate(usable) if i not in paired]
    return (
        [(usable[safe], usable[unsafe]) for safe, unsafe in matched],
        [prompt for prompt in alone if prompt.label is Label.SAFE],
        [prompt for prompt in alone if prompt.label is Label.UNSAFE],
    )


def _num_batches(wanted: int | None, needs: tuple[int, int], have: tuple[int, int]) -> int:
    """How many batches to make of so many safe and unsafe prompts.

    Args:
        wanted: As many as asked for; None for as many as can be filled.
        needs: Safe and unsafe prompts of one batch.
        have: Safe and unsafe prompts there are.
    """
    filled = min(have[0] // needs[0], have[1] // needs[1])
    there_are = f"there are {have[0]} safe and {have[1]} unsafe training prompts"
    if not filled:
        raise PromptError(
            f"a mixed batch of {sum(needs)} needs {needs[0]} safe and {needs[1]} unsafe prompts, but "
            f"{there_are}; add prompts, or lower batch_size"
        )
    if wanted is not None and wanted > filled:
        raise PromptError(
            f"num_batches {wanted} needs {wanted * needs[0]} safe and {wanted * needs[1]} unsafe "
            f"prompts, but {there_are}, enough for {filled}; add prompts, or set num_batches to "
            f"{filled} or less"
        )
    return filled if wanted is None else wanted
