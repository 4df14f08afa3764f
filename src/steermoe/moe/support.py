"""Which architectures of the installed transformers are supported, and why the others are not.

An architecture is supported when its experts class carries `use_experts_implementation` and some Auto
class can generate text with it. Both are read from the sources and the tables of transformers, so that
listing the architectures imports none of their modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name

DECORATOR = "@use_experts_implementation"

_ENCODER_DECODER = "it is an encoder-decoder model, and its experts are separate modules"

REFUSED_ARCHITECTURES: Mapping[str, str] = {
    "dbrx": "its experts compute on flat tensors of their own, outside the common fused interface",
    "diffusion_gemma": "it denoises blocks of text instead of writing token by token",
    "doge": "its experts are rows of an embedding that a product-key search retrieves",
    "ernie4_5_vl_moe": "each layer keeps separate experts for text and for images",
    "jetmoe": "its attention is a mixture of experts too, on parallel linear layers of its own",
    "llama4": "its router scales what experts read, outside the common fused interface",
    "longcat_flash": "some of its experts are identities without weights",
    "nllb_moe": _ENCODER_DECODER,
    "openai_privacy_filter": "it labels tokens and generates no text",
    "qwen3_omni_moe": "it is a thinker and a talker that only generate together",
    "step3p7": "its experts run in a loop of their own, outside the common fused interface",
    "switch_transformers": _ENCODER_DECODER,
    "zaya": "its router may choose no expert for a token, which routed experts cannot say",
}
"""Module name in transformers to the reason, for every architecture with experts that cannot be used."""

READS_PADDING = frozenset({"deepseek_v4"})
"""Architectures whose attention pools neighbouring tokens, padding among them: what stands before a prompt changes its
reply and its routed experts."""


@dataclass(frozen=True, slots=True)
class ArchitectureSupport:
    """One architecture of transformers with experts.

    Attributes:
        model_type: What a config calls it.
        class_name: The class that generates text; empty if there is none.
        reason: Why it is refused; empty if it is supported.
    """

    model_type: str
    class_name: str
    reason: str = ""

    @property
    def is_supported(self) -> bool:
        """Whether its experts can be found, recorded, masked and trained."""
        return not self.reason


def refusal(model_type: str) -> str | None:
    """Why an architecture is refused, None if no table speaks against it."""
    return REFUSED_ARCHITECTURES.get(model_type_to_module_name(model_type))


def has_fused_experts(model_type: str) -> bool:
    """Whether some models of an architecture have experts of the common interface."""
    return model_type_to_module_name(model_type) in _modules_with_fused_experts()


@cache
def supported_architectures() -> tuple[ArchitectureSupport, ...]:
    """Every architecture with experts that the installed transformers has, by name.

    Those in the table of refusals are listed with their reason.
    """
    fused = _modules_with_fused_experts()
    found: list[ArchitectureSupport] = []
    for model_type in sorted(CONFIG_MAPPING):
        module = model_type_to_module_name(model_type)
        class_name = _generating_class(model_type)
        if module in REFUSED_ARCHITECTURES:
            if module == model_type.replace("-", "_"):
                reason = REFUSED_ARCHITECTURES[module]
                found.append(ArchitectureSupport(model_type, class_name, reason))
        elif module in fused and class_name:
            found.append(ArchitectureSupport(model_type, class_name))
    return tuple(found)


@cache
def _modules_with_fused_experts() -> frozenset[str]:
    """Names of the model folders of transformers whose modeling file carries the decorator."""
    folder = Path(transformers.__file__).parent / "models"
    return frozenset(
        path.parent.name
        for path in folder.glob("*/modeling_*.py")
        if DECORATOR in path.read_text(encoding="utf-8")
    )


def _generating_class(model_type: str) -> str:
    """Name of the class that generates text for a model type; empty if there is none."""
    for mapping in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
        names = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {})
        if model_type in names:
            return str(names[model_type])
    return ""
