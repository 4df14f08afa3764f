"""What all routers have in common: a matrix product that gives one logit for each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PRODUCTS = (F.linear, torch.mm)
"""What yields router logits."""

LOGIT_FUNCTIONS = (*PRODUCTS, torch.tanh)
"""What yields router logits, and the soft cap that Laguna puts on them."""

SPARE_SLOTS = "spare_slots"
"""Attribute of an experts module that expert masks are applied to: of each mask, a function from the chosen ids
`(T, K)` to which of them are spare slots."""


def num_classes(router: nn.Module, num_experts: int) -> int:
    """How many logits a router computes: E, and a few more where it also scores shared experts.

    Inkling does, and puts them after the routed ones.
    """
    weight = getattr(router, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        return int(weight.shape[0])
    return num_experts


@contextmanager
def replaced_forward(
    module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Wrap a module's forward for as long as the context lasts."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = wrap(module.forward)
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


class CaptureLogits(TorchFunctionMode):
    """While one router runs: keeps its logits as the matrix product gives them.

    Attributes:
        logits: `(T, E)` in fp32 without gradient; None if no logits were seen.
    """

    def __init__(self, num_experts: int, classes: int) -> None:
        super().__init__()
        self.logits: Tensor | None = None
        self._num_experts = num_experts
        self._classes = classes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS and result.shape[-1] == self._classes:
            flat = result.detach().reshape(-1, self._classes)
            self.logits = flat[:, : self._num_experts].float()
        return result
