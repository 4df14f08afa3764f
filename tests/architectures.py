"""Tiny random models of every architecture that the tests run over: one list, in one place.

A model has 8 experts, of which 2 are chosen, experts of width 16 and hidden states of width 32, unless
its entry says otherwise. Architectures that the installed transformers does not have are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

VOCABULARY = 64

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED_EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1}
GROUPS = {"n_group": 2, "topk_group": 1}
LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
# Enough tokens to attend to all of a test: which of two equal scores wins is not what is tested.
INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}
SHARED_EXPERT = {"shared_expert_intermediate_size": 16}
SECOND_IS_SPARSE = {"mlp_layer_types": ["dense", "sparse"]}
SECOND_IS_ATTENTION = {"layer_types": ["linear_attention", "full_attention"]}
GATED_DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
KIMI_DELTA = {"linear_head_dim": 8, "linear_num_heads": 4, "linear_conv_kernel_dim": 4}
INKLING_ATTENTION = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "rel_extent": 16,
    "sliding_window_size": 8,
    "layer_types": ["hybrid_sliding", "hybrid"],
}


@dataclass(frozen=True)
class Architecture:
    """One architecture, its tiny config, and what is known of it from that config."""

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    layer_indices: tuple[int, ...] = (0, 1)
    num_experts: int = 8
    top_k: int = 2
    hidden_size: int = 32
    expert_hidden_size: int = 16
    has_shared_experts: bool = False

    @property
    def name(self) -> str:
        """The name that test ids carry."""
        return self.model_type

    def config(self) -> PretrainedConfig:
        """The tiny config."""
        common = {} if "text_config" in self.options else COMMON
        return AutoConfig.for_model(self.model_type, **{**common, **self.options})

    def build(self, seed: int = 0) -> PreTrainedModel:
        """A model in fp32 and eval mode; every parameter and every router bias is random."""
        config = self.config()
        is_causal = type(config) in AutoModelForCausalLM._model_mapping
        auto = AutoModelForCausalLM if is_causal else AutoModelForImageTextToText
        model = auto.from_config(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.1, generator=generator)
            for name, buffer in model.named_buffers():
                if "bias" in name and buffer.is_floating_point():
                    buffer.normal_(0.0, 0.1, generator=generator)
        return model


def _latent(**options: Any) -> dict[str, Any]:
    return {**ROUTED_EXPERTS, **GROUPS, **LATENT_ATTENTION, "first_k_dense_replace": 1, **options}


SECOND = {"layer_indices": (1,)}
SHARED = {"has_shared_experts": True}

_ALL = (
    # softmax, then top-k
    Architecture("olmoe", EXPERTS),
    Architecture("flex_olmo", EXPERTS),
    Architecture("qwen2_moe", {**EXPERTS, **SHARED_EXPERT}, **SHARED),
    Architecture("qwen3_moe", EXPERTS),
    Architecture(
        "qwen3_next", {**EXPERTS, **SHARED_EXPERT, **SECOND_IS_ATTENTION, **GATED_DELTA}, **SHARED
    ),
    Architecture(
        "qwen3_5_moe_text",
        {**EXPERTS, **SHARED_EXPERT, **SECOND_IS_ATTENTION, **GATED_DELTA},
        **SHARED,
    ),
    Architecture(
        "qwen4_exp_text",
        {
            **EXPERTS,
            **SHARED_EXPERT,
            **GATED_DELTA,
            "layer_types": ["linear_attention", "indexed_attention"],
            "ngram_vocab_size_base": VOCABULARY,
            "hc_lowrank": 8,
            "ple_embed_dim": 16,
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
        },
        **SHARED,
    ),
    Architecture("mixtral", LOCAL_EXPERTS),
    Architecture("minimax", LOCAL_EXPERTS),
    Architecture("mellum", EXPERTS),
    Architecture("hunyuan_v1_moe", {"num_experts": 8, "moe_topk": 2}, **SHARED),
    Architecture(
        "jamba",
        {
            **EXPERTS,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        **SECOND,
    ),
    Architecture(
        "ernie4_5_moe",
        {"moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 1},
        **SECOND,
        **SHARED,
    ),
    Architecture("deepseek_v2", _latent(topk_method="group_limited_greedy"), **SECOND, **SHARED),
    Architecture(
        "gemma4_text",
        {
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
        **SHARED,  # the dense MLP of each layer, added to what the routed experts give
    ),
    Architecture(
        "mistral4",
        {
            **_latent(first_k_dense_replace=0),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 128,
                "llama_4_scaling_beta": 0.1,
            },
        },
        **SHARED,
    ),
    # top-k, then softmax
    Architecture("gpt_oss", LOCAL_EXPERTS),
    Architecture("granitemoe", LOCAL_EXPERTS),
    Architecture("granitemoe_swa", LOCAL_EXPERTS),
    Architecture("granitemoeshared", {**LOCAL_EXPERTS, "shared_intermediate_size": 16}, **SHARED),
    Architecture(
        "granitemoehybrid",
        {
            **LOCAL_EXPERTS,
            **SECOND_IS_ATTENTION,
            "mamba_n_heads": 8,
            "mamba_d_state": 8,
            "mamba_d_head": 8,
            "mamba_chunk_size": 16,
            "shared_intermediate_size": 16,
        },
        **SHARED,
    ),
    Architecture(
        "aria_text", {"moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 1}, **SHARED
    ),
    Architecture("cohere2_moe", EXPERTS),
    # thresholds, then softmax, one expert after the other
    Architecture("phimoe", LOCAL_EXPERTS),
    # sigmoid plus a bias for the choice
    Architecture(
        "afmoe",
        {**EXPERTS, "num_dense_layers": 1, "num_hidden_layers": 3, "num_shared_experts": 1},
        layer_indices=(1, 2),
        **SHARED,
    ),
    Architecture("flint", {**EXPERTS, **SHARED_EXPERT, "mlp_only_layers": [0]}, **SECOND, **SHARED),
    Architecture("hy_v3", EXPERTS, **SECOND, **SHARED),
    Architecture("kolibri1", {**EXPERTS, **SHARED_EXPERT, "norm_topk_prob": True}, **SHARED),
    Architecture(
        "laguna",
        {**EXPERTS, **SHARED_EXPERT, "moe_router_logit_softcapping": 0.5},
        **SECOND,
        **SHARED,
    ),
    Architecture(
        "lfm2_moe",
        {**EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
        **SECOND,
    ),
    Architecture("minimax_m2", LOCAL_EXPERTS),
    Architecture(
        "minimax_m3_vl_text",
        {
            **LOCAL_EXPERTS,
            "dense_intermediate_size": 16,
            "shared_intermediate_size": 16,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 4,
            "rotary_dim": 8,
        },
        **SHARED,
    ),
    Architecture("inkling_text", {**ROUTED_EXPERTS, **INKLING_ATTENTION}, **SHARED),
    Architecture(
        "inkling2_text",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "unpadded_vocab_size": 60,
            **INKLING_ATTENTION,
        },
    ),
    # sigmoid plus a bias, within the best groups of experts
    Architecture("deepseek_v3", _latent(), **SECOND, **SHARED),
    Architecture("deepseek_v32", _latent(**INDEXER), **SECOND, **SHARED),
    Architecture("axk1", _latent(), **SECOND, **SHARED),
    Architecture("axk2", _latent(**INDEXER), **SECOND, **SHARED),
    Architecture("beam", {**EXPERTS, **GROUPS, **SECOND_IS_SPARSE}, **SECOND),
    Architecture(
        "dots1", {**ROUTED_EXPERTS, **GROUPS, "first_k_dense_replace": 1}, **SECOND, **SHARED
    ),
    Architecture("exaone_moe", {**EXPERTS, **GROUPS, "num_shared_experts": 1}, **SECOND, **SHARED),
    Architecture(
        "glm4_moe", {**ROUTED_EXPERTS, **GROUPS, "first_k_dense_replace": 1}, **SECOND, **SHARED
    ),
    Architecture("glm4_moe_lite", _latent(), **SECOND, **SHARED),
    Architecture("glm_moe_dsa", _latent(**INDEXER), **SECOND, **SHARED),
    Architecture("hy_v4", {**_latent(**INDEXER), **SECOND_IS_SPARSE}, **SECOND, **SHARED),
    Architecture("mimo_v2_flash", {**ROUTED_EXPERTS, **GROUPS}, **SECOND),
    Architecture("solar_open", {**ROUTED_EXPERTS, **GROUPS}, **SHARED),
    Architecture(
        "bailing_hybrid",
        {
            **LATENT_ATTENTION,
            **SECOND_IS_SPARSE,
            **SECOND_IS_ATTENTION,
            **KIMI_DELTA,
            "num_experts": 8,
            "num_experts_per_token": 2,
            "num_shared_experts": 1,
            "num_expert_group": 2,
            "topk_group": 1,
        },
        **SECOND,
        **SHARED,
    ),
    Architecture(
        "kimi_linear",
        {
            **LATENT_ATTENTION,
            **SECOND_IS_SPARSE,
            **SECOND_IS_ATTENTION,
            **KIMI_DELTA,
            "q_lora_rank": None,
            "num_experts": 8,
            "num_experts_per_token": 2,
            "num_expert_group": 2,
            "topk_group": 1,
        },
        **SECOND,
        **SHARED,
    ),
    # no gate, experts in a narrower latent space, blocks that are attention or experts
    Architecture(
        "nemotron_h",
        {
            **ROUTED_EXPERTS,
            **GROUPS,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "num_hidden_layers": 4,
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "moe_latent_size": 24,
        },
        layer_indices=(1, 3),
        hidden_size=24,
        **SHARED,
    ),
    # a norm after each expert, inside a model that also reads images and sound
    Architecture(
        "muse_spark",
        {
            "text_config": {
                **COMMON,
                **LOCAL_EXPERTS,
                **SECOND_IS_SPARSE,
                "moe_hidden_size": 24,
                "layer_types": ["sliding_attention", "full_attention"],
                "layer_rope_theta": [10000.0, 0],
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "audio_config": {
                "patch_sizes": [16],
                "hidden_sizes": [16],
                "depths": [1],
                "num_hidden_layers": 1,
                "out_hidden_size": 32,
            },
            "out_hidden_size": 16,
            "projector_hidden_size": 16,
        },
        hidden_size=24,
        **SECOND,
    ),
    # the first layer looks the experts up by token id
    Architecture(
        "deepseek_v4",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["hash_moe", "moe"],
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
            "num_key_value_heads": 1,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "o_groups": 2,
            "o_lora_rank": 8,
            "sliding_window": 8,
            "hc_mult": 2,
            **INDEXER,
        },
        **SHARED,
    ),
)

ARCHITECTURES: tuple[Architecture, ...] = tuple(
    entry for entry in _ALL if entry.model_type in CONFIG_MAPPING_NAMES
)
"""Every architecture of the list that the installed transformers has."""

BY_NAME: dict[str, Architecture] = {entry.name: entry for entry in ARCHITECTURES}


ROUTED_DIFFERENTLY = (
    "olmoe",  # softmax
    "qwen2_moe",  # shared experts
    "mixtral",
    "gpt_oss",  # transposed, interleaved, with biases
    "deepseek_v3",  # sigmoid with a bias, within groups
    "granitemoe",  # top-k before the softmax
    "nemotron_h",  # no gate, narrower than the model
    "muse_spark",  # a norm after each expert
)
"""One of each way in which routers choose and experts are built."""


def known(*names: str) -> list[str]:
    """Those of them that the installed transformers has."""
    return [name for name in names if name in BY_NAME]


def token_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids `(batch, length)` without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (batch, length), generator=generator)


def enable_checkpointing(model: PreTrainedModel, use_reentrant: bool = False) -> None:
    """Turn gradient checkpointing on, whatever the installed transformers calls it."""
    settings = {"use_reentrant": use_reentrant}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
