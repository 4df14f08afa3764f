"""What the embedded model looks like, known without building it: a plan needs its shape and no weights.

`embedded_config` is the config that the recipe gives the built model; a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import MixtralConfig

CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "architectures": ["MixtralForCausalLM"],
}
"""SmolLM2-135M with the mixture's 8 experts a layer, 2 for each token."""


def embedded_config() -> MixtralConfig:
    """The embedded model's config."""
    from transformers import MixtralConfig

    return MixtralConfig(**CONFIG)
