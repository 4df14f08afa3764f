"""Find the Mixture-of-Experts layers of a model, from the model or from its config alone.

Shape legend: E experts, K top-k, D width of an expert's input, F expert hidden width, L MoE layers.

Every fused experts class of transformers 5 is decorated with `use_experts_implementation`, which leaves
flags on the module: `has_gate`, `has_bias`, `is_transposed`, `is_concatenated`, `has_post_expert_norm`.
Those flags, the shapes of the tensors and the usual names of routers and shared experts are all that is read
here, so an architecture that transformers adds tomorrow is found without a line of new code. Names of
architectures appear only in the table of refusals.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from steermoe.errors import ModelError
from steermoe.moe.configs import (
    CHOSEN_COUNTS,
    check_config,
    read_config,
    reason_not_built,
    reason_without_experts,
)
from steermoe.moe.description import MoEDescription, MoELayer, decoder_layer
from steermoe.moe.quantization import check_quantization, quantization_method
from steermoe.moe.support import has_fused_experts, refusal

EXPERTS_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
"""What `use_experts_implementation` sets on every fused experts module, in every release."""

ROUTER_NAMES = ("gate", "router")
"""Names under which the block that owns the experts keeps its router."""


def is_fused_experts(module: nn.Module) -> bool:
    """Whether a module is a fused experts module of the common interface."""
    return all(hasattr(module, flag) for flag in EXPERTS_FLAGS)


def find_moe_layers(model: nn.Module) -> MoEDescription:
    """Describe the MoE layers of a model.

    Args:
        model: A model, with its weights anywhere (the meta device included), wrapped or not.

    Raises:
        ModelError: If the model has no routed experts, keeps them outside the common interface, is
            split by experts, or its MoE layers differ in experts or top-k.
    """
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", type(model).__name__))
    refuse_by_name(model_type)
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if is_fused_experts(module)]
    parallel = getattr(model, "tp_size", None) or 1
    if parallel > 1:
        raise ModelError(
            f"{type(model).__name__} is split over {parallel} devices by tensor parallelism; "
            "load it without a tp_plan"
        )
    if not names:
        raise ModelError(reason_without_experts(model_type, config, has_fused_experts(model_type)))
    names = _of_the_language_model(model, modules, names)
    layers = sorted((_describe_layer(modules, name) for name in names), key=lambda x: x.index)
    description = MoEDescription(
        model_type=model_type,
        architecture=type(model).__name__,
        layers=tuple(layers),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        quantization=quantization_method(config) if isinstance(config, PretrainedConfig) else None,
    )
    _check_layers(description)
    return description


def describe_config(config: PretrainedConfig, trust_remote_code: bool = False) -> MoEDescription:
    """Describe the MoE layers of the model that a config stands for, without any weights.

    Args:
        config: The model's config.
        trust_remote_code: Whether model code that ships with the checkpoint may run.

    Raises:
        ModelError: As `find_moe_layers`, or if the architecture generates no text.
    """
    return find_moe_layers(model_of_config(config, trust_remote_code))


def model_of_config(config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """The model that a config stands for, on the meta device: shapes and no numbers.

    Raises:
        ModelError: The architecture is refused or generates no text, or no model fits the config.
    """
    refuse_by_name(config.model_type)
    auto = auto_model_class(config)
    check_config(config)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Shared experts of width 0 are how some configs say that there are none.
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            return auto.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # building raises whatever a wrong value leads to
        raise ModelError(
            f"no {config.model_type} model fits its config: {reason_not_built(error)}"
        ) from error


def load_description(
    model: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    dequantize: bool = False,
) -> MoEDescription:
    """Describe a model by its name or path; only its config is read.

    Args:
        model: Directory, or name on the model hub.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether model code that ships with the checkpoint may run.
        local_files_only: Whether the hub must not be asked.
        dequantize: Whether packed weights will be unpacked when they load.

    Raises:
        ModelError: As `describe_config`, or if the config cannot be read, or if the weights are packed
            and `dequantize` is off or impossible.
    """
    config = read_config(model, revision, trust_remote_code, local_files_only)
    try:
        description = describe_config(config, trust_remote_code)
        check_quantization(description.quantization, dequantize, description.bytes_in_bfloat16)
    except ModelError as error:
        raise ModelError(f"{model} cannot be used: {error}") from error
    return description


def refuse_by_name(model_type: str) -> None:
    """Raise for an architecture that is known not to work, with the reason.

    Raises:
        ModelError: If the table of refusals has the architecture.
    """
    reason = refusal(model_type)
    if reason is not None:
        raise ModelError(f"{model_type} is not supported: {reason}")


def auto_model_class(config: PretrainedConfig) -> Any:
    """The `AutoModelFor...` class that loads a config's model so that it generates text.

    Raises:
        ModelError: If transformers has no such class for the config.
    """
    if type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        return modeling_auto.AutoModelForCausalLM
    if type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return modeling_auto.AutoModelForImageTextToText
    if type(config) in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return modeling_auto.AutoModelForMultimodalLM
    if hasattr(config, "auto_map"):  # model code that ships with the checkpoint
        return modeling_auto.AutoModelForCausalLM
    name = config.model_type or type(config).__name__
    raise ModelError(f"{name} is not supported: transformers has no text-generation class for it")


def _of_the_language_model(
    model: nn.Module, modules: dict[str, nn.Module], names: list[str]
) -> list[str]:
    """Leave out experts of vision and audio towers, where the model says what its decoder is."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if not isinstance(decoder, nn.Module):
        return names
    inside = {id(module) for module in decoder.modules()}
    kept = [name for name in names if id(modules[name]) in inside]
    return kept or names


