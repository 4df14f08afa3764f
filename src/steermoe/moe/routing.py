"""Record which experts the routers of a model choose, while the model runs.

Shape legend: N responses, T tokens, L MoE layers, E experts, K top-k.

A forward pre-hook on each fused experts module sees the very indices that the experts are about to use,
in `generate` and in a plain forward alike. Nothing is computed again and, unless they are asked for, no
logits are kept. `RoutingRecorder` keeps references to the small index tensors: a run stores them, because
every later figure can be worked out from them. `RoutingCounter` keeps nothing but counts, which it adds up
on the device, in integers: it is for more tokens than anybody wants to store.

A pass that gradient checkpointing runs again during the backward pass is the same pass, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from steermoe.errors import RoutingError
from steermoe.moe.description import MoEDescription
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.routers import SPARE_SLOTS, CaptureLogits, num_classes, replaced_forward
from steermoe.records import NO_EXPERT

P = ParamSpec("P")
R = TypeVar("R")

NUM_SEGMENTS = 2
"""Prompt and generation, in this order."""

_ARGUMENT_NAMES = {1: ("top_k_index", "router_indices"), 2: ("top_k_weights", "routing_weights")}
"""What the experts' second and third argument are called when a block passes them by name."""


def experts_argument(place: int, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """What an experts module is given: the chosen experts `(T, K)` (place 1), or their weights (place 2)."""
    if len(args) > place:
        return args[place]
    return next(kwargs[name] for name in _ARGUMENT_NAMES[place] if name in kwargs)


def with_argument(
    place: int, value: Tensor, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], Mapping[str, Tensor]]:
    """What an experts module is given, with another value in that place."""
    if len(args) > place:
        return (*args[:place], value, *args[place + 1 :]), kwargs
    name = next(name for name in _ARGUMENT_NAMES[place] if name in kwargs)
    return args, {**kwargs, name: value}


def in_backward() -> bool:
    """Whether autograd's backward pass is running: a forward pass seen then is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function, never compiled: a compiled pass breaks where it is called.

    Compiled code cannot tell a recomputation from a first pass, nor hand a tensor to a list safely.
    """
    uncompiled: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # untyped in torch
    return uncompiled


