"""Freed memory, given back to the operating system.

Layer after layer, training on the processor allocates tensors of some megabytes and frees most of them. glibc keeps
such blocks on its heap, and one that was freed seldom fits what is asked for next, because every block is aligned anew.
So a process grows within a step and from step to step: on the embedded model from 6 GiB to 9 in forty steps.

What is given back must be mapped again when it is needed. The time to do it is late in a forward pass, when most of the
heap is in use: after a step nearly all of it is free, and mapping that again costs a tenth of the next step.
"""

from __future__ import annotations

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Give back what was freed; nothing happens where the allocator is not glibc's."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
