"""Freed memory, given back to the operating system.

Layer after layer, training on the processor allocates tensors of some megabytes and frees most of them. glibc keeps
such blocks on its heap, and one that was freed seldom fits what is asked for next, because every block is aligned anew.
So a process grows within a step and from step to step: on the embedded model from 6 GiB to 9 in forty steps.
"""

from __future__ import annotations

import ctypes
import sys

import torch

LIMIT = 2 * 2**30
"""Bytes that are freed between two trims. What is given back must be mapped again when it is needed: a trim in every
step costs up to a tenth of it, one in every fourth step a few per cent."""

_freed_since = 0


def give_back_freed_memory() -> None:
    """Give back what was freed; nothing happens where the allocator is not glibc's."""
    global _freed_since
    _freed_since = 0
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def note_freed(num_bytes: int, device: torch.device) -> None:
    """Count what a layer's pass allocates and frees, and give back what earlier ones freed when it is much.

    Args:
        num_bytes: About how much; what lies on an accelerator does not count.
        device: Where.
    """
    global _freed_since
    if device.type != "cpu":
        return
    _freed_since += num_bytes
    if _freed_since >= LIMIT:
        give_back_freed_memory()
