"""The trained experts of one layer: fp32 masters beside the fused tensors, and the forward pass over both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steermoe.moe.distinct_tokens import DistinctTokens
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.layers import post_expert_norm
from steermoe.moe.split import Layout, Plan, split_experts

STACK_NAME = "trained_experts"
"""Attribute of an experts module that holds its `TrainedStack`."""

SWITCH_NAME = "expert_slices_switch"
"""Attribute of an experts module that holds the model's `Switch`."""


@dataclass(slots=True)
class Switch:
    """Whether forward passes use the trained experts; one object, shared by the model's layers.

    Attributes:
        enabled: Whether they do.
        gives_memory_back: The experts module before which freed memory is given back, three quarters up the model.
        distinct: Which tokens the experts compute, where some stand in for others.
    """

    enabled: bool = True
    gives_memory_back: nn.Module | None = None
    distinct: DistinctTokens | None = None


class TrainedStack(nn.Module):
    """The experts of one layer that train: fp32 masters `(N, ...)`, named as the fused tensors are.

    Attributes:
        expert_ids: `(N,)` ascending ids of the trained experts.
        group_of_expert: `(E,)` where the split execution computes each expert: in group `expert` if it is
            frozen, in group `E + row` if it is a row of this stack.
    """

    expert_ids: Tensor
    group_of_expert: Tensor

    def __init__(self, experts: nn.Module, expert_ids: list[int]) -> None:
        super().__init__()
        weight = experts.get_parameter("down_proj")
        num_experts = weight.shape[0]
        ids = torch.tensor(sorted(expert_ids), dtype=torch.long, device=weight.device)
        groups = torch.arange(num_experts, device=weight.device)
        groups[ids] = num_experts + torch.arange(len(ids), device=weight.device)
        self.register_buffer("expert_ids", ids, persistent=False)
        self.register_buffer("group_of_expert", groups, persistent=False)
        for name, fused in fused_parameters(experts).items():
            master = fused.detach()[ids].to(torch.float32, copy=True)
            self.register_parameter(name, nn.Parameter(master))


def fused_parameters(experts: Any) -> dict[str, nn.Parameter]:
    """The per-expert parameters of one experts module, by name; the first axis is the expert."""
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    names = [up, "down_proj"]
    if experts.has_bias:
        names += [up + "_bias", "down_proj_bias"]
    return {name: experts.get_parameter(name) for name in names}


def split_experts_forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts' output `(T, D)`, with the trained experts taken from their own stack.

    Stands in for the forward pass of a fused experts module. The stock one still runs where it does as
    well: switched off, and in layers without trained experts when nothing is differentiated.
    """
    stack: TrainedStack | None = getattr(experts, STACK_NAME, None)
    differentiated = torch.is_grad_enabled() and hidden_states.requires_grad
    switch: Switch = getattr(experts, SWITCH_NAME)
    if not switch.enabled or (stack is None and not differentiated):
        stock: Tensor = type(experts).forward(experts, hidden_states, top_k_index, top_k_weights)
        return stock
    if differentiated and experts is switch.gives_memory_back:
        give_back_freed_memory()
    if switch.distinct is None:
        return _both_stacks(experts, stack, hidden_states, top_k_index, top_k_weights)
    both_stacks = partial(_both_stacks, experts, stack)
    return switch.distinct.through(both_stacks, hidden_states, top_k_index, top_k_weights)


def _both_stacks(
    experts: Any,
    stack: TrainedStack | None,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """The output of the frozen experts and of the trained ones, if the layer has any."""
    fused = fused_parameters(experts)
    num_experts = fused["down_proj"].shape[0]
    masters: list[Tensor] = []
    if stack is None:
        plan = Plan.make(top_k_index, num_experts, 0)
    else:
        plan = Plan.make(stack.group_of_expert[top_k_index], num_experts, len(stack.expert_ids))
        masters = [stack.get_parameter(name) for name in fused]
    layout = Layout(
        has_bias=experts.has_bias,
        is_transposed=experts.is_transposed,
        activation=experts._apply_gate if experts.has_gate else experts.act_fn,
        post_norm=post_expert_norm(experts),
    )
    return split_experts(layout, plan, hidden_states, top_k_weights, list(fused.values()), masters)
