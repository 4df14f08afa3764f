"""The shape of a model small enough that its costs can be worked by hand."""

from __future__ import annotations

from steermoe.moe.shape import ModelShape

# Two layers of 4 experts of 3 x 10 x 5 = 150 numbers, top-2; attention and routers have 400 numbers in all, embedding
# and head 70 each.
TINY = ModelShape(
    num_parameters=2 * 4 * 150 + 400 + 140,
    num_decoder_layers=2,
    num_moe_layers=2,
    num_experts=4,
    top_k=2,
    expert=150,
    expert_hidden_size=5,
    hidden_size=10,
    vocabulary=7,
    embedding=70,
    head=70,
    is_tied=False,
    score_width=20,
    cache_width=12,
)
