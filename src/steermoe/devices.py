"""Where a model computes, and in which type. Importing this module does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from steermoe.errors import ConfigError, ModelError, on_one_line

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes of a weight.

    Attributes:
        stored: In the base's checkpoint once it is unpacked, and in the hardened one.
        in_memory: While the model computes.
    """

    stored: int
    in_memory: int


def pick_device(name: str, setting: str = "model.device") -> torch.device:
    """The device of that name; `auto` takes an accelerator where there is one.

    Args:
        name: As torch names devices, or `auto`.
        setting: What named it, for the message.

    Raises:
        ConfigError: The machine has no such device.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # torch has an error of its own for each kind of device
        raise ConfigError(
            f"{setting} = {name!r} cannot be used: {on_one_line(error)[:200]}"
        ) from None
    return device


def devices_here(name: str = "auto") -> tuple[int, int]:
    """How many devices of a kind this machine has, and the bytes of memory of the smallest.

    A processor is one device, with the machine's memory; so is any kind that does not tell.
    """
    import psutil
    import torch

    device = pick_device(name)
    if device.type != "cuda":
        return 1, psutil.virtual_memory().total
    count = torch.cuda.device_count()
    return count, min(torch.cuda.get_device_properties(i).total_memory for i in range(count))


def has_arithmetic(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device multiplies numbers of a type by instructions made for it.

    A processor that has none for half precision (x86 without AVX-512) multiplies matrices of bfloat16 a hundred times
    slower than those of float32.
    """
    import torch

    if device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return True
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def type_in_memory(
    named: str, stored: torch.dtype | None, device: torch.device
) -> torch.dtype | Literal["auto"]:
    """The type in which weights are loaded.

    Args:
        named: Of a `dtype` setting: a type's name, or `auto` for the checkpoint's own. Where the device has no
            arithmetic for that, auto means float32, which holds the same numbers.
        stored: The checkpoint's own, by its config; None where that does not say.
        device: Where the model is to compute.

    Raises:
        ModelError: The checkpoint's own is one that experts are never computed in.
    """
    import torch

    if named != "auto":
        found: torch.dtype = getattr(torch, named)
        return found
    if stored not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(
            f"the checkpoint's weights are of type {str(stored).removeprefix('torch.')}, in which experts cannot be "
            "computed: set model.dtype to float32 or bfloat16"
        )
    if stored is None or has_arithmetic(stored, device):
        return "auto"
    return torch.float32
