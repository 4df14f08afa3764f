"""Nothing that is not finite passes: weights when they are loaded, logits whenever they are read.

A NaN is no error to torch: the largest of NaN logits is token 0, and a run would go on with replies of that alone.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from steermoe.errors import ModelError


def first_not_finite(model: nn.Module) -> str:
    """The name of the first parameter, or buffer that is stored, with a NaN or an infinite number; empty if none is."""
    for name, parameter in model.named_parameters():
        if not is_finite(parameter.detach()):
            return name
    stored = model.state_dict().keys()  # a mask that is made anew may hold infinite numbers
    for name, buffer in model.named_buffers():
        if name in stored and not is_finite(buffer):
            return name
    return ""


def check_weights(model: nn.Module, source: str) -> None:
    """Check the weights of a model that was just loaded.

    Args:
        model: The model.
        source: What to call it.

    Raises:
        ModelError: Some are not finite; names the first parameter.
    """
    if name := first_not_finite(model):
        raise ModelError(
            f"{name} of {source} holds numbers that are not finite, so no reply of this model means anything: fetch "
            "its files again, and where model.dtype = 'float16' is set, take bfloat16 or float32"
        )


def check_logits(logits: Tensor, model: Any) -> None:
    """Check what a model computed: at each position `(..., V)`, whatever a single token's logit of -inf may say.

    Raises:
        ModelError: There is a NaN, or the largest logit is not finite.
    """
    if logits.numel() and not is_finite(logits.amax(dim=-1)):
        dtype = str(model.dtype).removeprefix("torch.")
        way_out = (
            "see that its config.json and its weights are as they were published"
            if dtype == "float32"
            else "set model.dtype to bfloat16 or float32"
        )
        raise ModelError(
            f"the model computes numbers that are not finite in {dtype}, so its replies mean nothing: {way_out}"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all entries of a tensor are."""
    # A NaN wins the smallest and the largest; a mask of the tensor's size would take a quarter of its memory again.
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()
    return math.isfinite(float(low)) and math.isfinite(float(high))
