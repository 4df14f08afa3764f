"""What is kept while the dense model replies: the content and nothing else, as a plain forward pass has it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from embedded.dense_models import PROMPTS, tiny_llama, word_tokenizer
from steermoe.embedded import calibration
from steermoe.embedded.calibration import (
    REPLY_TOKENS,
    end_of_turn_ids,
    prompt_ids,
    record_replies,
    shared_ends,
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.mark.parametrize(
    ("ids", "before", "after"),
    [
        ([[1, 5, 6, 9, 2], [1, 5, 7, 2]], 2, 1),
        ([[3, 4], [5, 6]], 0, 0),
        # No token is counted on both sides.
        ([[1, 2, 1], [1, 1]], 1, 1),
        ([[1, 1, 1], [1, 1]], 2, 0),
    ],
)
def test_shared_ends_by_hand(ids: list[list[int]], before: int, after: int) -> None:
    assert shared_ends(ids) == (before, after)


def test_prompts_are_read_in_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    words = tokenizer("bake bread").input_ids
    system = tokenizer("sun").input_ids
    assert prompt_ids(tokenizer, ["bake bread"], "") == [[1, *words, 2, 1]]
    assert prompt_ids(tokenizer, ["bake bread"], "sun") == [[1, *system, 2, 1, *words, 2, 1]]
    tokenizer.chat_template = None
    assert prompt_ids(tokenizer, ["bake bread"], "sun") == [words]


def greedy(dense: LlamaForCausalLM, ids: list[int]) -> list[int]:
    """The reply without its end-of-turn token, one whole forward pass a token."""
    reply: list[int] = []
    while len(reply) < REPLY_TOKENS:
        token = int(dense(torch.tensor([[*ids, *reply]])).logits[0, -1].argmax())
        if token in end_of_turn_ids(dense):
            break
        reply.append(token)
    return reply


def mlp_inputs(dense: LlamaForCausalLM, ids: list[int], layer: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = dense.model.layers[layer].mlp.register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0][0])
    )
    dense(torch.tensor([ids]))
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("ends", [True, False])
@torch.no_grad()
def test_what_is_kept_is_what_a_plain_forward_pass_has(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(calibration, "BATCH_SIZE", 3)  # two batches, of rows of different lengths
    dense = tiny_llama()
    dense.generation_config.eos_token_id = None
    if ends:  # one that this model says after a few words, unlike its own
        (first,) = prompt_ids(tokenizer, PROMPTS[:1], "")
        dense.generation_config.eos_token_id = greedy(dense, first)[5]
    recorded = record_replies(dense, tokenizer, PROMPTS)
    assert not any(layer.mlp._forward_pre_hooks for layer in dense.model.layers)
    lengths = set()
    for layer, inputs in enumerate(recorded):
        for number, prompt in enumerate(PROMPTS):
            ids = [1, *tokenizer(prompt).input_ids, 2, 1]
            reply = greedy(dense, ids)
            ended = len(reply) < REPLY_TOKENS
            lengths.add(len(reply))
            # All but what the template adds; the last token of a reply that did not end was never fed.
            fed = [*ids, *(reply if ended else reply[:-1])]
            expected = mlp_inputs(dense, fed, layer)
            own = torch.cat([expected[1 : len(ids) - 2], expected[len(ids) :]])
            torch.testing.assert_close(inputs.content[inputs.exchange == number], own)
            if number == 0:
                template = torch.cat([expected[:1], expected[len(ids) - 2 : len(ids)]])
                torch.testing.assert_close(inputs.shared[:3], template)
        assert inputs.shared.shape[0] == 3 * 3  # three tokens of each row of the first batch
    assert min(lengths) < REPLY_TOKENS if ends else lengths == {REPLY_TOKENS}


def test_without_end_of_turn_there_is_nothing_to_stop_at() -> None:
    dense = tiny_llama()
    dense.generation_config.eos_token_id = [2, 0]
    assert end_of_turn_ids(dense) == [2, 0]
    dense.generation_config.eos_token_id = None
    assert end_of_turn_ids(dense) == []
