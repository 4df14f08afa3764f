"""The default config of every architecture with fused experts is described, or refused for a true reason."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from transformers import PretrainedConfig

from steermoe.errors import ModelError
from steermoe.moe.layers import describe_config

release = Version(transformers.__version__)

REFUSED: dict[str, tuple[str, ...]] = {
    # parts of models that read images or sound, and parts that generate only inside another model
    r"\w+ is not supported: transformers has no text-generation class for it": (
        *("DeepseekOcr2SamVisionConfig", "DeepseekOcr2TextConfig", "DeepseekOcr2VisionConfig"),
        *("DeepseekOcr2VisionEncoderConfig", "Dots3NoteAudioConfig", "Dots3NoteVisionConfig"),
        *("Gemma4AudioConfig", "Gemma4VisionConfig", "Glm4vMoeTextConfig", "Glm4vMoeVisionConfig"),
        *("Glm5NextTextConfig", "Glm5NextVisionConfig", "Inkling2VisionConfig"),
        *("InklingAudioConfig", "InklingVisionConfig", "MiniMaxM3VLVisionConfig"),
        *("MistralLarge4TextConfig", "MuseSparkAudioConfig", "MuseSparkTextConfig"),
        *("MuseSparkVisionConfig", "Qwen3OmniMoeCode2WavConfig", "Qwen3OmniMoeTalkerConfig"),
        *("Qwen3VLMoeTextConfig", "Qwen3VLMoeVisionConfig", "Qwen3_5MoeVisionConfig"),
        *("Qwen4ExpVisionConfig", "UnlimitedOcrSamVisionConfig", "UnlimitedOcrTextConfig"),
        *("UnlimitedOcrVisionConfig", "UnlimitedOcrVisionEncoderConfig"),
        *(("HYV4VLTextConfig", "HYV4VLVisionConfig") if release >= Version("5.24") else ()),
    ),
    r"diffusion_gemma\w* is not supported: it denoises blocks of text": (
        *("DiffusionGemmaConfig", "DiffusionGemmaTextConfig"),
    ),
    r"ernie4_5_vl_moe\w* is not supported: each layer keeps separate experts": (
        *("Ernie4_5_VLMoeConfig", "Ernie4_5_VLMoeTextConfig", "Ernie4_5_VLMoeVisionConfig"),
        *("Ernie4_5_VL_MoeConfig", "Ernie4_5_VL_MoeTextConfig", "Ernie4_5_VL_MoeVisionConfig"),
    ),
    r"openai_privacy_filter is not supported: it labels tokens": ("OpenAIPrivacyFilterConfig",),
    r"qwen3_omni_moe\w* is not supported: it is a thinker and a talker": (
        *("Qwen3OmniMoeConfig", "Qwen3OmniMoeTextConfig", "Qwen3OmniMoeThinkerConfig"),
        *("Qwen3OmniMoeTalkerTextConfig", "Qwen3OmniMoeTalkerCodePredictorConfig"),
        *("Qwen3OmniMoeAudioEncoderConfig", "Qwen3OmniMoeVisionEncoderConfig"),
    ),
    r"zaya is not supported: its router may choose no expert": ("ZayaConfig",),
    # enable_moe_block is off by default
    r"this gemma4\w* model is dense": ("Gemma4Config", "Gemma4TextConfig"),
    # default configs that leave out what every checkpoint has
    r"chooses: its config leaves out num_experts_per_tok$": ("DeepseekV2Config",),
    r"no deepseek_ocr2 model fits .* \(unset: mlp_layer_types\)$": ("DeepseekOcr2Config",),
    r"no dots1 model fits .* \(unset: n_routed_experts\)$": ("Dots1Config",),
    r"no hunyuan_v1_moe model fits .* \(unset: head_dim\)$": ("HunYuanMoEV1Config",),
    r"no lfm2_moe model fits .* \(unset: layer_types\)$": ("Lfm2MoeConfig",),
    r"no qwen4_exp\w* model fits .* \(unset: .*indexer_budget, indexer_compress_ratio\)$": (
        *("Qwen4ExpConfig", "Qwen4ExpTextConfig"),
    ),
}
"""A reason to the config classes that are refused for it; every other one must be described."""

REASONS = {name: reason for reason, names in REFUSED.items() for name in names}

pytestmark = pytest.mark.skipif(
    release < Version("5.23"),
    reason="the default configs of older releases differ",
)


def config_classes() -> Iterator[type[PretrainedConfig]]:
    """Every config class that lies beside a modeling file with fused experts, parts of models included."""
    models = Path(transformers.__file__).parent / "models"
    decorated = {
        path.parent
        for path in models.glob("*/modeling_*.py")
        if "@use_experts_implementation" in path.read_text(encoding="utf-8")
    }
    for path in sorted(path for folder in decorated for path in folder.glob("configuration_*.py")):
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, PretrainedConfig) and member.__module__ == module.__name__:
                yield member


CLASSES = {member.__name__: member for member in config_classes()}


def test_every_class_that_is_listed_as_refused_exists() -> None:
    assert len(REASONS) == sum(map(len, REFUSED.values())), "a class is listed twice"
    assert set(REASONS) <= set(CLASSES)
    folders = {member.__module__.split(".")[2] for member in CLASSES.values()}
    # A later release may only add to what is looked at here.
    assert len(folders) == 64 if release < Version("5.24") else len(folders) >= 67


@pytest.mark.parametrize(("name", "reason"), REASONS.items(), ids=list(REASONS))
def test_a_default_config_is_refused_for_a_true_reason(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        describe_config(CLASSES[name]())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CLASSES.keys() - REASONS.keys()))
def test_a_default_config_is_described(name: str) -> None:
    description = describe_config(CLASSES[name]())
    assert description.num_layers > 0
    assert description.num_experts > description.top_k > 0
    assert description.num_parameters > description.parameters_per_expert > 0


@pytest.mark.parametrize(
    ("name", "language_model", "layer_indices"),
    [
        (
            "DeepseekOcr2Config",
            {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
            (1,),
        ),
        (
            "Gemma4Config",
            {
                "enable_moe_block": True,
                "num_experts": 8,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (0, 1),
        ),
        (
            "Qwen4ExpConfig",
            {
                "layer_types": ["linear_attention", "indexed_attention"],
                "indexer_n_heads": 4,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 256,
                "indexer_budget": 4,
                "indexer_compress_ratio": 2,
                "num_experts_per_tok": 2,
            },
            (0, 1),
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_with_what_it_leaves_out_filled_in_it_is_described(
    name: str, language_model: dict[str, object], layer_indices: tuple[int, ...]
) -> None:
    description = describe_config(
        CLASSES[name](text_config={"num_hidden_layers": 2, **language_model})
    )
    assert description.layer_indices == layer_indices
    assert description.top_k == 2
    assert all(layer.has_shared_experts for layer in description.layers)
