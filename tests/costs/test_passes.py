"""Operations and bytes of passes, of a model small enough to be worked by hand."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from architectures import ARCHITECTURES, Architecture
from shapes import TINY
from steermoe.costs import passes
from steermoe.moe.shape import shape_of_config


def test_the_parts_of_a_model_add_up() -> None:
    assert (TINY.routed, TINY.chosen, TINY.dense) == (1200, 600, 400)
    assert TINY.active == 400 + 600 + 140


def test_a_forward_pass_by_hand() -> None:
    # 3 tokens: 3 (400 + 600) in the layers, 1 head of 70, and 3 x 2 looks of 20 in each of two layers; twice.
    assert passes.forward_flops(TINY, 3, context=2, num_logits=1) == 2 * (3000 + 70 + 240)
    assert passes.forward_flops(TINY, 3, context=2) == 2 * (3000 + 210 + 240)


def test_a_training_step_by_hand() -> None:
    forward = 2 * (3000 + 70 + 240)
    # Above layer 0 is one layer of two; attention twice. An expert gets 3 x 2 / 4 tokens.
    above = (2 * (3000 + 240) + 2 * 240) / 2
    weights = 2 * 1.5 * 150
    found = passes.step_flops(TINY, 3, context=2, num_trained=1, num_logits=1)
    assert found == forward + 2 * 70 + above + weights
    # With the upper layer alone, nothing lies above it.
    found = passes.step_flops(TINY, 3, 2, num_trained=2, lowest_layer=1, num_logits=1)
    assert found == forward + 2 * 70 + 2 * weights


def test_rows_share_experts_while_they_decode() -> None:
    cache = 2 * 2 * 12  # keys and values of two layers in two bytes
    assert passes.cache_bytes(TINY) == cache
    # One row uses half of the experts, two use three quarters.
    assert passes.decode_bytes(TINY, 1, 5) == 2 * (400 + 70 + 600) + 5 * cache
    assert passes.decode_bytes(TINY, 2, 5) == 2 * (400 + 70 + 900) + 10 * cache


def test_what_is_kept_of_routing() -> None:
    # 10 responses of 2 segments x 2 layers x 4 experts in 4 bytes; 100 tokens of 2 layers x 2 ids.
    assert passes.routing_bytes(TINY, 10, 100) == 640 + 400


def test_checkpointing_keeps_less() -> None:
    keeps = passes.activation_bytes(TINY, 64, 8, checkpointing=False)
    layer = 64 * (14 * 10 + 2 * 10) * 2
    working = 64 * 2 * (20 + 20) * 2
    assert keeps == 2 * layer + working + 8 * 7 * 10
    less = passes.activation_bytes(TINY, 64, 8, checkpointing=True)
    assert less == 2 * 64 * 10 * 2 + layer + working + 8 * 7 * 10


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_every_architecture_has_a_shape(architecture: Architecture) -> None:
    shape = shape_of_config(architecture.config())
    assert (shape.num_experts, shape.top_k) == (architecture.num_experts, architecture.top_k)
    assert shape.dense > 0 and shape.score_width > 0 and shape.cache_width > 0


def test_widths_of_grouped_and_of_latent_heads() -> None:
    grouped = AutoConfig.for_model(
        "qwen3_moe",
        **{"vocab_size": 8, "hidden_size": 16, "intermediate_size": 8, "moe_intermediate_size": 4},
        **{"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2},
    )
    shape = shape_of_config(grouped)
    assert (shape.score_width, shape.cache_width) == (4 * 12, 2 * 12)
