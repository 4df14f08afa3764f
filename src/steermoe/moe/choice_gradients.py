"""How a figure of a text would change if experts were weighted a little more: weight times gradient of every choice.

The weights `g` with which a token's experts are added up are an argument of the experts module. A pre-hook puts leaves
that require a gradient in their place, so one forward and one backward pass give `g dJ/dg` of every token, layer and
choice. No weight has a gradient, no kernel is touched, and what the routers would choose otherwise is left out: it is
the effect of an expert's own output (arXiv:1905.10650 and 1906.10711 for neurons; attribution patching).

Shape legend: T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steermoe.moe.description import MoEDescription
from steermoe.moe.routing import eager, experts_argument, with_argument


@dataclass(slots=True)
class Choices:
    """What one pass chose.

    Attributes:
        ids: `(T, K)` of each layer: the chosen experts.
        weights: `(T, K)` of each layer: their weights, leaves that require a gradient.
    """

    ids: list[Tensor]
    weights: list[Tensor]

    def products(self, figure: Tensor) -> tuple[Tensor, Tensor]:
        """Go back through the pass.

        Args:
            figure: What is differentiated, one number.

        Returns:
            The chosen experts `(T, L, K)`, and of each choice its weight times the figure's gradient, in fp32 or more.
        """
        gradients = torch.autograd.grad(figure, self.weights)
        device = self.ids[0].device
        products = [
            (weights.detach() * gradient).to(device)
            for weights, gradient in zip(self.weights, gradients, strict=True)
        ]
        ids = torch.stack([ids.to(device) for ids in self.ids], dim=1)
        exact = torch.promote_types(products[0].dtype, torch.float32)
        return ids, torch.stack(products, dim=1).to(exact)


@contextmanager
def differentiable_choices(model: nn.Module, description: MoEDescription) -> Iterator[Choices]:
    """Within it, one forward pass is made whose routing weights can be differentiated.

    Args:
        model: The model; its parameters need no gradient, and are left as they are.
        description: Its MoE layers.
    """
    found = Choices([], [])

    def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Any:
        weights = experts_argument(2, args, kwargs).detach().requires_grad_()
        found.ids.append(experts_argument(1, args, kwargs))
        found.weights.append(weights)
        return with_argument(2, weights, args, kwargs)

    with ExitStack() as stack:
        for layer in description.layers:
            experts = model.get_submodule(layer.experts_name)
            handle = experts.register_forward_pre_hook(eager(hook), with_kwargs=True)
            stack.callback(handle.remove)
        yield found
