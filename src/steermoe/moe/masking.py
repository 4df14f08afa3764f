"""Route tokens over some experts only.

Shape legend: B samples, S tokens a sample, T = B * S tokens, L MoE layers, E experts, G groups, K top-k.

What a masked router does is defined by one sentence: it routes as always, over the allowed experts
only. A forbidden expert has logit minus infinity, so that it weighs nothing in a softmax or a sigmoid,
and it leaves the choice itself, whatever bias or group limit the router adds on its way to a top-k.

Routers are not written again here. The router of the model runs, and three of its operations are
intercepted: what yields the logits, the top-k, and a softmax over nothing. The gradient therefore is the
router's own. Where a layer allows fewer experts than top-k, the spare slots weigh exactly 0; where it
allows none, the layer is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steermoe.errors import ModelError, TrainingError
from steermoe.moe.description import MoEDescription, MoELayer
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.routers import LOGIT_FUNCTIONS, SPARE_SLOTS, num_classes, replaced_forward
from steermoe.moe.routing import eager, in_backward
from steermoe.records import BoolArray

_TOP_K = (torch.topk, Tensor.topk)
_SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)

_CHECKPOINT_FUNCTIONS = ("_gradient_checkpointing_func", "checkpoint_fn")
"""Where transformers, and torch's checkpoint wrapper, keep the function that checkpoints a layer."""


@contextmanager
def masked_experts(
    model: nn.Module,
    allowed: BoolArray | Tensor,
    rows: Sequence[bool] | BoolArray | Tensor | None = None,
    description: MoEDescription | None = None,
) -> Iterator[None]:
    """Route over the allowed experts only, in every forward pass inside the context.

    A pass that gradient checkpointing runs again, even after the context has ended, is masked as it was
    the first time. Passes outside the context are never masked. Where a token may use fewer experts than
    top-k, the slots that are left weigh nothing, and are recorded as `NO_EXPERT`.

    Args:
        model: The model; its weights are not touched.
        allowed: True where an expert may be chosen: `(L, E)` for all samples alike, or `(B, L, E)`.
            A layer that allows no expert is left as it is.
        rows: Which of the B samples of the batch are masked; all by default.
        description: The model's MoE layers, if known.

    Raises:
        ModelError: If a layer to be masked looks its experts up by token id.
        TrainingError: If the mask's shape does not fit the model.
    """
    description = find_moe_layers(model) if description is None else description
    mask = _ExpertMask(model, description, _allowed_by_layer(allowed, rows, description))
    with mask.applied():
        yield


@contextmanager
def router_noise_off(model: nn.Module, description: MoEDescription | None = None) -> Iterator[None]:
    """Keep routers from adding noise while the model trains: they choose as they do in evaluation.

    Mixtral, MiniMax and Phi-MoE multiply what the router reads by random numbers, and Phi-MoE samples
    its experts, whenever a module's `training` flag is set; the flag of those modules alone is cleared
    before each pass.

    Args:
        model: The model.
        description: Its MoE layers, if known.
    """
    description = find_moe_layers(model) if description is None else description
    with ExitStack() as stack:
        for layer in description.layers:
            modules = [model.get_submodule(layer.router_name)]
            block = model.get_submodule(layer.block_name)
            if any(name.endswith("jitter_noise") for name in vars(block)):
                modules.append(block)
            for module in modules:
                before = module.training
                stack.callback(setattr, module, "training", before)
                stack.callback(module.register_forward_pre_hook(_set_evaluating).remove)
        yield


def masks_of_samples(
    masks: Mapping[int, BoolArray], batch_idx: Sequence[int], default: BoolArray
) -> BoolArray:
    """The mask of each sample, chosen by the mixed batch that its prompt belongs to.

    Args:
        masks: Mask `(L, E)` of each batch.
        batch_idx: Batch of each of the B samples.
        default: Mask of samples whose batch has none.

    Returns:
        Masks `(B, L, E)`.
    """
    return np.stack([masks.get(index, default) for index in batch_idx])


def _set_evaluating(module: nn.Module, args: tuple[Any, ...]) -> None:
    module.training = False


