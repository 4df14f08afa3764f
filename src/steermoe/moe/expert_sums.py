"""Sums of what experts do, over the tokens of each response and segment, while the model runs.

Shape legend: N responses, T tokens, U of them that the experts compute, L MoE layers, E experts, K top-k, D width of
an expert's output, Q quantities.

How often an expert is chosen says nothing of how much it does. The weight `g` it is chosen with is an argument of the
experts module. Its weighted output `g f` is seen where a fused implementation adds up the K outputs of each token,
`(T, K, D)`: there every quantity that is asked for is reduced to one number a token and choice, and nothing else is
kept. No kernel is touched and no bit of a reply changes. An implementation that never holds these outputs together
(`eager` adds expert after expert) runs its experts a second time, one choice a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steermoe.errors import RoutingError
from steermoe.moe.description import MoEDescription
from steermoe.moe.routers import replaced_forward
from steermoe.moe.routing import NUM_SEGMENTS, PerResponseWatcher, eager, in_backward
from steermoe.records import NO_EXPERT

OfOutputs = Callable[[int, Tensor], Tensor]
"""From the place of a layer and weighted outputs `(T, K, D)` to one number each, `(T, K)`."""

GATE_MASS, CONTRIBUTION = "gate_mass", "contribution"


def output_norms(position: int, weighted_TKD: Tensor) -> Tensor:
    """How long each weighted output is, `g |f|_2`."""
    norms: Tensor = torch.linalg.vector_norm(weighted_TKD, dim=-1, dtype=torch.float32)
    return norms


class ExpertSums(PerResponseWatcher):
    """Adds up, per response and segment, the gate weights of every expert and what is asked of its outputs.

        with ExpertSums(model, num_responses=2) as sums, sums.generation(mask, stop_token_ids):
            model.generate(input_ids, attention_mask=mask)
        sums.totals["contribution"]

    It is entered before `computing_distinct`, whose way from computed tokens to all of them it is then given as
    `expand`.

    Args:
        model: The model to watch.
        num_responses: N.
        description: Its MoE layers, if known.
        of_outputs: By name, what is summed over weighted outputs; by default `contribution`, their length.

    Attributes:
        expand: From values of the tokens that the experts compute, `(U, K)`, to those of all tokens, `(T, K)`.
    """

    def __init__(
        self,
        model: nn.Module,
        num_responses: int,
        description: MoEDescription | None = None,
        of_outputs: Mapping[str, OfOutputs] | None = None,
    ) -> None:
        super().__init__(model, description)
        self.of_outputs = dict(of_outputs or {CONTRIBUTION: output_norms})
        self.expand: Callable[[Tensor], Tensor] = lambda values: values
        self._names = (GATE_MASS, *self.of_outputs)
        # Thousands of tokens are added up, and a device that sums in any order should not show it.
        exact = torch.float32 if self._device.type == "mps" else torch.float64
        shape = (
            num_responses,
            NUM_SEGMENTS,
            self.description.num_layers,
            self.description.num_experts,
        )
        self._sums = torch.zeros(len(self._names), *shape, dtype=exact, device=self._device)
        self._ids: list[Tensor] = []
        self._values: list[Tensor] = []
        self._of_layer: Tensor | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        for position, layer in enumerate(self.description.layers):
            experts = self._model.get_submodule(layer.experts_name)
            self._stack.enter_context(replaced_forward(experts, self._watching(position)))
            handle = experts.register_forward_hook(self._after(position))
            self._stack.callback(handle.remove)
        return self

    @property
    def totals(self) -> dict[str, Tensor]:
        """By name, sums `(N, 2, L, E)`: `gate_mass`, and those of `of_outputs`."""
        return dict(zip(self._names, self._sums, strict=True))

    def _on_layer(self, position: int, top_k_index: Tensor, weights: Tensor) -> None:
        if position == 0:
            self._ids, self._values = [], []
        if len(self._ids) != position:
            raise RoutingError(
                f"a forward pass came to MoE layer {position} after {len(self._ids)} of them; sum over whole passes"
            )
        ids_TK = top_k_index.reshape(-1, top_k_index.shape[-1])
        self._ids.append(ids_TK)
        self._values.append(choice_weights(weights, ids_TK).unsqueeze(0))

    def _watching(self, position: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
        """Of a layer's forward: the same, with every quantity of its outputs kept until it is added up."""

        def reduce(weighted_TKD: Tensor) -> Tensor:
            found = [of(position, weighted_TKD.detach()) for of in self.of_outputs.values()]
            return torch.stack([values.float() for values in found])

        def wrap(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def watched(hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
                if in_backward():
                    return forward(hidden, top_k_index, top_k_weights)
                with _CaptureOutputs(top_k_index.shape, reduce) as seen:
                    outputs = forward(hidden, top_k_index, top_k_weights)
                if seen.reduced is None:
                    again = outputs_by_choice(forward, hidden, top_k_index, top_k_weights)
                    seen.reduced = reduce(again)
                self._of_layer = seen.reduced
                return outputs

            return eager(watched)

        return wrap

    def _after(self, position: int) -> Callable[..., None]:
        """Take what the layer's forward has left; after the last layer, add everything up."""

        def hook(*_: Any) -> None:
            if in_backward() or self._of_layer is None:
                return
            of_outputs = torch.stack([self.expand(values) for values in self._of_layer])
            self._of_layer = None
            self._values[-1] = torch.cat([self._values[-1].float(), of_outputs])
            if position == self.description.num_layers - 1:
                self._add_up()

        return eager(hook)

    def _add_up(self) -> None:
        """Add the values of one pass, `(Q, T, L, K)`, to the sums."""
        ids_TLK = torch.stack([ids.to(self._device) for ids in self._ids], dim=1)
        values = torch.stack([values.to(self._device) for values in self._values], dim=2)
        row, valid = self._announced(len(ids_TLK))
        counted = valid[:, None, None] & (ids_TLK != NO_EXPERT)
        shape = (self.description.num_layers, self.description.num_experts)
        layer = torch.arange(shape[0], device=self._device)[:, None] * shape[1]
        flat = row[:, None, None] * (shape[0] * shape[1]) + layer + ids_TLK.clamp(min=0)
        # What padding becomes may be no number at all.
        values = values.to(self._sums.dtype).masked_fill(~counted, 0.0)
        for sums, of_tokens in zip(self._sums, values, strict=True):
            sums.view(-1).scatter_add_(0, flat.flatten(), of_tokens.flatten())


class _CaptureOutputs(TorchFunctionMode):
    """While one experts module runs: reduces the weighted outputs `(T, K, D)` where they are added up.

    Attributes:
        reduced: What came of them; None if they were never seen together.
    """

    def __init__(self, shape: torch.Size, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.reduced: Tensor | None = None
        self._shape = shape
        self._reduce = reduce

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.sum and self._are_outputs(args[0]):
            self.reduced = self._reduce(args[0])
        return func(*args, **(kwargs or {}))

    def _are_outputs(self, added: Tensor) -> bool:
        return added.is_floating_point() and added.dim() == 3 and added.shape[:2] == self._shape


def outputs_by_choice(
    forward: Callable[..., Tensor], hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The weighted output of every choice `(T, K, D)`, from an experts' forward that adds up those of a token.

    Each choice is made a token of its own, so the experts compute as many rows as they always do.
    """
    num_choices = top_k_index.shape[-1]
    weights = choice_weights(top_k_weights, top_k_index)
    one_each = forward(
        hidden.repeat_interleave(num_choices, dim=0),
        top_k_index.reshape(-1, 1),
        weights.reshape(-1, 1),
    )
    return one_each.view(len(hidden), num_choices, -1)


def choice_weights(weights: Tensor, ids_TK: Tensor) -> Tensor:
    """The weights of the chosen experts `(T, K)`; some routers hand on those of all experts."""
    if weights.shape == ids_TK.shape:
        return weights
    return weights.reshape(len(ids_TK), -1).gather(1, ids_TK.clamp(min=0))
