"""Tiny judges: random ones, and a guard whose next token depends on the last one alone, so its answer is planned."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from conftest import byte_tokenizer
from steermoe.records import Exchange

ENDS_WITH_THE_REPLY = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if not loop.last %}\n{% endif %}{% endfor %}"
)
REFUSAL_LABELS = {
    "id2label": {0: "refusal", 1: "answer"},
    "label2id": {"refusal": 0, "answer": 1},
}


def exchange(reply: str, goal: str = "Say something.", **messages: Any) -> Exchange:
    turns = messages.get("messages", ({"role": "user", "content": goal},))
    return Exchange("base", "p", goal, tuple(turns), "", reply, reply)


def save_planned(folder: Path, answers: Mapping[str, str], chat_template: str | None) -> Path:
    """A Llama of one-hot embeddings whose layer adds nothing: each token is followed by the one that is planned.

    Args:
        folder: Where to save it.
        answers: By the last character of a prompt, the answer; no character may be followed by two different ones.
        chat_template: Of its tokenizer.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=2048,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    def token(character: str) -> int:
        return int(tokenizer(character, add_special_tokens=False)["input_ids"][0])

    follows: dict[int, int] = {}
    for last, answer in answers.items():
        chain = [token(last), *(token(c) for c in answer), tokenizer.eos_token_id]
        for before, after in pairwise(chain):
            assert follows.setdefault(before, after) == after, "a token is followed by one other"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.norm.weight.fill_(1.0)
        for before, after in follows.items():
            model.lm_head.weight[after, before] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_random(
    folder: Path, architecture: str, chat_template: str | None = None, **settings: Any
) -> Path:
    """A tiny random model of an architecture of transformers', with the byte tokenizer."""
    import torch
    import transformers

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    torch.manual_seed(0)
    model_class = getattr(transformers, architecture)
    defaults = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.5,
    }  # fmt: skip
    config = model_class.config_class(**{**defaults, **settings})
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