def _allowed_by_layer(
    allowed: BoolArray | Tensor,
    rows: Sequence[bool] | BoolArray | Tensor | None,
    description: MoEDescription,
) -> list[Tensor]:
    """For each layer `(E,)`, or `(B, E)` where samples differ; true everywhere where nothing changes."""
    table = torch.as_tensor(allowed, dtype=torch.bool)
    expected = (description.num_layers, description.num_experts)
    if table.dim() not in (2, 3) or table.shape[-2:] != expected:
        raise TrainingError(
            f"an expert mask for this model has shape {expected}, or one such mask a sample, "
            f"not {tuple(table.shape)}"
        )
    table = table | ~table.any(dim=-1, keepdim=True)
    if rows is not None:
        masked_B = torch.as_tensor(rows, dtype=torch.bool, device=table.device)
        if table.dim() == 3 and masked_B.shape != table.shape[:1]:
            raise TrainingError(
                f"rows has {masked_B.numel()} samples, but there are masks for {table.shape[0]}"
            )
        if table.dim() == 3 or not bool(masked_B.all()):
            table = table | ~masked_B.view(-1, 1, 1)  # (B, L, E)
    return list(table.unbind(dim=-2))


class _ExpertMask:
    """One mask of one model: which experts each MoE layer may use, and how its modules are told.

    A recomputed pass must be masked exactly as its first run was, and backward may run inside this
    mask's context, after it, or inside that of another mask. So a pass whose first run is masked
    remembers its masks: the function that checkpoints it is wrapped, and the wrapper applies them
    again. While backward runs, a mask that is applied masks only the passes that remember it.
    """

    def __init__(
        self, model: nn.Module, description: MoEDescription, allowed: list[Tensor]
    ) -> None:
        self._model = model
        self._is_applied = False
        self._is_recomputing = False
        self._layers: list[tuple[MoELayer, nn.Module, nn.Module, Tensor]] = []
        for layer, allowed_E in zip(description.layers, allowed, strict=True):
            if bool(allowed_E.all()):
                continue
            if layer.is_hash_routed:
                raise ModelError(
                    f"layer {layer.index} looks its experts up by token id, so they cannot be masked; "
                    "leave them out of the mask"
                )
            router = model.get_submodule(layer.router_name)
            experts = model.get_submodule(layer.experts_name)
            device = next(router.parameters()).device
            self._layers.append((layer, router, experts, allowed_E.to(device)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Mask every forward pass inside, recomputations of other passes excepted.

        It is applied once: a recomputation inside the context finds it in place.
        """
        if self._is_applied:
            yield
            return
        with ExitStack() as stack:
            self._is_applied = True
            stack.callback(setattr, self, "_is_applied", False)
            for module in self._model.modules():
                for name in _CHECKPOINT_FUNCTIONS:
                    if callable(getattr(module, name, None)):
                        stack.enter_context(_replaced(module, name, self._remembered))
            for layer, router, experts, allowed in self._layers:
                classes = num_classes(router, layer.num_experts)
                wrapper = self._masked_router(allowed, layer.num_experts, classes)
                stack.enter_context(replaced_forward(router, wrapper))
                hook = experts.register_forward_pre_hook(self._zero_forbidden(allowed))
                stack.callback(hook.remove)
                stack.enter_context(_announced(experts, partial(_spare_slots, allowed)))
            yield

    def _remembered(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpointing function whose recomputations are masked as the first run is."""

        def masked_checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self._is_off():
                return checkpoint(function, *args, **kwargs)

            def run(*inputs: Any, **named_inputs: Any) -> Any:
                if not in_backward():
                    return function(*inputs, **named_inputs)
                with self._recomputing(), self.applied():
                    return function(*inputs, **named_inputs)

            return checkpoint(run, *args, **kwargs)

        return masked_checkpoint

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        before, self._is_recomputing = self._is_recomputing, True
        try:
            yield
        finally:
            self._is_recomputing = before

    def _is_off(self) -> bool:
        """Whether the pass that runs now is the recomputation of one that this mask was not part of."""
        return in_backward() and not self._is_recomputing

    def _masked_router(
        self, allowed: Tensor, num_experts: int, classes: int
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
            def masked_forward(*args: Any, **kwargs: Any) -> Any:
                if self._is_off():
                    return forward(*args, **kwargs)
                with _MaskedRouting(allowed, num_experts, classes):
                    return forward(*args, **kwargs)

            return eager(masked_forward)

        return wrap

    def _zero_forbidden(self, allowed: Tensor) -> Callable[..., Any]:
        """A pre-hook that holds whatever the router returned to the promise: forbidden weighs 0."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._is_off():
                return None
            hidden, index_TK, weight_TK, *rest = args
            weight_TK = weight_TK.masked_fill(_is_forbidden(allowed, index_TK), 0.0)
            return (hidden, index_TK, weight_TK, *rest)

        return eager(hook)


class _MaskedRouting(TorchFunctionMode):
    """While one router runs: forbidden experts have logit minus infinity and are never chosen."""

    def __init__(self, allowed: Tensor, num_experts: int, classes: int) -> None:
        super().__init__()
        self._num_experts = num_experts
        self._classes = classes
        self._allowed = allowed
        self._allowed_of_classes = F.pad(allowed, (0, classes - num_experts), value=True)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _TOP_K:
            return self._top_k(func, *args, **kwargs)
        if func in _SOFTMAX:
            return _softmax(func, *args, **kwargs)
        if func is Tensor.masked_fill:
            return self._masked_fill(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if func in LOGIT_FUNCTIONS and result.shape[-1] == self._classes:
            return result.masked_fill(~_expand(self._allowed_of_classes, result), -torch.inf)
        return result

    def _top_k(self, func: Callable[..., Any], scores: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Top-k of experts, or of the experts within each group."""
        is_grouped = scores.dim() == 3 and scores.shape[-2] * scores.shape[-1] == self._num_experts
        if is_grouped:
            flat = scores.reshape(-1, self._num_experts)
            allowed = _expand(self._allowed, flat).expand_as(flat).reshape(scores.shape)
        elif scores.shape[-1] == self._classes:
            allowed = _expand(self._allowed_of_classes, scores)
        elif scores.shape[-1] == self._num_experts:
            allowed = _expand(self._allowed, scores)
        else:
            return func(scores, *args, **kwargs)
        # Lowest but finite: spare slots go to forbidden experts, whose weight is 0, and not to allowed
        # ones that a group limit has put at minus infinity.
        lowest = torch.finfo(scores.dtype).min
        indices = func(scores.masked_fill(~allowed, lowest), *args, **kwargs).indices
        values = scores.gather(-1, indices)
        if is_grouped:
            # A group scores by its allowed experts, and not at all where it has none.
            chosen = allowed.expand_as(scores).gather(-1, indices)
            values = values.masked_fill(~chosen, 0.0)
            values = values.masked_fill(~chosen.any(dim=-1, keepdim=True), -torch.inf)
        return torch.return_types.topk((values, indices))

    def _masked_fill(
        self, func: Callable[..., Any], scores: Tensor, mask: Tensor, value: Any
    ) -> Tensor:
        """Put experts outside the best groups at minus infinity, for routers that put them at zero.

        Zero is low enough while the best groups hold top-k experts; fewer may be allowed there.
        """
        filled: Tensor = func(scores, mask, value)
        if scores.shape[-1] != self._num_experts or value != 0.0:
            return filled
        is_restricted = ~_expand(self._allowed, scores).all(dim=-1, keepdim=True)
        return filled.masked_fill(mask & is_restricted, -torch.inf)


def _softmax(func: Callable[..., Any], scores: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Softmax, 0 instead of NaN where nothing is left to choose from."""
    nothing = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return func(scores.masked_fill(nothing, 0.0), *args, **kwargs).masked_fill(nothing, 0.0)


def _expand(allowed: Tensor, like: Tensor) -> Tensor:
    """Broadcast `(E,)` or `(B, E)` to scores `(T, E)` or `(B, S, E)`, samples first."""
    if allowed.dim() == 1:
        return allowed
    samples, tokens = allowed.shape[0], like.shape[0]
    if tokens % samples:
        raise TrainingError(
            f"the mask has {samples} samples, but the pass has {tokens} tokens, which is no multiple"
        )
    allowed = allowed.repeat_interleave(tokens // samples, dim=0)
    return allowed if like.dim() == 2 else allowed.unsqueeze(1)


def _is_forbidden(allowed: Tensor, index_TK: Tensor) -> Tensor:
    """Which of the chosen experts `(T, K)` may not be chosen."""
    allowed_TE = _expand(allowed, index_TK).expand(*index_TK.shape[:-1], -1)
    return ~allowed_TE.gather(-1, index_TK)


def _spare_slots(allowed: Tensor, index_TK: Tensor) -> Tensor:
    """Which slots `(T, K)` were left without an expert.

    Forbidden experts fill them, or, where a router chooses one expert after the other, an expert that an
    earlier slot of the token holds.
    """
    same_TKK = index_TK.unsqueeze(-1) == index_TK.unsqueeze(-2)
    is_repeated = same_TKK.tril(diagonal=-1).any(dim=-1)
    return _is_forbidden(allowed, index_TK) | is_repeated


@contextmanager
def _announced(experts: nn.Module, is_spare: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Tell those who record what an experts module is given which of its slots are spare."""
    before = getattr(experts, SPARE_SLOTS, ())
    setattr(experts, SPARE_SLOTS, (*before, is_spare))
    try:
        yield
    finally:
        if before:
            setattr(experts, SPARE_SLOTS, before)
        else:
            delattr(experts, SPARE_SLOTS)


@contextmanager
def _replaced(
    module: nn.Module, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Wrap the function that a module keeps as an attribute."""
    before = getattr(module, name)
    setattr(module, name, wrap(before))
    try:
        yield
    finally:
        setattr(module, name, before)
