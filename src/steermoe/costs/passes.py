"""What passes of a model cost, in floating-point operations and bytes.

A product of two numbers and its sum are two operations. Softmax, norms, activations and the choice of experts are left
out: they are few beside the products. Attention is counted as if every layer looked at all tokens before, which layers
with a sliding window or a state do not: there, the figures are upper bounds.

Shape legend: T tokens, C tokens that one looks at on average, E experts, K top-k.
"""

from __future__ import annotations

from steermoe.moe.description import BYTES_PER_TRAINED_PARAMETER
from steermoe.moe.shape import ModelShape

BYTES_OF_A_WEIGHT = 2
"""bfloat16."""

SAVED_WIDTHS = 14
"""Vectors of the model's width that one layer keeps of a token for the backward pass, experts aside: inputs of norms
and projections, queries, keys, values, what attention puts out. About; kernels differ."""

BYTES_OF_A_LOGIT = 10
"""Of one entry of the vocabulary at a position that is predicted: the logit, its softmax in fp32, and its gradient."""


def forward_flops(
    shape: ModelShape, num_tokens: float, context: float, num_logits: float | None = None
) -> float:
    """Operations of feeding tokens.

    Args:
        shape: The model's.
        num_tokens: T, each fed once, in one pass or one after the other.
        context: C, the mean number of tokens that a token looks at.
        num_logits: At how many of them the head runs; by default at all.
    """
    products = num_tokens * (shape.dense + shape.chosen)
    head = shape.head * (num_tokens if num_logits is None else num_logits)
    return 2 * (products + head + scores(shape, num_tokens, context))


def scores(shape: ModelShape, num_tokens: float, context: float) -> float:
    """Multiplications of attention over tokens."""
    return num_tokens * context * shape.score_width * shape.num_decoder_layers


def step_flops(
    shape: ModelShape,
    num_tokens: float,
    context: float,
    num_trained: int,
    lowest_layer: int = 0,
    num_logits: float | None = None,
) -> float:
    """Operations of the least training step of selected experts, where they are chosen as often as others.

    The forward pass, the gradients of the inputs of everything above the lowest trained layer (attention's products
    twice), and the weight gradients of the trained experts for the tokens routed to them.

    Args:
        shape: The model's.
        num_tokens: T, tokens of the step.
        context: C, the mean number of tokens that a token looks at.
        num_trained: How many experts train.
        lowest_layer: Decoder layer of the lowest of them.
        num_logits: At how many tokens the head runs; by default at all.
    """
    forward = forward_flops(shape, num_tokens, context, num_logits)
    head = 2 * shape.head * (num_tokens if num_logits is None else num_logits)
    above = 1 - (lowest_layer + 1) / shape.num_decoder_layers
    layers = forward - head + 2 * scores(shape, num_tokens, context)
    pairs = num_tokens * shape.top_k / shape.num_experts  # of one expert
    return forward + head + above * layers + 2 * pairs * num_trained * shape.expert


def decode_bytes(shape: ModelShape, rows: int, context: float) -> float:
    """Bytes that one decoding step reads: the weights that its rows use, and their caches.

    Args:
        shape: The model's.
        rows: Rows that are decoded together, each of which chooses its experts for itself.
        context: Tokens in each one's cache.
    """
    used = 1 - (1 - shape.top_k / shape.num_experts) ** rows
    weights = shape.dense + shape.head + shape.routed * used
    return BYTES_OF_A_WEIGHT * weights + rows * context * cache_bytes(shape)


def cache_bytes(shape: ModelShape) -> int:
    """Bytes that the caches of all layers keep of one token, as transformers keeps them."""
    return BYTES_OF_A_WEIGHT * shape.cache_width * shape.num_decoder_layers


def bytes_to_train(shape: ModelShape, num_trained: int) -> int:
    """Bytes beside the weights: fp32 master, gradient and two moments of each trained expert."""
    return num_trained * shape.expert * BYTES_PER_TRAINED_PARAMETER


def activation_bytes(
    shape: ModelShape, num_tokens: int, num_logits: int, checkpointing: bool
) -> int:
    """Bytes that a forward pass keeps for its backward pass, about.

    Args:
        shape: The model's.
        num_tokens: Of one micro-batch, with padding.
        num_logits: At how many of them the head runs.
        checkpointing: Whether layers keep only what they read, and are computed again one by one.
    """
    width, inside = shape.hidden_size, shape.expert_hidden_size
    pairs = shape.top_k * (2 * inside)  # what the experts' first projection puts out
    layer = num_tokens * (SAVED_WIDTHS * width + pairs) * BYTES_OF_A_WEIGHT
    # While one layer is gone through backwards: inputs, both projections' outputs and their gradients, pair by pair.
    working = num_tokens * shape.top_k * (2 * width + 4 * inside) * BYTES_OF_A_WEIGHT
    kept = num_tokens * width * BYTES_OF_A_WEIGHT if checkpointing else layer
    once = layer if checkpointing else 0
    logits = num_logits * shape.vocabulary * BYTES_OF_A_LOGIT
    return shape.num_decoder_layers * kept + once + working + logits


def generation_bytes(shape: ModelShape, rows: int, prompt_tokens: int, new_tokens: int) -> int:
    """Bytes beside the weights of one generating call of transformers, at its most: caches, and reading the prompts."""
    cache = rows * (prompt_tokens + new_tokens) * cache_bytes(shape)
    pair = shape.top_k * (2 * shape.hidden_size + 3 * shape.expert_hidden_size)
    return cache + rows * prompt_tokens * pair * BYTES_OF_A_WEIGHT


def routing_bytes(shape: ModelShape, num_responses: int, num_tokens: int) -> int:
    """Bytes of what is kept of routing: counts per response in two segments, and every token's experts."""
    counts = num_responses * 2 * shape.num_moe_layers * shape.num_experts * 4
    id_bytes = 1 if shape.num_experts <= 256 else 2
    return counts + num_tokens * shape.num_moe_layers * shape.top_k * id_bytes
