"""MoE layers are found from models and from configs, and what cannot be used is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    LlamaConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen3VLMoeConfig,
)

from architectures import ARCHITECTURES, BY_NAME, Architecture
from steermoe.errors import ModelError
from steermoe.moe.layers import (
    auto_model_class,
    describe_config,
    find_moe_layers,
    is_fused_experts,
    load_description,
)
from steermoe.moe.quantization import dequantization_arguments, quantization_method
from steermoe.moe.routing import RoutingRecorder
from steermoe.moe.support import supported_architectures
from steermoe.moe.trained_stack import fused_parameters

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda x: x.name)


def test_the_matrix_has_the_architectures_that_matter() -> None:
    assert len(ARCHITECTURES) >= 30
    named = {"olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "mixtral", "phimoe", "gpt_oss"}
    named |= {"deepseek_v2", "deepseek_v3", "granitemoe", "glm4_moe", "ernie4_5_moe", "jamba"}
    named |= {"hunyuan_v1_moe", "lfm2_moe", "minimax_m2", "nemotron_h"}
    assert named <= set(BY_NAME)


@each_architecture
def test_what_is_found_is_what_the_config_says(architecture: Architecture) -> None:
    description = find_moe_layers(architecture.build())
    assert description.model_type == architecture.model_type
    assert description.layer_indices == architecture.layer_indices
    assert description.num_layers == len(architecture.layer_indices)
    assert description.num_experts == architecture.num_experts
    assert description.top_k == architecture.top_k
    for layer in description.layers:
        assert layer.hidden_size == architecture.hidden_size
        assert layer.expert_hidden_size == architecture.expert_hidden_size
        assert layer.has_shared_experts == architecture.has_shared_experts


@each_architecture
def test_a_config_describes_the_model_that_it_builds(architecture: Architecture) -> None:
    assert describe_config(architecture.config()) == find_moe_layers(architecture.build())


@each_architecture
def test_parameters_per_expert_are_those_of_the_stacked_tensors(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    for layer in find_moe_layers(model).layers:
        experts = model.get_submodule(layer.experts_name)
        stacked = dict(experts.named_parameters(recurse=False))
        assert fused_parameters(experts).keys() == stacked.keys()
        sizes = {name: tensor[0].numel() for name, tensor in stacked.items()}
        assert layer.parameters_per_expert == sum(sizes.values())
        assert all(len(tensor) == layer.num_experts for tensor in stacked.values())


@each_architecture
def test_paths_lead_to_the_modules(architecture: Architecture) -> None:
    model = architecture.build()
    for layer in find_moe_layers(model).layers:
        block = model.get_submodule(layer.block_name)
        assert is_fused_experts(model.get_submodule(layer.experts_name))
        assert model.get_submodule(layer.experts_name) is block.experts
        assert model.get_submodule(layer.router_name) in (
            getattr(block, "gate", None),
            getattr(block, "router", None),
        )


def test_layouts_come_from_the_flags_of_the_interface() -> None:
    mixtral = describe_config(BY_NAME["mixtral"].config()).layers[0]
    assert (mixtral.has_gate, mixtral.has_bias, mixtral.is_transposed) == (True, False, False)
    gpt_oss = describe_config(BY_NAME["gpt_oss"].config()).layers[0]
    assert (gpt_oss.is_transposed, gpt_oss.is_concatenated, gpt_oss.has_bias) == (True, False, True)
    nemotron = describe_config(BY_NAME["nemotron_h"].config()).layers[0]
    assert not nemotron.has_gate


def test_the_full_size_model_is_described_without_its_weights() -> None:
    # OLMoE-1B-7B: 16 layers, 64 experts, 8 of them chosen, width 2048, experts of width 1024.
    description = describe_config(OlmoeConfig(intermediate_size=1024))
    assert description.layer_indices == tuple(range(16))
    assert (description.num_experts, description.top_k) == (64, 8)
    assert description.parameters_per_expert == 3 * 2048 * 1024
    # 16 bytes for each of the 50 x 6.3 M trained numbers: master, gradient, two moments, in fp32.
    assert description.bytes_to_train(50) == 50 * 3 * 2048 * 1024 * 16
    assert 6.8e9 < description.num_parameters < 7.0e9
    assert description.bytes_in_bfloat16 == 2 * description.num_parameters


def test_dense_layers_are_skipped_and_not_renumbered() -> None:
    description = describe_config(AutoConfig.for_model("deepseek_v3"))
    assert description.layer_indices == tuple(range(3, 61))


def test_the_experts_of_a_vision_language_model_are_those_of_its_language_model() -> None:
    config = Qwen3VLMoeConfig(
        text_config={**BY_NAME["qwen3_moe"].config().to_dict(), "num_local_experts": 8},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [],
        },
    )
    description = describe_config(config)
    assert description.architecture == "Qwen3VLMoeForConditionalGeneration"
    assert description.layer_indices == (0, 1)
    assert description.layers[0].experts_name == "model.language_model.layers.0.mlp.experts"


def test_a_wrapped_model_is_found_under_its_new_names() -> None:
    wrapper = torch.nn.Module()
    wrapper.module = BY_NAME["mixtral"].build()
    description = find_moe_layers(wrapper)
    assert description.layer_indices == (0, 1)
    assert description.layers[1].experts_name == "module.model.layers.1.mlp.experts"


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^llama is not supported: it is dense"):
        describe_config(LlamaConfig())


@pytest.mark.parametrize(
    "model_type",
    ["llama4", "llama4_text", "dbrx", "jetmoe", "longcat_flash", "doge", "switch_transformers"],
)
def test_architectures_outside_the_interface_are_refused_by_name(model_type: str) -> None:
    with pytest.raises(ModelError, match=rf"^{model_type} is not supported: \w") as caught:
        describe_config(AutoConfig.for_model(model_type))
    assert "\n" not in str(caught.value)


def test_experts_outside_the_interface_are_refused_when_no_table_knows_them() -> None:
    class HomemadeConfig(PretrainedConfig):
        model_type = "homemade"
        num_experts: int = 8

    class Experts(torch.nn.Module):
        config = HomemadeConfig()

    with pytest.raises(ModelError, match="do not use the common fused interface"):
        find_moe_layers(Experts())


@pytest.mark.parametrize(
    ("name", "options", "has_shared_experts"),
    [
        ("granitemoeshared", {"shared_intermediate_size": 0}, False),
        ("granitemoe_swa", {"shared_intermediate_size": 16}, True),
        ("granitemoehybrid", {"shared_intermediate_size": 0}, False),
        ("cohere2_moe", {"num_shared_experts": 1}, True),
        ("ernie4_5_moe", {"moe_num_shared_experts": 0}, False),
        ("deepseek_v3", {"n_shared_experts": 0}, False),
        ("glm4_moe", {"n_shared_experts": 0}, False),
        ("mimo_v2_flash", {"n_shared_experts": 4}, False),  # its code never reads the setting
    ],
)
def test_shared_experts_are_those_that_the_config_asks_for(
    name: str, options: dict[str, int], has_shared_experts: bool
) -> None:
    architecture = BY_NAME[name]
    changed = replace(architecture, options=architecture.options | options)
    for layer in describe_config(changed.config()).layers:
        assert layer.has_shared_experts == has_shared_experts


def test_layers_with_different_numbers_of_experts_are_refused() -> None:
    model = BY_NAME["mixtral"].build()
    experts = model.model.layers[1].mlp.experts
    experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj[:4].detach())
    with pytest.raises(ModelError, match=r"differ in num_experts \(\[4, 8\]\)"):
        find_moe_layers(model)


def test_a_second_set_of_experts_in_a_layer_is_refused() -> None:
    model = BY_NAME["mixtral"].build()
    layer = model.model.layers[1]
    layer.more = type(layer.mlp)(model.config)
    with pytest.raises(ModelError, match="several sets of experts in decoder layer 1"):
        find_moe_layers(model)


def test_experts_split_over_devices_are_refused() -> None:
    model = BY_NAME["mixtral"].build()
    model.model.layers[0].mlp.experts._is_expert_parallel = True
    with pytest.raises(ModelError, match="split by experts over devices"):
        find_moe_layers(model)


def test_a_tensor_parallel_model_is_refused() -> None:
    model = BY_NAME["mixtral"].build()
    model._tp_size = 2
    with pytest.raises(ModelError, match="split over 2 devices by tensor parallelism"):
        find_moe_layers(model)


def test_packed_experts_are_refused() -> None:
    model = BY_NAME["mixtral"].build()
    experts = model.model.layers[0].mlp.experts
    packed = experts.gate_up_proj.detach().to(torch.float8_e4m3fn)
    experts.gate_up_proj = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ModelError, match=r"packed weights \(torch.float8_e4m3fn\)"):
        find_moe_layers(model)


def test_a_config_that_fits_no_model_is_a_users_error() -> None:
    config = BY_NAME["lfm2_moe"].config()
    config.layer_types = None
    with pytest.raises(ModelError, match=r"^no lfm2_moe model fits its config: "):
        describe_config(config)


def saved(config: PretrainedConfig, folder: Path, **changes: object) -> Path:
    config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_model_is_described_from_its_folder(tmp_path: Path) -> None:
    config = BY_NAME["olmoe"].config()
    assert load_description(saved(config, tmp_path)) == describe_config(config)


def test_a_folder_without_a_config_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^{tmp_path} has no config.json") as caught:
        load_description(tmp_path, local_files_only=True)
    assert "\n" not in str(caught.value)


PACKED = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def test_a_packed_checkpoint_is_refused_with_the_memory_that_unpacking_takes(
    tmp_path: Path,
) -> None:
    folder = saved(BY_NAME["gpt_oss"].config(), tmp_path, quantization_config=PACKED)
    message = r"packed as mxfp4, .* model\.dequantize=true .* takes < 0\.01 GiB in bfloat16"
    with pytest.raises(ModelError, match=message):
        load_description(folder)


def test_a_packed_checkpoint_is_described_when_it_will_be_unpacked(tmp_path: Path) -> None:
    folder = saved(BY_NAME["gpt_oss"].config(), tmp_path, quantization_config=PACKED)
    description = load_description(folder, dequantize=True)
    assert description.quantization == "mxfp4"
    arguments = dequantization_arguments(description.quantization)
    assert arguments["quantization_config"].dequantize is True


def test_a_checkpoint_that_cannot_be_unpacked_is_refused_even_so(tmp_path: Path) -> None:
    gptq = {"quant_method": "gptq", "bits": 4}
    folder = saved(BY_NAME["mixtral"].config(), tmp_path, quantization_config=gptq)
    with pytest.raises(ModelError, match="packed as gptq, which cannot be trained or unpacked"):
        load_description(folder, dequantize=True)
    with pytest.raises(ModelError, match="cannot unpack gptq"):
        dequantization_arguments("gptq")


def test_ordinary_weights_need_no_unpacking() -> None:
    assert quantization_method(BY_NAME["mixtral"].config()) is None
    assert dequantization_arguments(None) == {}


def test_bitsandbytes_settings_name_their_method() -> None:
    config = BY_NAME["mixtral"].config()
    config.quantization_config = {"load_in_4bit": True}
    assert quantization_method(config) == "bitsandbytes_4bit"


def test_the_list_of_architectures_agrees_with_the_matrix() -> None:
    listed = {entry.model_type: entry for entry in supported_architectures()}
    for architecture in ARCHITECTURES:
        assert listed[architecture.model_type].is_supported
        auto = auto_model_class(architecture.config())
        built = auto._model_mapping[type(architecture.config())].__name__
        assert listed[architecture.model_type].class_name == built
    for name in ("llama4", "dbrx", "jetmoe", "longcat_flash", "doge", "nllb-moe"):
        assert listed[name].reason


def test_a_hash_router_is_known_while_it_is_recorded() -> None:
    """Recording router logits stands in for the router's forward pass, whose arguments then say nothing."""
    model = BY_NAME["deepseek_v4"].build()
    description = find_moe_layers(model)
    assert [layer.is_hash_routed for layer in description.layers] == [True, False]
    with RoutingRecorder(model, description, router_logits=True):
        assert find_moe_layers(model) == description
