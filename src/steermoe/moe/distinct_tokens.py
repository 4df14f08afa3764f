"""Which tokens of padded rows the experts have to compute.

Prompts begin alike: the chat template, and with it a system turn, comes first in all of them. What a token of a
causal model becomes depends on itself and the tokens before it, so a beginning that all rows share has the same hidden
states in every row, and its experts need to run for one row only. Padding needs no experts at all: no other token sees
it. The rest of a decoder layer, routers included, is much cheaper, and runs for every position as it always does.

Shape legend: B rows, T tokens, U tokens that are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steermoe.moe.description import MoEDescription
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.routers import SPARE_SLOTS, replaced_forward
from steermoe.moe.routing import eager


@dataclass(frozen=True, slots=True)
class DistinctTokens:
    """Tokens that are computed, and what stands in for the others; positions count through the rows, `r * T + t`.

    Attributes:
        computed: `(U,)` ascending positions of the tokens that are computed.
        source: `(B * T,)` for each position, which of the computed tokens gives its output.
    """

    computed: Tensor
    source: Tensor

    @classmethod
    def of(
        cls, input_ids: Tensor, attention_mask: Tensor, begin_alike: bool = True
    ) -> DistinctTokens:
        """The distinct tokens of rows that are padded on the left or on the right.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 where there is padding.
            begin_alike: Whether what all rows begin with is computed for the first row alone.
        """
        is_real = attention_mask.bool()
        # The rows without their padding, which follows them.
        order = is_real.argsort(dim=1, descending=True, stable=True)
        ids, is_row = input_ids.gather(1, order), is_real.gather(1, order)
        # Of a shared beginning only: a token that is alike after one that differs has another past.
        is_alike = (ids == ids[:1]) & is_row & begin_alike
        num_shared = is_alike.all(dim=0).cumprod(dim=0).sum()
        number = is_real.cumsum(dim=1) - 1
        is_shared = is_real & (number < num_shared)
        is_computed = is_real.clone()
        is_computed[1:] &= ~is_shared[1:]
        source = (is_computed.flatten().cumsum(dim=0) - 1).view_as(input_ids)
        source[is_shared] = source[0, is_shared[0]][number[is_shared]]
        # Nothing reads what padding becomes, so any output will do.
        source[~is_real] = 0
        return cls(is_computed.flatten().nonzero().squeeze(1), source.flatten())

    def through(self, experts: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """The output of a layer's experts for all positions, `(B * T, D)`, from that of the computed tokens.

        Args:
            experts: Takes what the experts are given, and returns their output.
            given: Hidden states, chosen experts and their weights, `(B * T, ...)` each.
        """
        return self.expand(
            experts(*(part.index_select(0, self.computed.to(part.device)) for part in given))
        )

    def expand(self, values: Tensor) -> Tensor:
        """From values of the computed tokens `(U, ...)` to those of all positions, `(B * T, ...)`."""
        return values.index_select(0, self.source.to(values.device))


@contextmanager
def computing_distinct(
    model: nn.Module, description: MoEDescription | None = None
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within it, passes over whole rows compute the experts of their distinct tokens only.

    Whole rows are prompts before generation, or replies that are fed to the model: passes that are given as many
    tokens as their attention mask has. Tokens that continue a cache are all computed, and so is everything under an
    expert mask, which may send rows that begin alike to different experts, and where a row's positions are not counted
    from its first token.

    Args:
        model: The model, in evaluation mode; nothing is differentiated within the context, and it is entered once.
        description: Its MoE layers, if known.

    Yields:
        While a pass runs: from what is known of each token that the experts compute, `(U, ...)`, to all tokens.
    """
    description = find_moe_layers(model) if description is None else description
    modules = [model.get_submodule(layer.experts_name) for layer in description.layers]
    distinct: DistinctTokens | None = None

    def look_at(_: nn.Module, __: tuple[Any, ...], fed: dict[str, Any]) -> None:
        nonlocal distinct
        if _are_rows(fed) and not any(hasattr(module, SPARE_SLOTS) for module in modules):
            distinct = DistinctTokens.of(fed["input_ids"], fed["attention_mask"])

    def forget(*_: Any) -> None:
        nonlocal distinct
        distinct = None

    def wrap(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def distinct_forward(*given: Tensor) -> Tensor:
            return forward(*given) if distinct is None else distinct.through(forward, *given)

        return eager(distinct_forward)

    def expand(values: Tensor) -> Tensor:
        return values if distinct is None else distinct.expand(values)

    with ExitStack() as stack:
        handle = model.register_forward_pre_hook(eager(look_at), with_kwargs=True)
        stack.callback(handle.remove)
        stack.callback(model.register_forward_hook(eager(forget), always_call=True).remove)
        for module in modules:
            stack.enter_context(replaced_forward(module, wrap))
        yield expand


def _are_rows(fed: Mapping[str, Any]) -> bool:
    """Whether a pass is given whole rows of tokens, each counted from its first one."""
    ids, mask, positions = (fed.get(k) for k in ("input_ids", "attention_mask", "position_ids"))
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.shape != mask.shape:
        return False
    is_real = mask.bool()
    if positions is None:
        return bool(is_real.any())
    counted = is_real.cumsum(dim=-1) - 1
    # Some models are given three positions a token, of text three times the same.
    is_other = (positions.to(counted.device) != counted) & is_real
    return bool(is_real.any() and not is_other.any())


def has_dropout(model: Any) -> bool:
    """Whether training drops something out: then rows that begin alike do not have the same hidden states."""
    settings = model.config.get_text_config().to_dict()
    in_config = any(
        value
        for name, value in settings.items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, int | float)
    )
    in_modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return in_config or in_modules
