"""Stored replies, as judges and people who label them are given them."""

from __future__ import annotations

from steermoe.records import Exchange, Prompt
from steermoe.store.directory import RunDirectory
from steermoe.store.names import set_of, set_prompts_of


def prompts_of(run: RunDirectory, variant: str) -> tuple[Prompt, ...]:
    """The prompts that a variant's replies belong to: the run's own, or those of the set that the variant names."""
    prompts = set_prompts_of(set_of(variant))
    return run.read_prompts(prompts) if run.has(prompts) else run.read_prompts()


def exchanges_of(run: RunDirectory, variant: str) -> list[Exchange]:
    """Every reply of a variant with its prompt, in the order of its table."""
    prompts = {prompt.prompt_id: prompt for prompt in prompts_of(run, variant)}
    answers = run.read_answers(variant)
    found = []
    for row in run.read_replies(variant).to_dict("records"):
        prompt = prompts[row["prompt_id"]]
        found.append(
            Exchange(
                variant=variant,
                prompt_id=prompt.prompt_id,
                goal=prompt.goal,
                messages=tuple(dict(message) for message in row["messages"]),
                prompt=prompt.rendered,
                reply=str(row["generated_text"]),
                answer=answers[prompt.prompt_id],
            )
        )
    return found
