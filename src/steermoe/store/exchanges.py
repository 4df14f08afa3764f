"""Stored replies, as judges and people who label them are given them."""

from __future__ import annotations

from steermoe.records import Exchange
from steermoe.store.directory import RunDirectory


def exchanges_of(run: RunDirectory, variant: str) -> list[Exchange]:
    """Every reply of a variant with its prompt, in the order of its table."""
    prompts = {prompt.prompt_id: prompt for prompt in run.read_prompts()}
    answers = run.read_answers(variant)
    found = []
    for row in run.read_replies(variant).to_dict("records"):
        prompt = prompts[row["prompt_id"]]
        found.append(
            Exchange(
                variant=variant,
                prompt_id=prompt.prompt_id,
                goal=prompt.goal,
                messages=prompt.messages,
                prompt=prompt.rendered,
                reply=str(row["generated_text"]),
                answer=answers[prompt.prompt_id],
            )
        )
    return found
