"""What is known of a model's MoE layers: where they are, and of what shape.

Shape legend: E experts, K top-k, D width of an expert's input, F expert hidden width, L MoE layers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steermoe.errors import ModelError
from steermoe.moe.support import READS_PADDING

BYTES_PER_TRAINED_PARAMETER = 16
"""fp32 master weight, fp32 gradient and the two fp32 moments of Adam."""


@dataclass(frozen=True, slots=True)
class MoELayer:
    """One MoE layer: where its modules are and what shape its experts have.

    Attributes:
        index: Index of the decoder layer, counted with the dense ones.
        block_name: Path of the module that owns the router and the experts.
        experts_name: Path of the fused experts.
        router_name: Path of the router.
        num_experts: E, routed experts.
        top_k: K, experts chosen for each token.
        hidden_size: D, width of what an expert reads and writes.
        expert_hidden_size: F, width inside an expert.
        has_shared_experts: Whether every token also passes through an MLP beside the routed experts.
        is_hash_routed: Whether the token's id decides which experts it gets, not what the router reads.
        has_gate: Whether experts are gated (`gate_up_proj`) or plain (`up_proj`).
        has_bias: Whether both projections carry a bias.
        is_transposed: Whether tensors are `(E, in, out)` instead of `(E, out, in)`.
        is_concatenated: Whether gate and up are two halves, or interleaved row by row.
        has_post_expert_norm: Whether each expert's output is normalised before it is weighted.
    """

    index: int
    block_name: str
    experts_name: str
    router_name: str
    num_experts: int
    top_k: int
    hidden_size: int
    expert_hidden_size: int
    has_shared_experts: bool
    is_hash_routed: bool
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool
    has_post_expert_norm: bool

    @property
    def parameters_per_expert(self) -> int:
        """Numbers that one expert has of its own (a norm shared by all experts is not counted)."""
        up_width = self.expert_hidden_size * (2 if self.has_gate else 1)
        weights = self.hidden_size * (up_width + self.expert_hidden_size)
        return weights + (up_width + self.hidden_size if self.has_bias else 0)


@dataclass(frozen=True, slots=True)
class MoEDescription:
    """The MoE layers of a model, in decoder order.

    Attributes:
        model_type: The config's `model_type`.
        architecture: Name of the model class.
        layers: One entry for each MoE layer; dense layers are left out.
        num_parameters: Parameters of the whole model, tied ones counted once.
        quantization: What the checkpoint's weights are packed as; None for ordinary weights.
    """

    model_type: str
    architecture: str
    layers: tuple[MoELayer, ...]
    num_parameters: int
    quantization: str | None = None

    @property
    def num_layers(self) -> int:
        """L, the number of MoE layers."""
        return len(self.layers)

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Decoder-layer index of each MoE layer."""
        return tuple(layer.index for layer in self.layers)

    @property
    def reads_padding(self) -> bool:
        """Whether padding before a prompt changes what becomes of it, attention mask or not."""
        return self.model_type in READS_PADDING

    @property
    def decoder_layers_name(self) -> str:
        """Path of the list of decoder layers."""
        return decoder_layer(self.layers[0].experts_name)[0].rpartition(".")[0]

    @property
    def num_experts(self) -> int:
        """E, routed experts of each layer."""
        return self.layers[0].num_experts

    @property
    def top_k(self) -> int:
        """K, experts chosen for each token."""
        return self.layers[0].top_k

    @property
    def parameters_per_expert(self) -> int:
        """Numbers that one expert of one layer has."""
        return self.layers[0].parameters_per_expert

    @property
    def bytes_in_bfloat16(self) -> int:
        """Bytes that the whole model's weights take in bfloat16, once they are unpacked."""
        return 2 * self.num_parameters

    def bytes_to_train(self, num_selected: int) -> int:
        """Bytes that training needs beside the weights: fp32 master, gradient and two Adam moments.

        Args:
            num_selected: How many (layer, expert) pairs are trained.
        """
        return num_selected * self.parameters_per_expert * BYTES_PER_TRAINED_PARAMETER


def decoder_layer(name: str) -> tuple[str, int]:
    """Path and index of the decoder layer in a module path: up to the integer in it."""
    numbers = list(re.finditer(r"(?:^|\.)(\d+)(?=\.|$)", name))
    if len(numbers) != 1:
        raise ModelError(f"{name} does not name one decoder layer; this layout is not understood")
    return name[: numbers[0].end()], int(numbers[0][1])
