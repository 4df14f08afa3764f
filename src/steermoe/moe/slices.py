"""Training only some experts of fused tensors: attach, switch off, fold back, detach.

`attach_expert_slices` freezes a model and gives each affected layer a small trainable stack: fp32 masters of
the selected experts, computed in the weights' dtype (`trained_stack.py`, `split.py`). The fused tensors keep the
base model's weights, so the base model's logits are the same model with the stacks switched off: no second copy.

The masters are parameters of the model, named `<experts module>.trained_experts.<fused tensor>`, for
example `model.layers.3.mlp.experts.trained_experts.gate_up_proj`; along the first axis they hold the layer's
trained experts in ascending order. A trainer's checkpoints contain them. Before a model is exported they are
folded into the fused tensors and detached, and nothing of this is left in it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from steermoe.errors import ModelError, SelectionError, TrainingError
from steermoe.moe.description import MoEDescription
from steermoe.moe.distinct_tokens import DistinctTokens
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.sharded import assign, gathered
from steermoe.moe.trained_stack import (
    STACK_NAME,
    SWITCH_NAME,
    Switch,
    TrainedStack,
    fused_parameters,
    split_experts_forward,
)

ExpertId = tuple[int, int]
"""`(layer, expert)`; the layer is the index of the decoder layer."""


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
                weights = gathered(fused)
                trained = gathered(stack.get_parameter(name))
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
        return {name: gathered(parameter).detach() for name, parameter in self.named_parameters()}

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
