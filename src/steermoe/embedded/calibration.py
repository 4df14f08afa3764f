"""What a dense model's MLPs are given while it replies to calibration prompts.

Shape legend: B prompts fed at once, P prompt tokens of a padded row, G generated tokens, T content tokens, S shared
tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

REPLY_TOKENS = 24
"""Most tokens of a calibration reply; with twice as many, topics are told apart no better."""

BATCH_SIZE = 64
"""Calibration prompts that are fed at once."""


@dataclass(frozen=True)
class MlpInputs:
    """What one dense MLP was given on the calibration exchanges, in the model's dtype.

    Attributes:
        content: `(T, D)`, at the tokens that are an exchange's own: the prompt's words, and the reply without its
            end-of-turn token. A reply's last token is never fed to the model.
        exchange: `(T,)`, which prompt a content token belongs to.
        shared: `(S, D)`, at the tokens of some prompts that all prompts share: the chat template's.
    """

    content: Tensor
    exchange: Tensor
    shared: Tensor


def record_replies(
    dense_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    system_prompt: str = "",
) -> list[MlpInputs]:
    """Let the dense model reply to each prompt, greedily, and keep what every MLP is given meanwhile.

    One pass: what generation computes is kept, and nothing is fed twice.

    Args:
        dense_model: The dense model.
        tokenizer: Its tokenizer; its chat template, if it has one, wraps every prompt.
        prompts: Requests, at least two different ones: what is shared is found by comparing them.
        system_prompt: System turn before every request; empty for none.

    Returns:
        One item a layer.
    """
    ids = prompt_ids(tokenizer, prompts, system_prompt)
    ends = shared_ends(ids)
    layers = dense_model.model.layers
    content: list[list[Tensor]] = [[] for _ in layers]
    shared: list[Tensor] = []
    exchange: list[Tensor] = []
    fed: list[list[Tensor]] = [[] for _ in layers]
    with ExitStack() as hooks:
        for layer, pieces in zip(layers, fed, strict=True):
            hook = layer.mlp.register_forward_pre_hook(partial(_record, pieces))
            hooks.callback(hook.remove)
        for start in range(0, len(ids), BATCH_SIZE):
            for pieces in fed:
                pieces.clear()
            own, common = generate(dense_model, ids[start : start + BATCH_SIZE], ends)
            rows = [torch.cat(pieces, dim=1) for pieces in fed]
            for kept, row in zip(content, rows, strict=True):
                kept.append(row[own])
            shared = shared or [row[common] for row in rows]
            exchange.append(own.nonzero()[:, 0] + start)
    exchange_T = torch.cat(exchange)
    return [
        MlpInputs(torch.cat(pieces), exchange_T, common_SD)
        for pieces, common_SD in zip(content, shared, strict=True)
    ]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], system_prompt: str
) -> list[list[int]]:
    """Token ids of each prompt as the model is to read it."""
    if tokenizer.chat_template is None:
        return [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    texts = [
        str(
            tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
            )
        )
        for prompt in prompts
    ]
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def shared_ends(ids: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many tokens all prompts begin with, and how many they end with."""
    shortest = min(len(row) for row in ids)

    def agree(position: int) -> bool:
        return len({row[position] for row in ids}) == 1

    before = next((i for i in range(shortest) if not agree(i)), shortest)
    room = shortest - before
    after = next((i for i in range(room) if not agree(-1 - i)), room)
    return before, after


def generate(
    dense_model: LlamaForCausalLM, ids: Sequence[Sequence[int]], ends: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Reply to the prompts of a batch.

    Returns:
        Two masks `(B, P + G - 1)` over the tokens that were fed: the content, and what all prompts share.
    """
    rows = [torch.tensor(row) for row in ids]
    ids_BP = pad_sequence(rows, batch_first=True, padding_side="left")
    ones = [torch.ones(len(row), dtype=torch.bool) for row in ids]
    mask_BP = pad_sequence(ones, batch_first=True, padding_side="left")
    model: Any = dense_model  # generate()'s annotations name a protocol that no model meets
    generated = model.generate(
        input_ids=ids_BP,
        attention_mask=mask_BP.long(),
        max_new_tokens=REPLY_TOKENS,
        do_sample=False,
    )
    reply_BG = generated[:, ids_BP.shape[1] :]
    end_ids = torch.tensor(end_of_turn_ids(dense_model), dtype=torch.long)
    live_BG = torch.isin(reply_BG, end_ids).cumsum(dim=1) == 0
    place_BP = mask_BP.cumsum(dim=1) - 1
    length_B1 = mask_BP.sum(dim=1, keepdim=True)
    own_BP = mask_BP & (place_BP >= ends[0]) & (place_BP < length_B1 - ends[1])
    fed_BG = live_BG[:, :-1]  # the last token is never fed
    own = torch.cat([own_BP, fed_BG], dim=1)
    common = torch.cat([mask_BP & ~own_BP, torch.zeros_like(fed_BG)], dim=1)
    return own, common


def end_of_turn_ids(model: LlamaForCausalLM) -> list[int]:
    """The token ids that end a reply; there may be several, or none."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    if ends is None:
        return []
    return [ends] if isinstance(ends, int) else list(ends)


def _record(pieces: list[Tensor], module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    """Forward pre-hook: keep the module's input."""
    pieces.append(arguments[0])
