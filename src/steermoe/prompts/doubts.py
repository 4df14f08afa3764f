"""What is suspicious in prompts that can all be read: a text with two labels, the same prompt again, spoilt texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from steermoe.prompts.goals import normalised_goal
from steermoe.prompts.rows import counted, listed
from steermoe.prompts.sources import BUILTIN_STARTER
from steermoe.prompts.spoilt_texts import signs_in
from steermoe.records import Prompt


def doubts_about(prompts: Sequence[Prompt]) -> list[str]:
    """One note for each kind of doubt.

    Two prompts are one where their turns are, by what `normalised_goal` leaves of each. A goal that is attacked
    several times is asked plainly as often, which is no repetition of the user's.
    """
    same: dict[tuple[tuple[str, str], ...], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        key = tuple((turn["role"], normalised_goal(turn["content"])) for turn in prompt.messages)
        same[key].append(prompt)
    conflicts = [group for group in same.values() if len({p.label for p in group}) > 1]
    repeated = [
        own
        for group in same.values()
        if len(own := [p for p in group if not p.is_plain_goal]) > 1
        and len({p.label for p in own}) == 1
    ]
    notes = []
    if conflicts:
        first = conflicts[0]
        labels = " and ".join(sorted({str(prompt.label) for prompt in first}))
        has = "has" if len(conflicts) == 1 else "have"
        notes.append(
            f"{counted(len(conflicts), 'text')} {has} more than one label and would be trained both ways; the first is "
            f"that of {_named(first)}, {labels}"
        )
    if repeated:
        again = sum(len(group) - 1 for group in repeated)
        repeat = "repeats" if again == 1 else "repeat"
        notes.append(
            f"{counted(again, 'prompt')} {repeat} an earlier one of the same label; the first is {_named(repeated[0])}"
        )
    by_source: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if prompt.source != BUILTIN_STARTER:
            by_source[prompt.source].append(prompt)
    return notes + [note for own in by_source.values() for note in signs_in(own)]


def _named(prompts: Sequence[Prompt]) -> str:
    """Which prompts these are, without their text: harmful ones are not shown unless asked for."""
    sources = " and ".join(dict.fromkeys(prompt.source for prompt in prompts))
    return f"{listed((prompt.prompt_id for prompt in prompts), 3)} of {sources}"
