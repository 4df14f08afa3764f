"""Forward passes in which a part of the model does not run: its head at most positions, or some decoder layers.

Below the lowest layer that trains, nothing changes while training, so neither does what leaves those layers: it can be
computed once, and be put in their place in every step. Layers are never called one by one here, because what a layer
is given beside its input (masks, positions) differs between architectures; the model's own forward pass runs, in which
some layers hand on a tensor.

Shape legend: B rows, T tokens, C chosen positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from steermoe.errors import ModelError
from steermoe.moe.description import MoEDescription
from steermoe.moe.routers import replaced_forward


@contextmanager
def only_positions(model: nn.Module, positions: Tensor) -> Iterator[list[Tensor]]:
    """Within it, the model's head sees only some positions: logits are `(1, C, V)` instead of `(B, T, V)`.

    Args:
        model: A causal language model with output embeddings.
        positions: Boolean `(B, T)` with C true entries.

    Yields:
        A list that receives what the head reads, `(C, D)`, one tensor a pass.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]  # every causal LM of transformers has it
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        chosen = hidden[positions.to(hidden.device)]
        seen.append(chosen)
        return (chosen.unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


class LowerLayers:
    """The decoder layers below a given one.

    Args:
        model: The model.
        description: Its MoE layers.
        first_trained: Index of the lowest decoder layer that trains, as in `MoEDescription.layer_indices`.

    Raises:
        ModelError: There is no layer below it.
    """

    def __init__(self, model: nn.Module, description: MoEDescription, first_trained: int) -> None:
        layers = list(model.get_submodule(description.decoder_layers_name).children())
        self._below, self._others = layers[:first_trained], layers[first_trained:]
        if not self._below:
            raise ModelError(f"no decoder layer lies below layer {first_trained}")

    @contextmanager
    def alone(self) -> Iterator[list[Tensor]]:
        """Within it, all other decoder layers hand on what they are given.

        Yields:
            A list that receives what leaves the lower layers, `(B, T, D)`, one tensor a pass.
        """
        seen: list[Tensor] = []

        def keep(_: nn.Module, arguments: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ModelError(f"a decoder layer returns a {type(output).__name__}, not a tensor")
            seen.append(output)

        handle = self._below[-1].register_forward_hook(keep)
        try:
            with _handing_on(self._others, None):
                yield seen
        finally:
            handle.remove()

    @contextmanager
    def replaced_by(self, states: Tensor) -> Iterator[None]:
        """Within it, the lower layers do not run.

        Args:
            states: What leaves them instead, `(B, T, D)`, for the same tokens and the same padding.
        """
        with _handing_on(self._below, states):
            yield


@contextmanager
def _handing_on(layers: Sequence[nn.Module], instead: Tensor | None) -> Iterator[None]:
    """Let layers hand on their input, or something else instead."""

    def wrap(_: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if instead is not None:
                return instead
            return args[0] if args else kwargs["hidden_states"]

        return forward

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced_forward(layer, wrap))
        yield
