"""A run doubts itself: what may make its contrast or its training mean nothing, one note each, before it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from steermoe.config import TrainSection
from steermoe.moe.description import MoEDescription
from steermoe.records import Label, Prompt, Split, Verdict

NEARLY_ALL = 0.95
"""A share from which on the rest is too little to tell anything from."""


def doubts_about_replies(responses: pd.DataFrame, prompts: Mapping[str, Prompt]) -> list[str]:
    """What is doubtful in the base model's replies to the training prompts.

    Args:
        responses: With `prompt_id`, `split` and `verdict`.
        prompts: By id.
    """
    train = responses[responses["split"] == Split.TRAIN]
    scored = train[train["verdict"] != Verdict.UNSCORED]
    num_unscored = len(train) - len(scored)
    if len(train) and num_unscored >= NEARLY_ALL * len(train):
        return [
            f"{num_unscored} of {len(train)} replies to training prompts are unscored: they are empty, garbled, or cut "
            "inside their reasoning (collect.max_new_tokens), so verdicts say nothing about this model"
        ]
    notes = []
    refused = scored["verdict"] == Verdict.REFUSED
    unsafe = refused[scored["label"] == Label.UNSAFE]
    if len(unsafe) and unsafe.mean() >= NEARLY_ALL:
        notes.append(
            f"the base model refuses {int(unsafe.sum())} of {len(unsafe)} unsafe training prompts already: the experts "
            "that differ are those of its refusals, and training has little to change; use prompts that it answers, or "
            "jailbreaks of these"
        )
    is_goal = scored["prompt_id"].map(lambda prompt_id: prompts[prompt_id].is_plain_goal)
    goals = refused[is_goal.astype(bool)]
    if len(goals) and not goals.any():
        notes.append(
            f"the base model refuses none of {len(goals)} plain goals: it has no refusals of its own to compare "
            "jailbreaks with, so what differs is their wording"
        )
    return notes


def doubts_about_routing(description: MoEDescription) -> list[str]:
    """What is doubtful in a model's routing, before any of it is recorded."""
    if description.top_k < description.num_experts:
        return []
    return [
        f"every token goes to {description.top_k} of {description.num_experts} experts of a layer, so routing says "
        "nothing about any of them: no risk difference can be but zero"
    ]


def doubts_about_rendering(prompts: Sequence[Prompt]) -> list[str]:
    """What a chat template has lost of the prompts.

    Args:
        prompts: Of the run, with the texts that the model is fed.
    """
    asked = {prompt.rendered: prompt.messages for prompt in prompts}
    lost = sum(prompt.messages != asked[prompt.rendered] for prompt in prompts)
    if not lost:
        return []
    return [
        f"{lost} of {len(prompts)} prompts are the same text to the model as others that say something else: its chat "
        "template cuts or changes them"
    ]


def doubts_about_tokens(tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """What of the prompts a tokenizer cannot write, and feeds to the model as one and the same unknown token.

    Args:
        tokenizer: The model's.
        prompts: Of the run.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    texts = ["\n".join(turn["content"] for turn in prompt.messages) for prompt in prompts]
    number = sum(
        unknown in ids and tokenizer.unk_token not in text
        for text, ids in zip(
            texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True
        )
    )
    if not number:
        return []
    return [
        f"{number} of {len(prompts)} prompts hold characters that the model's tokenizer does not have: it reads "
        f"{tokenizer.unk_token} in their place"
    ]


def doubts_about_training(train: TrainSection) -> list[str]:
    """What is doubtful in the settings of training: loss that teaches nothing."""
    named = {name for phase in train.all_phases() for name in phase.objectives}
    if any(":" in name for name in named):
        return []  # an objective of the user's teaches what it teaches
    if "refusal" not in named:
        return ["train.objectives has no refusal: the hardened model will be the base model"]
    if train.refusal_weight:
        return []
    more = " and train.retention_weight are" if not train.retention_weight else " is"
    return [
        f"train.refusal_weight{more} 0: nothing is learned, and the hardened model will be the base model"
    ]