def _describe_layer(modules: dict[str, nn.Module], experts_name: str) -> MoELayer:
    """Describe the layer of one fused experts module."""
    experts = modules[experts_name]
    block_name = experts_name.rpartition(".")[0]
    block = modules[block_name]
    if getattr(experts, "_is_expert_parallel", False):
        raise ModelError(
            f"{experts_name} is split by experts over devices; load the model without expert parallelism"
        )
    router_names = [name for name in ROUTER_NAMES if hasattr(block, name)]
    if len(router_names) != 1:
        raise ModelError(
            f"{type(block).__name__} ({block_name}) has no router named gate or router, "
            "so its choice of experts cannot be read"
        )
    router = getattr(block, router_names[0])
    has_gate = bool(experts.has_gate)
    up = experts.get_parameter("gate_up_proj" if has_gate else "up_proj")
    if not up.is_floating_point() or up.element_size() < 2:
        raise ModelError(
            f"{experts_name} holds packed weights ({up.dtype}), and packed experts cannot be trained; "
            "load the model with model.dequantize=true"
        )
    transposed = bool(experts.is_transposed)
    num_experts = up.shape[0]
    hidden, width = (up.shape[1], up.shape[2]) if transposed else (up.shape[2], up.shape[1])
    decoder_layer_name, index = decoder_layer(experts_name)
    return MoELayer(
        index=index,
        block_name=block_name,
        experts_name=experts_name,
        router_name=f"{block_name}.{router_names[0]}",
        num_experts=num_experts,
        top_k=_top_k(router, block),
        hidden_size=hidden,
        expert_hidden_size=width // 2 if has_gate else width,
        has_shared_experts=any(
            _is_shared(name, module, experts)
            for owner in (block, modules[decoder_layer_name])
            for name, module in owner.named_children()
        ),
        is_hash_routed="input_ids" in inspect.signature(type(router).forward).parameters,
        has_gate=has_gate,
        has_bias=bool(experts.has_bias),
        is_transposed=transposed,
        is_concatenated=bool(experts.is_concatenated),
        has_post_expert_norm=post_expert_norm(experts) is not None,
    )


def post_expert_norm(experts: Any) -> Any:
    """The norm of each expert's output before it is weighted, or None: transformers 5.19 has not even the flag."""
    return experts.post_expert_norm if getattr(experts, "has_post_expert_norm", False) else None


def _is_shared(name: str, module: nn.Module, experts: nn.Module) -> bool:
    """Whether a neighbour of the routed experts is an MLP that every token passes through.

    It lies inside the block (`shared_experts` of DeepSeek, `shared_expert` of Qwen2-MoE), beside the block
    (`shared_mlp` of Granite), or, where the decoder layer is itself the block, it is the layer's `mlp`
    (Gemma 4). One of width 0, without a number in it, is how some configs say that there is none.
    """
    if "shared" not in name and name != "mlp":
        return False
    holds_experts = any(part is experts for part in module.modules())
    return not holds_experts and any(parameter.numel() for parameter in module.parameters())


def _top_k(router: nn.Module, block: nn.Module) -> int:
    """How many experts a router chooses."""
    unset = []
    for owner in (router, block, getattr(router, "config", None), getattr(block, "config", None)):
        for name in CHOSEN_COUNTS:
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
            if isinstance(owner, PretrainedConfig) and hasattr(owner, name):
                unset.append(name)
    why = f": its config leaves out {unset[0]}" if unset else ""
    raise ModelError(f"{type(router).__name__} does not say how many experts it chooses{why}")


def _check_layers(description: MoEDescription) -> None:
    """Refuse what one `(L, E)` table cannot hold."""
    repeated = [i for i, n in Counter(description.layer_indices).items() if n > 1]
    if repeated:
        raise ModelError(
            f"{description.architecture} has several sets of experts in decoder layer {repeated[0]}; "
            "only one set a layer is supported"
        )
    for what in ("num_experts", "top_k"):
        values = sorted({getattr(layer, what) for layer in description.layers})
        if len(values) > 1:
            raise ModelError(
                f"{description.architecture} has MoE layers that differ in {what} ({values}); "
                "only equal layers are supported"
            )
    if description.parameters_per_expert < 1:
        raise ModelError(f"{description.architecture} has experts of width 0 by its config")
    if not 1 <= description.top_k <= description.num_experts:
        raise ModelError(
            f"{description.architecture} has {description.num_experts} routed experts in a layer and chooses "
            f"{description.top_k} of them for a token; correct these two numbers in its config"
        )
