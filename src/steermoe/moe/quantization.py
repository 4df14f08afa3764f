"""Quantised checkpoints: what they are packed as, and how to load them as ordinary weights.

Packed experts (gpt-oss ships MXFP4, DeepSeek-V3 ships FP8) take no gradient. A method that transformers
can unpack while loading says so with a `dequantize` argument in its config class; that argument, not a
list of names, decides here what can be unpacked. Once loaded, such a model is an ordinary one, and is saved as one:
quantised again, the trained experts would change and so would all others.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from steermoe.errors import ModelError
from steermoe.moe.stored import stored_tensors
from steermoe.units import gibibytes


def quantization_method(config: PretrainedConfig) -> str | None:
    """What a checkpoint's weights are packed as, None for ordinary weights."""
    settings = _quantization_settings(config)
    if settings is None:
        return None
    method = settings.get("quant_method")
    if method is None and settings.get("load_in_4bit"):
        return "bitsandbytes_4bit"
    if method is None and settings.get("load_in_8bit"):
        return "bitsandbytes_8bit"
    return str(getattr(method, "value", method) or "an unnamed method")


def _quantization_settings(config: PretrainedConfig) -> Mapping[str, Any] | None:
    """The settings that a checkpoint was packed with, of the whole model or of its text part."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        settings = getattr(config.get_text_config(), "quantization_config", None)
    if settings is None or isinstance(settings, dict):
        return settings
    return dict(settings.to_dict())


def can_dequantize(method: str) -> bool:
    """Whether transformers can unpack the weights of a method while it loads them."""
    settings_class = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return (
        settings_class is not None and "dequantize" in inspect.signature(settings_class).parameters
    )


def dequantization_arguments(method: str | None) -> dict[str, object]:
    """Arguments with which `from_pretrained` unpacks the weights; none for ordinary weights.

    Args:
        method: What `quantization_method` returned.

    Raises:
        ModelError: If transformers cannot unpack the method.
    """
    if method is None:
        return {}
    if not can_dequantize(method):
        raise ModelError(
            f"transformers cannot unpack {method} weights; use a bfloat16 checkpoint of this model"
        )
    return {"quantization_config": AUTO_QUANTIZATION_CONFIG_MAPPING[method](dequantize=True)}


def check_quantization(method: str | None, dequantize: bool, bytes_unpacked: int) -> None:
    """Refuse packed weights before they load, unless they are to be unpacked and can be.

    Args:
        method: What `quantization_method` returned.
        dequantize: Whether unpacking was asked for.
        bytes_unpacked: What the weights take in bfloat16, for the message.

    Raises:
        ModelError: If the weights would stay packed.
    """
    if method is None:
        return
    if not can_dequantize(method):
        raise ModelError(
            f"its weights are packed as {method}, which cannot be trained or unpacked; "
            "use a bfloat16 checkpoint of this model"
        )
    if not dequantize:
        raise ModelError(
            f"its weights are packed as {method}, and packed experts cannot be trained; set "
            f"model.dequantize=true to unpack them, which takes {gibibytes(bytes_unpacked)} in bfloat16"
        )


def check_blocks(config: PretrainedConfig, folder: str | Path) -> None:
    """Refuse FP8 weights that end in the middle of a block.

    Each block of such a weight has a scale of its own. transformers divides the weight evenly by the number of
    scales, which is the size of a block only if the last one is whole; else it reads wrong weights, or none.

    Args:
        config: The checkpoint's config; one that is not packed in blocks is left alone.
        folder: Directory of the checkpoint.

    Raises:
        ModelError: Names the first such weight.
    """
    block = (_quantization_settings(config) or {}).get("weight_block_size")
    if block is None:
        return
    tensors = stored_tensors(folder)
    for name, tensor in sorted(tensors.items()):
        module = name.removesuffix(".weight")
        names = (f"{name}_scale_inv", f"{module}.scale", f"{module}.qscale_weight")
        scales = next((tensors[other] for other in names if other in tensors), None)
        if tensor.dtype != "F8_E4M3" or scales is None or len(scales.shape) < 2:
            continue
        rows, columns = tensor.shape[-2:]
        for size, side, count in zip((rows, columns), block, scales.shape[-2:], strict=True):
            if count > 1 and size != count * side:
                raise ModelError(
                    f"{folder} cannot be unpacked: its FP8 blocks of {block[0]} x {block[1]} do not divide {name} "
                    f"({rows} x {columns}), which transformers reads wrong; "
                    "use a bfloat16 checkpoint of this model"
                )


def forget_quantization(model: Any) -> None:
    """Make an unpacked model one that is saved as ordinary weights.

    transformers remembers on the model how each tensor was read, and saves by doing that backwards. It cannot pack
    again, so the steps that made tensors are replaced by those of the architecture's published layout; the names
    stay as they were read. Since 5.24 it forgets all steps itself, and saves in the published layout.

    Args:
        model: A model loaded with `dequantization_arguments`.
    """
    read_by = getattr(model, "_weight_conversions", None)
    if read_by is not None:
        names = [step for step in read_by if not isinstance(step, WeightConverter)]
        tensors = [
            step
            for step in get_model_conversion_mapping(model, add_legacy=False)
            if isinstance(step, WeightConverter)
        ]
        model._weight_conversions = names + tensors
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
