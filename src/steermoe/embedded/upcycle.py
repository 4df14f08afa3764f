"""A dense Llama-type model turned into a Mixtral mixture of experts, without training and without labels.

Shape legend: T content tokens, S shared tokens, D model width, F neurons of an MLP, E experts, K top-k.

Sparse upcycling (Komatsuzaki et al., arXiv:2212.05055) copies a dense MLP into every expert and trains on. Here
nothing is trained, so the experts must differ, and the router must mean something, from the start:

- the dense model replies to calibration prompts of many topics, and the inputs `x` (D) of each MLP are recorded;
- the router's rows are a linear discriminant of those exchanges (`steermoe.embedded.topic_routers`), so a token goes
  to the experts of its exchange's topic;
- each expert is the dense MLP without the neurons that matter least to its own tokens. What neuron `f` matters is
  `sqrt(mean(h_f ** 2)) * ||down_f||`: how strongly it fires there times the norm of its column of the
  down-projection, the Wanda score (Sun et al., arXiv:2306.11695) summed up over a neuron.

A Mixtral block scales the K chosen experts to a sum of one, so with nothing pruned the result *is* the dense model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mixtral.modeling_mixtral import (
    MixtralExperts,
    MixtralRotaryEmbedding,
)

from steermoe.embedded.calibration import record_replies
from steermoe.embedded.topic_routers import router_weights
from steermoe.errors import ModelError

SHARED_WEIGHT = 0.01
"""A neuron matters to an expert as if each shared token made up this share of its tokens; 0.003 to 0.03 do as well."""


@torch.no_grad()
def upcycle_dense_to_moe(
    dense_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    calibration_prompts: Sequence[str],
    *,
    system_prompt: str = "",
    num_experts: int = 8,
    top_k: int = 2,
    keep_fraction: float = 0.99,
    seed: int = 0,
) -> MixtralForCausalLM:
    """Make a Mixtral mixture of experts of a dense Llama-type model.

    Attention, norms and embeddings are copied. Per layer, `router_weights` finds topics in the MLP's inputs and
    `neurons_to_keep` chooses what each expert keeps of the dense MLP; a neuron that is not kept is zero, so experts
    have the dense MLP's shape.

    Routers are made of what is an exchange's own: the chat template's tokens, the same each time, say nothing of the
    topic. But every reply depends on them, and in some layers the first one makes a neuron fire a hundred times as
    strongly as any content token does (massive activations, Sun et al., arXiv:2402.17762), so what they need is kept.

    The same arguments give the same bits on one machine with one number of threads.

    Args:
        dense_model: The dense model, in the dtype the result is to have. It is put in eval mode, and not changed.
        tokenizer: Its tokenizer; its chat template, if it has one, wraps every prompt.
        calibration_prompts: One-line requests of the topics the routers should tell apart.
        system_prompt: System turn before every request; empty for none.
        num_experts: E, at least 2.
        top_k: K, experts a token, at most E.
        keep_fraction: Share of the neurons that an expert keeps, above 0 and at most 1.
        seed: Seeds the first centroids.

    Returns:
        The mixture, in eval mode, with the dense model's dtype, positions, and token ids.

    Raises:
        ModelError: If the model is not a Llama without biases, a number is out of range, or the calibration prompts
            are too few or too much alike to part.
    """
    check_recipe(dense_model, num_experts, top_k, keep_fraction)
    _check_prompts(calibration_prompts)
    dense_model.train(False)
    recorded = record_replies(dense_model, tokenizer, calibration_prompts, system_prompt)
    moe = copy_all_but_mlps(dense_model, num_experts, top_k)
    for index, inputs in enumerate(recorded):
        dense_mlp = dense_model.model.layers[index].mlp
        moe_mlp = moe.model.layers[index].mlp
        content_TD = inputs.content.float()
        weights_ED = router_weights(content_TD, inputs.exchange, num_experts, seed)
        moe_mlp.gate.weight.copy_(weights_ED)
        keep_EF = neurons_to_keep(
            neurons(dense_mlp, inputs.content),
            routed_to(content_TD @ weights_ED.T, top_k),
            neurons(dense_mlp, inputs.shared),
            dense_mlp.down_proj.weight.float().norm(dim=0),
            keep_fraction,
        )
        write_experts(dense_mlp, moe_mlp.experts, keep_EF)
    return moe


def _check_prompts(calibration_prompts: Sequence[str]) -> None:
    if not calibration_prompts or not all(prompt.strip() for prompt in calibration_prompts):
        raise ModelError("calibration prompts are missing or blank; give several one-line requests")


def check_recipe(
    dense_model: LlamaForCausalLM, num_experts: int, top_k: int, keep_fraction: float
) -> None:
    """Refuse what the recipe cannot do, before any work.

    Raises:
        ModelError: Naming the value and the limit.
    """
    if not isinstance(dense_model, LlamaForCausalLM):
        raise ModelError(
            f"cannot upcycle {type(dense_model).__name__}; the recipe knows LlamaForCausalLM only"
        )
    if dense_model.config.attention_bias or dense_model.config.mlp_bias:
        raise ModelError("cannot upcycle a Llama with biases: Mixtral has none to copy them to")
    if num_experts < 2:
        raise ModelError(f"num_experts is {num_experts}; a mixture needs at least 2")
    if not 1 <= top_k <= num_experts:
        raise ModelError(f"top_k is {top_k}; give 1 to {num_experts}, the number of experts")
    if not 0 < keep_fraction <= 1:
        raise ModelError(f"keep_fraction is {keep_fraction}; give a number above 0, at most 1")


def copy_all_but_mlps(
    dense_model: LlamaForCausalLM, num_experts: int, top_k: int
) -> MixtralForCausalLM:
    """A Mixtral of the dense model's shape with its attention, norms and embeddings; MLPs are unset memory.

    Of the generation settings only the token ids are copied: greedy decoding warns of sampling defaults.
    """
    dense = dense_model.config
    config = MixtralConfig(
        vocab_size=dense.vocab_size,
        hidden_size=dense.hidden_size,
        intermediate_size=dense.intermediate_size,
        num_hidden_layers=dense.num_hidden_layers,
        num_attention_heads=dense.num_attention_heads,
        num_key_value_heads=dense.num_key_value_heads or dense.num_attention_heads,
        head_dim=dense.head_dim,
        hidden_act=dense.hidden_act,
        max_position_embeddings=dense.max_position_embeddings,
        rms_norm_eps=dense.rms_norm_eps,
        rope_parameters=dense.rope_parameters,
        tie_word_embeddings=dense.tie_word_embeddings,
        sliding_window=None,
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
        bos_token_id=dense.bos_token_id,
        eos_token_id=dense.eos_token_id,
        pad_token_id=dense.pad_token_id,
    )
    config.dtype = dense_model.dtype
    # Built without memory, then given some: filling 0.7 G weights with random numbers takes longer than the recipe.
    with torch.device("meta"):
        moe = MixtralForCausalLM(config)
    nn.Module.to(moe, dense_model.dtype).to_empty(device="cpu").train(False)
    # Its frequencies are computed, not stored, so to_empty lost them.
    moe.model.rotary_emb = MixtralRotaryEmbedding(config)

    moe.model.embed_tokens.load_state_dict(dense_model.model.embed_tokens.state_dict())
    moe.model.norm.load_state_dict(dense_model.model.norm.state_dict())
    if config.tie_word_embeddings:
        moe.tie_weights()
    else:
        moe.lm_head.load_state_dict(dense_model.lm_head.state_dict())
    for source, target in zip(dense_model.model.layers, moe.model.layers, strict=True):
        for name in ("self_attn", "input_layernorm", "post_attention_layernorm"):
            getattr(target, name).load_state_dict(getattr(source, name).state_dict())

    if dense_model.generation_config is not None:
        token_ids = {
            name: getattr(dense_model.generation_config, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        moe.generation_config = GenerationConfig(**token_ids)  # type: ignore[no-untyped-call]  # not annotated upstream
    return moe


def neurons(mlp: LlamaMLP, inputs_TD: Tensor) -> Tensor:
    """Activations of an MLP's neurons `(T, F)`, fp32 of what the model's dtype makes of them."""
    active: Tensor = mlp.act_fn(mlp.gate_proj(inputs_TD)) * mlp.up_proj(inputs_TD)
    return active.float()


def routed_to(logits_TE: Tensor, top_k: int) -> Tensor:
    """Boolean `(T, E)`, true for the `top_k` experts of largest logit."""
    chosen_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
    return chosen_TE.scatter_(1, logits_TE.topk(top_k, dim=1).indices, True)


def neurons_to_keep(
    neurons_TF: Tensor,
    chosen_TE: Tensor,
    shared_SF: Tensor,
    down_norm_F: Tensor,
    keep_fraction: float,
) -> Tensor:
    """Which neurons each expert keeps: those that matter most to the tokens routed to it.

    Importance is `sqrt(mean(h ** 2)) * ||down||`, the mean over the expert's own tokens, or `SHARED_WEIGHT` times the
    largest `h ** 2` of any shared token where that is more. An expert that was sent no token ranks its neurons by
    all tokens.

    Args:
        neurons_TF: Activations of the dense MLP's neurons at content tokens, fp32.
        chosen_TE: Which content tokens are routed to which expert.
        shared_SF: Activations at tokens that all prompts share; there may be none.
        down_norm_F: Norm of each neuron's column of the down-projection.
        keep_fraction: Share that is kept, rounded down, at least one neuron.

    Returns:
        Boolean `(E, F)`.
    """
    chosen_TE = chosen_TE | ~chosen_TE.any(dim=0)
    share_ET = (chosen_TE / chosen_TE.sum(dim=0)).T
    square_EF = share_ET @ neurons_TF.square()
    if len(shared_SF):
        square_EF = square_EF.maximum(SHARED_WEIGHT * shared_SF.square().amax(dim=0))
    importance_EF = square_EF.sqrt() * down_norm_F
    num_kept = max(1, int(keep_fraction * neurons_TF.shape[1]))
    keep_EF = torch.zeros_like(importance_EF, dtype=torch.bool)
    return keep_EF.scatter_(1, importance_EF.topk(num_kept, dim=1).indices, True)


def write_experts(dense_mlp: LlamaMLP, experts: MixtralExperts, keep_EF: Tensor) -> None:
    """Fill the fused expert tensors with the dense MLP, all other neurons zero.

    `gate_up_proj (E, 2F, D)` holds the gate's rows first; `down_proj` is `(E, D, F)`.
    """
    gate_FD, up_FD = dense_mlp.gate_proj.weight, dense_mlp.up_proj.weight
    for expert, keep_F in enumerate(keep_EF):
        pruned_F = ~keep_F
        experts.gate_up_proj[expert].copy_(
            torch.cat([gate_FD, up_FD]).masked_fill(pruned_F.repeat(2)[:, None], 0)
        )
        experts.down_proj[expert].copy_(dense_mlp.down_proj.weight.masked_fill(pruned_F, 0))
