"""What would be read from prompt files, shown without a model: `steermoe prompts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steermoe.config import Config
from steermoe.errors import PromptError
from steermoe.prompts.formats import ReadPrompts, read_prompts
from steermoe.prompts.goals import normalised_goal
from steermoe.prompts.resolve import check_no_repeat, combined
from steermoe.prompts.splits import assign_splits
from steermoe.records import Label, Prompt, Split

LONGEST_TEXT = 400
"""Characters of a prompt that are shown."""


@dataclass(frozen=True, slots=True)
class Description:
    """What prompt files hold.

    Attributes:
        lines: How each file was read, and what is said of all of them.
        prompts: What a run would use; where it would refuse them, what could be read.
        problem: Why a run would refuse them; None where it would not.
    """

    lines: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    problem: PromptError | None = None


def describe(config: Config) -> Description:
    """Read the prompt files of a run as the run would, and go on where it would stop.

    Raises:
        PromptError: No file is given, or one is given twice.
        ConfigError: There is no such format.
    """
    settings = config.prompts
    check_no_repeat(settings.sources)
    parts: list[ReadPrompts] = []
    lines: list[str] = []
    problem: PromptError | None = None
    for source in settings.sources:
        try:
            part = read_prompts(source, settings.format, include_failed=settings.include_failed)
        except PromptError as error:
            problem = problem or error
            lines.append(f"refused: {error}")
        else:
            parts.append(part)
            lines += part.notes
    prompts = tuple(prompt for part in parts for prompt in part.prompts)
    if problem is not None:
        return Description(tuple(lines), prompts, problem)
    try:
        whole = combined(parts, settings.sources)
        lines += whole.notes[len(lines) :]
        prompts = assign_splits(whole.prompts, config.seed, settings.split_fractions)
    except PromptError as error:
        problem = error
    return Description(tuple(lines), prompts, problem)


def describe_prompts(
    config: Config, num_shown: int = 0
) -> tuple[RenderableType, PromptError | None]:
    """A description to print, and what a run would stop with.

    Args:
        config: The settings of the run: its prompt files, seed and shares of splits.
        num_shown: How many prompts of each label to show. Harmful ones are hidden unless asked for, like replies.
    """
    found = describe(config)
    parts: list[RenderableType] = [Text(line) for line in found.lines]
    if found.prompts:
        parts += [Text(""), counts_of(found.prompts)]
    if num_shown:
        parts += [Text(""), first_prompts(found.prompts, num_shown)]
    elif found.prompts:
        parts.append(Text("no prompt is shown; --show 3 shows the first 3 of each label"))
    return Group(*parts), found.problem


def counts_of(prompts: Sequence[Prompt]) -> Table:
    """Prompts of each label and split, and how many goals they have."""
    splits = [split for split in (*Split, None) if any(p.split is split for p in prompts)]
    columns = [str(split) if split else "no split yet" for split in splits]
    table = Table("label", *columns, "all", "goals", "pairs", box=None)
    for label in Label:
        own = [prompt for prompt in prompts if prompt.label is label]
        table.add_row(
            str(label),
            *(str(sum(prompt.split is split for prompt in own)) for split in splits),
            str(len(own)),
            str(len({normalised_goal(prompt.goal) for prompt in own})),
            str(len({prompt.pair_id for prompt in own if prompt.pair_id})),
        )
    return table


def first_prompts(prompts: Sequence[Prompt], number: int) -> Table:
    """The first prompts of each label, with all their turns."""
    table = Table("prompt", "label", "text", box=None)
    for label in Label:
        for prompt in [p for p in prompts if p.label is label][:number]:
            turns = [f"{turn['role']}: {turn['content']}" for turn in prompt.messages]
            text = prompt.messages[0]["content"] if len(turns) == 1 else "\n".join(turns)
            cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
            table.add_row(Text(prompt.prompt_id), str(label), Text(cut))
    return table
