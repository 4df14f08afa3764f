"""The prompts of a named set of the evaluation: what is asked, of whose system, and how long the replies may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steermoe.config import Config, SetSection
from steermoe.errors import PromptError
from steermoe.prompts.goals import normalised_goal
from steermoe.prompts.resolve import resolve_prompts
from steermoe.records import Message, Prompt, Sampling, Split
from steermoe.reporter import Reporter
from steermoe.stages.collect import evaluated_sampling


def set_named(config: Config, name: str) -> SetSection:
    """The settings of a set."""
    (found,) = (one for one in config.evaluate.sets if one.name == name)
    return found


def sampling_of_set(config: Config, chosen: SetSection) -> Sampling:
    """How each reply to a set is generated."""
    usual = evaluated_sampling(config)
    return replace(
        usual,
        max_tokens=chosen.max_new_tokens or usual.max_tokens,
        temperature=usual.temperature if chosen.temperature is None else chosen.temperature,
    )


def prompts_of_set(
    config: Config, chosen: SetSection, own: Sequence[Prompt], reporter: Reporter
) -> list[Prompt]:
    """The prompts that count: those of the evaluated split, or of the set's files but for goals of the train split.

    Args:
        config: All settings.
        chosen: Those of the set.
        own: The prompts of the run.
        reporter: Takes notes on what is left out.

    Raises:
        PromptError: A file cannot be read, or all its goals were trained on.
    """
    split = Split(config.evaluate.split)
    if chosen.prompts:
        read = _read(config, chosen, reporter)
        trained = {normalised_goal(p.goal) for p in own if p.split is Split.TRAIN}
        prompts = [p for p in read if normalised_goal(p.goal) not in trained]
        if len(prompts) < len(read):
            reporter.note(
                f"set {chosen.name}: {len(read) - len(prompts)} of {len(read)} prompts are left out, because their "
                "goals are among the train prompts"
            )
        system = chosen.system or config.prompts.system_prompt
    else:
        prompts, system = [p for p in own if p.split is split], chosen.system
    if not prompts:
        why = "prompt whose goal was not trained on" if chosen.prompts else f"{split} prompt to ask"
        raise PromptError(f"set {chosen.name} has no {why}; give it others (evaluate.sets)")
    return [_with_system(replace(p, split=split), system, bool(chosen.system)) for p in prompts]


def _read(config: Config, chosen: SetSection, reporter: Reporter) -> tuple[Prompt, ...]:
    """The prompts of the set's own files, of which none need have every label."""
    read = resolve_prompts(
        chosen.prompts,
        include_failed=config.prompts.include_failed,
        complete=False,
    )
    for note in read.notes:
        reporter.note(f"set {chosen.name}: {note}")
    return read.prompts


def _with_system(prompt: Prompt, system: str | None, instead: bool) -> Prompt:
    """A prompt with a system turn; `instead` of one that it has, otherwise only where it has none."""
    has_one = prompt.messages[0]["role"] == "system"
    if system is None or (has_one and not instead):
        return prompt
    turn: Message = {"role": "system", "content": system}
    others = prompt.messages[1:] if has_one else prompt.messages
    return replace(prompt, messages=(turn, *others), rendered="")


def last_conversation(prompt: Prompt, follow_ups: Sequence[str]) -> tuple[Message, ...]:
    """The conversation that the last reply answers, with nothing in the place of the replies before it."""
    turns = [turn for follow_up in follow_ups for turn in next_turns("", follow_up)]
    return (*prompt.messages, *turns)


def next_turns(reply: str, follow_up: str) -> tuple[Message, Message]:
    """The model's reply, and what the user says then."""
    return {"role": "assistant", "content": reply}, {"role": "user", "content": follow_up}
