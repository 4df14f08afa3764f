"""What the passes of a model cost is read off its shape: a few widths and sizes, from the config alone.

Shape legend: L MoE layers, E experts, K top-k, D width of the model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from steermoe.moe.configs import language_config
from steermoe.moe.description import MoEDescription
from steermoe.moe.layers import find_moe_layers, model_of_config


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model, by what a token has to do with them.

    Attributes:
        num_parameters: Of the whole model, tied ones counted once.
        num_decoder_layers: Dense ones too.
        num_moe_layers: L.
        num_experts: E, of an MoE layer.
        top_k: K, experts that a token goes through.
        expert: Numbers of one expert.
        expert_hidden_size: Width inside an expert.
        hidden_size: D.
        vocabulary: V.
        embedding: Numbers of the embedding, which a token only looks up.
        head: Numbers of the language-model head; the embedding's own where they are tied.
        is_tied: Whether they are.
        score_width: Multiplications of one layer's attention for a token and a token that it looks at: heads times
            the widths of a key and of a value.
        cache_width: Numbers that one layer's cache keeps of a token: keys and values of all their heads.
    """

    num_parameters: int
    num_decoder_layers: int
    num_moe_layers: int
    num_experts: int
    top_k: int
    expert: int
    expert_hidden_size: int
    hidden_size: int
    vocabulary: int
    embedding: int
    head: int
    is_tied: bool
    score_width: int
    cache_width: int

    @property
    def routed(self) -> int:
        """Numbers of all routed experts."""
        return self.num_moe_layers * self.num_experts * self.expert

    @property
    def chosen(self) -> int:
        """Numbers of the experts that one token goes through."""
        return self.num_moe_layers * self.top_k * self.expert

    @property
    def dense(self) -> int:
        """Numbers that every token is multiplied with in the layers: neither experts nor embedding nor head."""
        ends = self.embedding if self.is_tied else self.embedding + self.head
        return self.num_parameters - self.routed - ends

    @property
    def active(self) -> int:
        """Parameters that one token uses, as model cards count them: embedding and head too."""
        return self.num_parameters - self.routed + self.chosen

    @property
    def largest_layer(self) -> int:
        """Numbers of one MoE layer, about."""
        return self.num_experts * self.expert + self.dense // self.num_decoder_layers


def shape_of_config(config: PretrainedConfig, trust_remote_code: bool = False) -> ModelShape:
    """The shape of the model that a config stands for; no weights are made.

    Raises:
        ModelError: As `describe_config`.
    """
    model = model_of_config(config, trust_remote_code)
    description: MoEDescription = find_moe_layers(model)
    text = language_config(config)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    keys, values = _head_widths(text)
    heads = int(text.num_attention_heads)
    kept_heads = _number(text, "num_key_value_heads") or heads
    return ModelShape(
        num_parameters=description.num_parameters,
        num_decoder_layers=int(text.num_hidden_layers),
        num_moe_layers=description.num_layers,
        num_experts=description.num_experts,
        top_k=description.top_k,
        expert=description.parameters_per_expert,
        expert_hidden_size=description.layers[0].expert_hidden_size,
        hidden_size=int(text.hidden_size),
        vocabulary=int(embedding.shape[0]),
        embedding=embedding.numel(),
        head=embedding.numel() if head is None else head.weight.numel(),
        is_tied=head is None or head.weight is embedding,
        score_width=heads * (keys + values),
        cache_width=kept_heads * (keys + values),
    )


def _head_widths(config: Any) -> tuple[int, int]:
    """Widths of a key and of a value in one head."""
    split = int(config.hidden_size) // int(config.num_attention_heads)
    both = _number(config, "head_dim") or split
    rope, rest = _number(config, "qk_rope_head_dim"), _number(config, "qk_nope_head_dim")
    keys = rope + rest if rope and rest else both
    return keys, _number(config, "v_head_dim") or both


def _number(config: Any, name: str) -> int:
    """A setting of all layers; 0 where there is none."""
    try:
        value = getattr(config, name, None)
    except Exception:  # a class of transformers' own: it differs from layer to layer
        value = None
    return value if isinstance(value, int) else 0