class ExpertsWatcher:
    """Calls `_on_layer(position, top_k_index, weights)` whenever a MoE layer runs, backward passes excepted."""

    def __init__(self, model: nn.Module, description: MoEDescription | None = None) -> None:
        self.description = find_moe_layers(model) if description is None else description
        self._model = model
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for position, layer in enumerate(self.description.layers):
            experts = self._model.get_submodule(layer.experts_name)
            handle = experts.register_forward_pre_hook(self._hook(position), with_kwargs=True)
            self._stack.callback(handle.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _hook(
        self, position: int
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Mapping[str, Tensor]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            if in_backward():
                return
            top_k_index = experts_argument(1, args, kwargs).detach()
            weights = experts_argument(2, args, kwargs).detach()
            self._on_layer(position, _without_spare_slots(module, top_k_index), weights)

        return eager(hook)

    def _on_layer(self, position: int, top_k_index: Tensor, weights: Tensor) -> None:
        raise NotImplementedError


def _without_spare_slots(experts: nn.Module, index_TK: Tensor) -> Tensor:
    """The chosen experts, `NO_EXPERT` where an expert mask left a slot without one."""
    spare = [is_spare(index_TK) for is_spare in getattr(experts, SPARE_SLOTS, ())]
    if not spare:
        return index_TK
    return index_TK.masked_fill(torch.stack(spare).any(dim=0), NO_EXPERT)


class RoutingRecorder(ExpertsWatcher):
    """Keeps the routed experts of every forward pass that runs inside it.

        with RoutingRecorder(model) as recorder:
            model.generate(...)
        prefill, *steps = recorder.take()    # (B * P, L, K), then (B, L, K) for each decode step

    Tokens are in the order in which the model was fed, batch first, padding included: reshape a pass to
    `(B, S, L, K)` and drop the padding. Ids are int64, on the model's device. Under an expert mask, a slot
    for which a token had no expert left holds `NO_EXPERT`.

    Args:
        model: The model to watch.
        description: Its MoE layers, if known.
        router_logits: Whether to keep the routers' logits too, in fp32: E numbers a token and layer.
    """

    def __init__(
        self,
        model: nn.Module,
        description: MoEDescription | None = None,
        router_logits: bool = False,
    ) -> None:
        super().__init__(model, description)
        self._keeps_logits = router_logits
        self._passes: list[list[Tensor]] = []
        self._logits: list[list[Tensor]] = []

    def __enter__(self) -> Self:
        super().__enter__()
        if self._keeps_logits:
            for layer in self.description.layers:
                router = self._model.get_submodule(layer.router_name)
                classes = num_classes(router, layer.num_experts)
                wrapper = self._capturing(layer.num_experts, classes)
                self._stack.enter_context(replaced_forward(router, wrapper))
        return self

    @property
    def passes(self) -> list[Tensor]:
        """Routed experts `(T, L, K)` of each pass since the last `take`, in order.

        Raises:
            RoutingError: If a pass did not reach every MoE layer.
        """
        return self._stacked(self._passes)

    @property
    def logits(self) -> list[Tensor]:
        """Router logits `(T, L, E)` of each pass since the last `take`: the router's matrix product.

        Soft cap, scaling, softmax and sigmoid come after it, and so does a bias, but for one inside the product.

        Raises:
            RoutingError: If a pass did not reach every MoE layer.
        """
        return self._stacked(self._logits)

    def take(self) -> list[Tensor]:
        """Like `passes`, and forget them and their logits."""
        passes = self.passes
        self._passes.clear()
        self._logits.clear()
        return passes

    def _stacked(self, passes: list[list[Tensor]]) -> list[Tensor]:
        expected = self.description.num_layers
        for layers in passes:
            if len(layers) != expected:
                raise RoutingError(
                    f"a forward pass reached {len(layers)} of {expected} MoE layers; "
                    "record whole passes only"
                )
        return [torch.stack(layers, dim=1) for layers in passes]

    def _on_layer(self, position: int, top_k_index: Tensor, weights: Tensor) -> None:
        if position == 0:
            self._passes.append([])
        # A captured CUDA graph writes its next pass over the memory of this one.
        self._passes[-1].append(top_k_index.clone() if top_k_index.is_cuda else top_k_index)

    def _capturing(
        self, num_experts: int, classes: int
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
            def capturing_forward(*args: Any, **kwargs: Any) -> Any:
                if in_backward():
                    return forward(*args, **kwargs)
                with CaptureLogits(num_experts, classes) as captured:
                    result = forward(*args, **kwargs)
                if captured.logits is None:
                    raise RoutingError("a router computed no logits that could be recorded")
                if not self._logits or len(self._logits[-1]) == self.description.num_layers:
                    self._logits.append([])
                self._logits[-1].append(captured.logits)
                return result

            return eager(capturing_forward)

        return wrap


class PerResponseWatcher(ExpertsWatcher):
    """Is told whose tokens each pass has.

    Args:
        model: The model to watch.
        description: Its MoE layers, if known.
        device: Where it adds up; the device of the first experts tensor by default.
    """

    def __init__(
        self,
        model: nn.Module,
        description: MoEDescription | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(model, description)
        if device is None:
            first = model.get_submodule(self.description.layers[0].experts_name)
            device = next(first.parameters()).device
        self._device = torch.device(device)
        self._row: Tensor | None = None
        self._valid: Tensor | None = None

    @contextmanager
    def tokens(self, response: Tensor, segment: Tensor, valid: Tensor) -> Iterator[None]:
        """Say whose tokens each pass inside the context sees.

        Args:
            response: Response of each token, below N; any shape with as many elements as tokens.
            segment: Segment of each token, 0 for the prompt and 1 for the generation.
            valid: False for tokens that do not count, padding above all.
        """
        self._announce(response, segment, valid)
        try:
            yield
        finally:
            self._row = self._valid = None

    @contextmanager
    def generation(
        self,
        attention_mask: Tensor,
        stop_token_ids: Sequence[int],
        response: Tensor | None = None,
    ) -> Iterator[None]:
        """Say so of the passes of one `generate`: prompts, then one token of each reply at a time.

        As everywhere, G generated tokens have G - 1 rows: what is fed once a reply has ended, its last token
        and the padding behind it, does not count.

        Args:
            attention_mask: `(B, P)`, false for the tokens of the prompts that do not count, their padding above all.
            stop_token_ids: Tokens that end a reply.
            response: Response of each prompt `(B,)`; the first B by default.

        Raises:
            RoutingError: On a pass that feeds several tokens of a reply at once.
        """
        passes = _PassesOfGenerate(attention_mask, stop_token_ids)
        of_prompt = torch.arange(len(attention_mask)) if response is None else response

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            fed_BS = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            segment, valid_BS = passes.next(fed_BS)
            self._announce(
                of_prompt.unsqueeze(1).expand(valid_BS.shape),
                torch.full(valid_BS.shape, segment),
                valid_BS,
            )

        handle = self._model.register_forward_pre_hook(eager(hook), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._row = self._valid = None

    def _announce(self, response: Tensor, segment: Tensor, valid: Tensor) -> None:
        row = response.to(self._device).flatten().long() * NUM_SEGMENTS
        self._row = row + segment.to(self._device).flatten().long()
        self._valid = valid.to(self._device).flatten().bool()

    def _announced(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Response and segment of each token, `2 r + s`, and whether it counts; two tensors `(T,)`.

        Raises:
            RoutingError: Nobody said so, or of another number of tokens.
        """
        if self._row is None or self._valid is None:
            raise RoutingError("a pass ran while counting, but nobody said whose tokens it has")
        if num_tokens != self._row.shape[0]:
            raise RoutingError(
                f"a pass has {num_tokens} tokens, but {self._row.shape[0]} were announced"
            )
        return self._row, self._valid


class RoutingCounter(PerResponseWatcher):
    """Counts routed experts per response and segment, on the device, in integers, without keeping them.

        with RoutingCounter(model, num_responses=2) as counter:
            with counter.tokens(response, segment, valid):
                model(input_ids, attention_mask=mask)
            with counter.generation(mask, stop_token_ids):
                model.generate(input_ids, attention_mask=mask)
        counter.active_NSLE, counter.num_tokens

    Args:
        model: The model to watch.
        num_responses: N.
        description: Its MoE layers, if known.
        device: Where the counts live; the device of the first experts tensor by default.
    """

    def __init__(
        self,
        model: nn.Module,
        num_responses: int,
        description: MoEDescription | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(model, description, device)
        shape = (num_responses, NUM_SEGMENTS, self.description.num_experts)
        layers, device = self.description.num_layers, self._device
        self._counts = torch.zeros(layers, *shape, dtype=torch.int64, device=device)
        self.num_tokens = torch.zeros(num_responses, NUM_SEGMENTS, dtype=torch.int64, device=device)
        """Tokens counted, `(N, 2)`."""

    @property
    def active_NSLE(self) -> Tensor:
        """Counts `(N, 2, L, E)`, int64."""
        return self._counts.permute(1, 2, 0, 3).contiguous()

    def _on_layer(self, position: int, top_k_index: Tensor, weights: Tensor) -> None:
        ids_TK = top_k_index.reshape(-1, top_k_index.shape[-1]).to(self._device)
        row, valid = self._announced(ids_TK.shape[0])
        if position == 0:
            self.num_tokens.view(-1).scatter_add_(0, row, valid.long())
        flat = row.unsqueeze(1) * self.description.num_experts + ids_TK.clamp(min=0)
        counted = valid.unsqueeze(1) & (ids_TK != NO_EXPERT)
        self._counts[position].view(-1).scatter_add_(0, flat.flatten(), counted.flatten().long())


class _PassesOfGenerate:
    """Tells, pass by pass of one `generate`, which segment is fed and which tokens of it count."""

    def __init__(self, attention_mask: Tensor, stop_token_ids: Sequence[int]) -> None:
        self._valid_BP = attention_mask.bool()
        self._stops = torch.tensor(list(stop_token_ids), device=attention_mask.device)
        self._has_ended_B1 = torch.zeros_like(self._valid_BP[:, :1])
        self._num_fed = 0

    def next(self, fed_BS: Tensor) -> tuple[int, Tensor]:
        """Segment, and which tokens count `(B, S)`; a long prompt may be fed in several passes."""
        start, self._num_fed = self._num_fed, self._num_fed + fed_BS.shape[1]
        if self._num_fed <= self._valid_BP.shape[1]:
            return 0, self._valid_BP[:, start : self._num_fed]
        if fed_BS.shape[1] != 1:
            raise RoutingError(
                f"a pass feeds {fed_BS.shape[1]} tokens of each reply; to be counted, generation must run one "
                "pass a token (with its cache, and without an assistant model)"
            )
        self._has_ended_B1 |= torch.isin(fed_BS.to(self._stops.device), self._stops)
        return 1, ~self._has_ended_B1
