"""A decoding step of the embedded model against the matrix products that it cannot avoid.

192 prompts are read, then one token a row goes through the model, again and again. In turns with these steps, the
products of such a step are computed alone, at the same shapes and with the model's own weights: the projections of
attention, each expert's for as many rows as a step sends it on average, the head. Then the experts' products with
weights that the libraries of the processor have packed beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.measuring import REPEATS, Row, absolute_seconds, ratio, take_turns
from benchmarks.recording import READ_TOGETHER, prompts_for_the_engine
from steermoe.engines.transformers import contiguous_head_input

ALONE, PACKED = "the experts' alone", "the experts' packed"


class Steps:
    """Decoding steps of one batch; each makes its rows a token longer."""

    def __init__(self, model: Any, fed: dict[str, Any]) -> None:
        self.model, self.mask = model, fed["attention_mask"]
        self.cache = DynamicCache(config=model.config)
        out = model(**fed, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.tokens = out.logits[:, -1:].argmax(dim=-1)

    @torch.inference_mode()
    def __call__(self) -> None:
        """One step."""
        rows = self.mask.shape[0]
        self.mask = torch.cat([self.mask, self.mask.new_ones(rows, 1)], dim=1)
        out = self.model(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.tokens = out.logits[:, -1:].argmax(dim=-1)


def shared_weights(model: Any) -> list[Tensor]:
    """The weights that every row of a step is multiplied with."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    attention = [layer.self_attn for layer in model.model.layers]
    return [
        model.lm_head.weight,
        *(getattr(of_layer, name).weight for of_layer in attention for name in names),
    ]


def expert_weights(model: Any) -> list[Tensor]:
    """The weights of all experts."""
    experts = [layer.mlp.experts for layer in model.model.layers]
    return [w for of in experts for w in (*of.gate_up_proj.unbind(), *of.down_proj.unbind())]


def products(weights: Sequence[Tensor], rows: int) -> Callable[[], None]:
    """Some rows times each of the weights."""
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]) for w in weights}

    @torch.inference_mode()
    def compute() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.T)

    return compute


def packed_products(weights: Sequence[Tensor], rows: int) -> Callable[[], None]:
    """The same with weights as MKL packs them for so many rows."""
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]) for w in weights}
    packed = [torch.ops.mkl._mkl_reorder_linear_weight(w.contiguous(), rows) for w in weights]

    @torch.inference_mode()
    def compute() -> None:
        for weight, ready in zip(weights, packed, strict=True):
            torch.ops.mkl._mkl_linear(inputs[weight.shape[1]], ready, weight, None, rows)

    return compute


def decoding(repeats: int = REPEATS) -> list[Row]:
    """Steps, their products alone, and the experts' share of these with packed weights."""
    engine, _, fed = prompts_for_the_engine(READ_TOGETHER)
    model = engine.model
    per_expert = READ_TOGETHER * model.config.num_experts_per_tok // model.config.num_local_experts
    of_experts = products(expert_weights(model), per_expert)
    of_all = products(shared_weights(model), READ_TOGETHER)

    def alone() -> None:
        of_all()
        of_experts()

    with torch.inference_mode(), contiguous_head_input(model):
        sides: dict[str, Callable[[], object]] = {
            "step": Steps(model, fed),
            "products": alone,
            ALONE: of_experts,
            PACKED: packed_products(expert_weights(model), per_expert),
        }
        seconds = take_turns(sides, repeats)
    return [
        Row(
            f"a decoding step of {READ_TOGETHER} rows, against its matrix products alone",
            "at most 1.25 x",
            f"{ratio(seconds, 'step', 'products')} x",
            absolute_seconds(seconds),
        ),
        Row(
            "the experts' products with packed weights, against those without",
            "none",
            f"{ratio(seconds, PACKED, ALONE)} x",
            "the same turns",
        ),
    ]
