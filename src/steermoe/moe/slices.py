"""Training only some experts of fused tensors: attach, switch off, fold back, detach.

`attach_expert_slices` freezes a model and gives each affected layer a small trainable stack: fp32 masters of
the selected experts, computed in the weights' dtype (`split.py`). The fused tensors keep the base model's
weights, so the base model's logits are the same model with the stacks switched off: no second copy.

The masters are parameters of the model, named `<experts module>.trained_experts.<fused tensor>`, for
example `model.layers.3.mlp.experts.trained_experts.gate_up_proj`; along the first axis they hold the layer's
trained experts in ascending order. A trainer's checkpoints contain them. Before a model is exported they are
folded into the fused tensors and detached, and nothing of this is left in it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from steermoe.errors import ModelError, SelectionError, TrainingError
from steermoe.moe.distinct_tokens import DistinctTokens
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.layers import MoEDescription, find_moe_layers, post_expert_norm
from steermoe.moe.split import Layout, Plan, split_experts

ExpertId = tuple[int, int]
"""`(layer, expert)`; the layer is the index of the decoder layer."""

CHOICE_BIAS = "e_score_correction_bias"
"""How the name of a bias ends that only chooses experts: a parameter in some architectures, a buffer in most."""

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


class ExpertSlices:
    """The trainable experts of a model. Made by `attach_expert_slices`.

    Attributes:
        experts: The trained `(layer, expert)` pairs, ascending.
        num_parameters: How many numbers train.
    """

    def __init__(
        self, model: nn.Module, description: MoEDescription, selected: Mapping[int, list[int]]
    ) -> None:
        """Use `attach_expert_slices`: it checks what is selected."""
        self.experts: list[ExpertId] = [
            (i, expert) for i, ids in selected.items() for expert in ids
        ]
        self._switch = Switch()
        self._overridden: list[nn.Module] = []
        self._stacks: dict[str, tuple[nn.Module, TrainedStack]] = {}
        self._formerly_trainable = [p for p in model.parameters() if p.requires_grad]
        model.requires_grad_(False)
        for layer in description.layers:
            # Below the lowest trained layer nothing is differentiated and the stock forward is as good.
            if layer.index < min(selected):
                continue
            module = model.get_submodule(layer.experts_name)
            if layer.index in selected:
                stack = TrainedStack(module, selected[layer.index])
                module.add_module(STACK_NAME, stack)
                self._stacks[layer.experts_name] = (module, stack)
            setattr(module, SWITCH_NAME, self._switch)
            # The instance's own forward, not a registered implementation: the config stays as it is,
            # and switched off a module runs what transformers would (which it changes in decoding).
            # A compiled model calls it uncompiled: where rows go depends on the data.
            forward = torch.compiler.disable(split_experts_forward)  # type: ignore[no-untyped-call]
            module.forward = types.MethodType(forward, module)
            self._overridden.append(module)
        if self._overridden[0].get_parameter("down_proj").device.type == "cpu":
            self._switch.gives_memory_back = self._overridden[len(self._overridden) * 3 // 4]
        self.num_parameters = sum(parameter.numel() for parameter in self.parameters())

    @property
    def enabled(self) -> bool:
        """Whether forward passes use the trained experts; if not, they are the base model's."""
        return self._switch.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._switch.enabled = value

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within it, the model is the base model, run by the stock experts implementation."""
        before = self.enabled
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = before

    @contextmanager
    def computing(self, distinct: DistinctTokens | None) -> Iterator[None]:
        """Within it, the experts compute only some tokens of every pass, and those stand in for the others.

        For passes over the very batch that `distinct` was made for, and the backward passes that run them again. None
        computes all tokens. Switched off, the model computes all of them anyway.
        """
        self._switch.distinct = distinct
        try:
            yield
        finally:
            self._switch.distinct = None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The fp32 masters, by their name in the model."""
        for name, (_, stack) in self._stacks.items():
            yield from stack.named_parameters(prefix=f"{name}.{STACK_NAME}")

    def parameters(self) -> Iterator[nn.Parameter]:
        """The fp32 masters."""
        return (parameter for _, parameter in self.named_parameters())

    def step_during_backward(
        self, make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    ) -> list[torch.optim.Optimizer]:
        """Have each master stepped, and its gradient freed, as soon as that gradient is complete.

        Then the gradients of all masters never exist at once. Only for steps of one backward pass:
        nothing accumulates, and there is no norm of the whole gradient to clip.

        Args:
            make_optimizer: Called once for each master.

        Returns:
            The optimizers, one a master in the order of `parameters`, for a scheduler or a checkpoint.

        Raises:
            TrainingError: If several processes train copies of the masters (DistributedDataParallel), here
                or in the first backward pass: gradients are averaged after they are complete, so that each
                copy would step on its own. Masters that `fully_shard` has sharded are no copies.
        """
        optimizers = []
        for parameter in self.parameters():
            _refuse_copies(parameter)
            optimizer = make_optimizer([parameter])

            def step(master: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                _refuse_copies(master)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            parameter.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]  # torch
            optimizers.append(optimizer)
        return optimizers

    @torch.no_grad()
    def fold(self, kept_change: float = 1.0) -> None:
        """Write the trained experts into the fused tensors, rounded to the weights' dtype.

        After it the base model's weights are gone: switched off, the model is the hardened one too.

        Args:
            kept_change: What becomes of an expert is `base + kept_change * (trained - base)`: weights between
                the two models often trade the gain of training for what it cost better than either (Wortsman
                et al. 2022, arXiv:2109.01903).
        """
        for module, stack in self._stacks.values():
            for name, fused in fused_parameters(module).items():
                weights = _whole(fused)
                trained = _whole(stack.get_parameter(name))
                if kept_change != 1:
                    trained = weights[stack.expert_ids].to(trained.dtype).lerp(trained, kept_change)
                weights[stack.expert_ids] = trained.to(weights.dtype)
                assign(fused, weights)

    def detach(self) -> None:
        """Take the stacks out and make the model what it was before; does not fold."""
        for module in self._overridden:
            del module.forward
            delattr(module, SWITCH_NAME)
        for module, _ in self._stacks.values():
            delattr(module, STACK_NAME)
        for parameter in self._formerly_trainable:
            parameter.requires_grad_(True)
        self._overridden = []
        self._stacks = {}

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """The masters alone, by their name in the model; gathered if they are sharded."""
        return {name: _whole(parameter).detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy masters in; names and shapes must be exactly those of `state_dict`.

        Raises:
            ModelError: If a name is missing or unknown, or a shape differs; nothing is copied then.
        """
        masters = dict(self.named_parameters())
        for name in sorted(masters.keys() | state.keys()):
            if name not in masters or name not in state:
                side = "missing from" if name in masters else "unknown to"
                raise ModelError(
                    f"{name} is {side} the saved expert slices; attach the experts that were trained"
                )
            if masters[name].shape != state[name].shape:
                raise ModelError(
                    f"{name} has shape {tuple(masters[name].shape)} here and "
                    f"{tuple(state[name].shape)} as saved; attach the experts that were trained"
                )
        for name, master in masters.items():
            assign(master, state[name].to(master.device, master.dtype))


def attach_expert_slices(model: nn.Module, experts: Iterable[ExpertId]) -> ExpertSlices:
    """Freeze a model and make the selected experts, and nothing else, trainable.

    Attach before wrapping in DDP or `fully_shard`, and before making an optimizer.

    Args:
        model: A transformers model whose experts use the common fused interface.
        experts: `(decoder layer, expert id)` pairs.

    Returns:
        The handle that switches, folds and detaches.

    Raises:
        ModelError: If the model has no fused experts, is quantised, offloaded or expert-parallel, or
            already has slices.
        SelectionError: If a pair does not exist or is named twice, or there is none.
    """
    description = find_moe_layers(model)
    selected = _check_selection(description, experts)
    for layer in description.layers:
        _check_trainable(layer.experts_name, model.get_submodule(layer.experts_name))
    slices = ExpertSlices(model, description, selected)
    asked = len(slices.experts) * description.parameters_per_expert
    unfrozen = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if unfrozen != asked:
        slices.detach()
        raise ModelError(
            f"{unfrozen} numbers would train, but the {len(slices.experts)} selected experts have "
            f"{asked}; the layout of {description.model_type} is not understood"
        )
    return slices


def train_routers_only(model: nn.Module) -> int:
    """Freeze all but the routers, a baseline; returns how many numbers train.

    Raises:
        ModelError: If the model has no routed experts.
    """
    routers = [model.get_submodule(x.router_name) for x in find_moe_layers(model).layers]
    model.requires_grad_(False)
    return _unfreeze(named for router in routers for named in router.named_parameters())


def train_everything(model: nn.Module) -> int:
    """Make every parameter trainable, a baseline; returns how many numbers train."""
    return _unfreeze(model.named_parameters())


def _unfreeze(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> int:
    """Make parameters trainable but for the biases that only choose experts, which no gradient reaches."""
    chosen = [p for name, p in named_parameters if not name.endswith(CHOICE_BIAS)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return sum(parameter.numel() for parameter in chosen)


def _check_selection(
    description: MoEDescription, experts: Iterable[ExpertId]
) -> dict[int, list[int]]:
    """The selected expert ids of each layer, ascending; refuses what the model does not have."""
    selected: dict[int, list[int]] = {}
    for layer, expert in experts:
        if layer not in description.layer_indices:
            raise SelectionError(
                f"decoder layer {layer} has no routed experts; "
                f"choose among layers {list(description.layer_indices)}"
            )
        if not 0 <= expert < description.num_experts:
            raise SelectionError(
                f"layer {layer} has no expert {expert}; "
                f"choose an expert from 0 to {description.num_experts - 1}"
            )
        if expert in selected.setdefault(int(layer), []):
            raise SelectionError(
                f"expert ({layer}, {expert}) is selected twice; name each expert once"
            )
        selected[int(layer)].append(int(expert))
    if not selected:
        raise SelectionError("no experts are selected, so nothing would train; select at least one")
    return {layer: sorted(ids) for layer, ids in sorted(selected.items())}


def _check_trainable(name: str, module: nn.Module) -> None:
    """Refuse experts that are packed, offloaded, sharded or already trained here."""
    if hasattr(module, SWITCH_NAME):
        raise ModelError("expert slices are already attached; detach them first")
    for parameter_name, parameter in module.named_parameters(recurse=False):
        what = f"{name}.{parameter_name}"
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            raise ModelError(
                f"{what} is quantised ({parameter.dtype}) and cannot be trained; "
                "load the model dequantised"
            )
        if parameter.is_meta:
            raise ModelError(f"{what} is not in memory; load the model without offloading")
        if isinstance(parameter, DTensor):
            raise ModelError(f"{what} is sharded already; attach the expert slices before sharding")


def _refuse_copies(master: Tensor) -> None:
    """Refuse a master that is not sharded where several processes train."""
    if isinstance(master, DTensor) or not dist.is_available() or not dist.is_initialized():
        return
    if dist.get_world_size() > 1:
        raise TrainingError(
            f"step_during_backward does not average gradients, and the copies of {dist.get_world_size()} processes "
            "would drift apart; step an optimizer after the backward pass"
        )


def _whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered from all ranks if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process: all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assign(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a parameter that may be sharded."""
    if isinstance(target, DTensor):
        target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))
    elif target is not whole:
        target.copy_(whole)
