r"""Inner products of the gradients of single experts' weights, without the gradients.

The gradient of a loss with respect to one projection of one expert is a sum over the tokens that were routed to it,
`sum_t dy_t h_t'`, of what enters the projection and how the loss changes with what leaves it. So the inner product of
two texts' gradients is a sum over pairs of their tokens,

    <g_i, g_j> = sum_{t in i, u in j} <dy_t, dy_u> <h_t, h_u>,

and nothing as large as the weights is needed; where an expert has more tokens than that is worth, one expert's
gradient at a time is formed instead, which is exact as well. What is kept of a pass is small: what each layer's
experts read and the gradient of what they put out, `2 D` numbers a token. What lies between the two projections is
computed again, one expert after the other, in fp32.

Shape legend: R texts, T tokens, P token-expert pairs of one expert, L MoE layers, E experts, K top-k, D width of an
expert's input, I and O widths of what enters and leaves a projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steermoe.errors import RoutingError
from steermoe.moe.description import MoEDescription
from steermoe.moe.expert_sums import choice_weights
from steermoe.moe.layers import post_expert_norm
from steermoe.moe.routing import eager, experts_argument


@dataclass(slots=True)
class LayerTokens:
    """What one layer's experts were given, and what became of the loss.

    Attributes:
        hidden: `(T, D)`.
        ids: `(T, K)`.
        weights: `(T, K)`.
        gradient: `(T, D)` of the loss with respect to what the experts put out; None before the backward pass.
    """

    hidden: Tensor
    ids: Tensor
    weights: Tensor
    gradient: Tensor | None = None

    def select(self, tokens: Tensor) -> LayerTokens:
        """Some of the tokens, by a mask or by place.

        Raises:
            RoutingError: No backward pass came here.
        """
        if self.gradient is None:
            raise RoutingError("no gradient came back to a MoE layer; differentiate the pass first")
        chosen = tokens.to(self.hidden.device)
        return LayerTokens(
            self.hidden[chosen], self.ids[chosen], self.weights[chosen], self.gradient[chosen]
        )


@contextmanager
def captured_tokens(model: nn.Module, description: MoEDescription) -> Iterator[list[LayerTokens]]:
    """Within it, one forward and one backward pass leave here what every MoE layer saw of them.

    The backward pass ends at the experts of the first MoE layer, and no parameter gets a gradient.

    Args:
        model: The model; its parameters need no gradient, and are left as they are.
        description: Its MoE layers.

    Yields:
        One entry a layer, filled while the passes run.
    """
    found: list[LayerTokens] = []

    def before(_: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        ids = experts_argument(1, args, kwargs)
        weights = choice_weights(experts_argument(2, args, kwargs), ids)
        found.append(LayerTokens(hidden.detach().flatten(0, -2), ids.detach(), weights.detach()))

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        layer = found[-1]
        if not output.requires_grad:  # the first layer: here the graph begins
            output = output.detach().requires_grad_().clone()

        def keep(gradient: Tensor) -> None:
            layer.gradient = gradient.detach().flatten(0, -2)

        output.register_hook(keep)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return output

    with ExitStack() as stack:
        for layer in description.layers:
            experts = model.get_submodule(layer.experts_name)
            handle = experts.register_forward_pre_hook(eager(before), with_kwargs=True)
            stack.callback(handle.remove)
            stack.callback(experts.register_forward_hook(eager(after)).remove)
        yield found


def gradient_products(
    experts: Any, tokens: LayerTokens, text_of_token: Tensor, towards: Tensor
) -> Tensor:
    """How far each text's gradient points along the mean gradient of some texts, for every expert of a layer.

    Args:
        experts: The layer's experts module.
        tokens: What it saw of R texts.
        text_of_token: `(T,)` whose each token is.
        towards: `(R,)` true for the texts whose gradients are averaged.

    Returns:
        `(R, E)` in fp64: `<mean_{j in towards} g_j, g_i>` over all numbers that the expert has of its own.
    """
    num_texts, num_experts = len(towards), experts.down_proj.shape[0]
    found = torch.zeros(num_texts, num_experts, dtype=torch.float64)
    assert tokens.gradient is not None
    for expert in range(num_experts):
        token, choice = (tokens.ids == expert).nonzero(as_tuple=True)
        if not len(token):
            continue
        weight = tokens.weights[token, choice, None]
        text = text_of_token.to(token.device)[token]
        products = torch.zeros(len(token), dtype=torch.float64, device=token.device)
        is_of_mean = towards.to(token.device)[text]
        for read, changed in expert_factors(
            experts, expert, tokens.hidden[token], tokens.gradient[token], weight
        ):
            products += products_with_sum(read, changed, is_of_mean)
        of_texts = torch.zeros(num_texts, dtype=torch.float64, device=token.device)
        found[:, expert] = of_texts.index_add_(0, text, products).cpu()
    return found / max(1, int(towards.sum()))


def products_with_sum(read_PI: Tensor, changed_PO: Tensor, summed: Tensor) -> Tensor:
    """Inner product of every pair's own part of a gradient with the sum of some pairs' parts.

    Args:
        read_PI: What enters the projection.
        changed_PO: The loss's gradient with respect to what leaves it.
        summed: `(P,)` which parts are added up.

    Returns:
        `(P,)` in fp64.
    """
    read, changed = read_PI[summed], changed_PO[summed]
    num_summed, (width_in, width_out) = len(read), (read_PI.shape[1], changed_PO.shape[1])
    if num_summed * (width_in + width_out) < 2 * width_in * width_out:
        products = (read_PI @ read.T) * (changed_PO @ changed.T)  # Gram matrices
    else:
        products = (read_PI @ (read.T @ changed)) * changed_PO  # one expert's gradient
    return products.double().sum(dim=1)


def expert_factors(
    experts: Any, expert: int, hidden: Tensor, gradient: Tensor, weight: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Of each projection of one expert: what enters it, and the loss's gradient with respect to what leaves it.

    Args:
        experts: The layer's experts module.
        expert: Which of them.
        hidden: `(P, D)` what the expert reads.
        gradient: `(P, D)` of the loss with respect to what the module puts out for these tokens.
        weight: `(P, 1)` with which the expert's output is added.

    Returns:
        For the first and the second projection `(P, I)` and `(P, O)`. A bias is a weight of an input that is always 1,
        so a column of ones stands for it.
    """
    up_name = "gate_up_proj" if experts.has_gate else "up_proj"
    activation = experts._apply_gate if experts.has_gate else experts.act_fn
    norm = post_expert_norm(experts)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    up, down = (_Projection(experts, name, expert, exact) for name in (up_name, "down_proj"))
    hidden, gradient, weight = hidden.to(exact), gradient.to(exact), weight.to(exact)
    with torch.enable_grad():
        inner = up(hidden).requires_grad_()
        activated = activation(inner)
        put_out = down(activated)
        normed = put_out if norm is None else norm(put_out)
        of_inner, of_output = torch.autograd.grad(normed, (inner, put_out), gradient * weight)
    return [
        (up.inputs(hidden), of_inner.detach()),
        (down.inputs(activated.detach()), of_output.detach()),
    ]


class _Projection:
    """One projection of one expert, in a type of numbers of one's choice."""

    def __init__(self, experts: Any, name: str, expert: int, dtype: torch.dtype) -> None:
        weight = experts.get_parameter(name).detach()[expert].to(dtype)
        self.weight_IO = weight if experts.is_transposed else weight.T
        self.bias: Tensor | None = None
        if experts.has_bias:
            self.bias = experts.get_parameter(f"{name}_bias").detach()[expert].to(dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        out: Tensor = rows @ self.weight_IO
        if self.bias is not None:
            out = out + self.bias
        return out

    def inputs(self, rows: Tensor) -> Tensor:
        """What enters it: with a bias, also the 1 that it is a weight of."""
        if self.bias is None:
            return rows
        return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def joined(parts: Sequence[LayerTokens]) -> LayerTokens:
    """The tokens of several passes of one layer, one after the other."""
    gradients = [part.gradient for part in parts if part.gradient is not None]
    return LayerTokens(
        torch.cat([part.hidden for part in parts]),
        torch.cat([part.ids for part in parts]),
        torch.cat([part.weights for part in parts]),
        torch.cat(gradients),
    )
