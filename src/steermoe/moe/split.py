"""Experts computed from two stacks: the frozen fused tensors, and a small stack that trains.

Shape legend: T tokens, K top-k, S = T * K token-expert pairs, R the rows of S that are differentiated (the
last ones), E experts, N trained experts of one layer, D model width, F expert hidden width, U width of the
first projection (2F with a gate, F without).

A fused tensor `(E, ...)` is one parameter, so autograd can train all of its experts or none. Here the
trained experts have tensors of their own `(N, ...)`: pairs are sorted so that those routed to trained
experts come last, the frozen and the trained rows run through their own grouped matmuls, and the rows go
back in order. Gradients are those of the fused tensors' slices; nothing is allocated for the rest.

The backward pass is written out because autograd would keep several `(S, ...)` tensors a layer and scatter
the gradient of the input pair by pair. Here one is kept, `up_SU`, and the activation is computed again.
With `g` the gradient of a token's output, `w` the routing weight of one of its pairs and
`y = down @ a + bias` that pair's output, the gradient of `a` is `w * (down.T @ g)` and that of `w` is
`g . y = (down.T @ g) . a + g . bias`: one product serves both, and `y` need not be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Layout:
    """How one layer's experts are laid out.

    Attributes:
        has_bias: Whether both projections carry a bias.
        is_transposed: Whether weights are `(experts, in, out)` instead of `(experts, out, in)`.
        activation: What lies between the projections, from `(S, U)` to `(S, F)`.
        post_norm: Norm of each expert's output before it is weighted, or None.
    """

    has_bias: bool
    is_transposed: bool
    activation: Callable[[Tensor], Tensor]
    post_norm: Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which row goes where: token-expert pairs sorted by group, frozen groups first.

    Attributes:
        token_of_row: `(S,)` token of each sorted row.
        pair_of_row: `(S,)` token-expert pair of each sorted row.
        row_of_pair: `(S,)` sorted row of each pair.
        group_of_row: `(S,)` ascending group: expert id if frozen, E + row in the stack if trained.
        frozen_ends: `(E,)` cumulative rows of the frozen groups.
        trained_ends: `(N,)` the same for the trained groups, counted from the first trained row.
        num_frozen_rows: How many rows are routed to frozen experts.
    """

    token_of_row: Tensor
    pair_of_row: Tensor
    row_of_pair: Tensor
    group_of_row: Tensor
    frozen_ends: Tensor
    trained_ends: Tensor
    num_frozen_rows: int

    @staticmethod
    def make(groups_TK: Tensor, num_experts: int, num_trained: int) -> Plan:
        """Sort the pairs of all tokens.

        Args:
            groups_TK: Group of each pair, in `[0, E + N)`.
            num_experts: E.
            num_trained: N.
        """
        group_of_row, pair_of_row = groups_TK.reshape(-1).sort(stable=True)
        counts = torch.bincount(group_of_row, minlength=num_experts + num_trained)
        frozen_ends = counts[:num_experts].cumsum(0, dtype=torch.int32)
        row_of_pair = torch.empty_like(pair_of_row)
        row_of_pair[pair_of_row] = torch.arange(len(pair_of_row), device=pair_of_row.device)
        return Plan(
            token_of_row=pair_of_row // groups_TK.shape[1],
            pair_of_row=pair_of_row,
            row_of_pair=row_of_pair,
            group_of_row=group_of_row,
            frozen_ends=frozen_ends,
            trained_ends=counts[num_experts:].cumsum(0, dtype=torch.int32),
            num_frozen_rows=int(frozen_ends[-1]) if num_trained else len(group_of_row),
        )


def split_experts(
    layout: Layout,
    plan: Plan,
    hidden_TD: Tensor,
    weights_TK: Tensor,
    frozen: Sequence[Tensor],
    trained: Sequence[Tensor],
) -> Tensor:
    """The experts' output `(T, D)`; trained experts are taken from their own stack.

    Args:
        layout: Layout of the layer.
        plan: Where each token-expert pair is computed.
        hidden_TD: Input of the experts.
        weights_TK: Routing weights.
        frozen: Fused tensors `(E, ...)`: up, down, and their biases if there are any.
        trained: Masters `(N, ...)` in the same order, of any dtype; empty if none of the layer trains.
    """
    out: Tensor = _SplitExperts.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        layout, plan, hidden_TD, weights_TK, *frozen, *trained
    )
    return out


class _Projection:
    """One projection of both stacks, and what the backward pass needs of it."""

    def __init__(self, layout: Layout, plan: Plan, tensors: Sequence[Tensor | None]) -> None:
        """Take frozen and trained weight, frozen and trained bias; masters are cast here."""
        frozen, trained, frozen_bias, trained_bias = tensors
        assert frozen is not None
        self.plan = plan
        self.is_transposed = layout.is_transposed
        self.dtype = frozen.dtype
        self.frozen = frozen
        self.trained = None if trained is None else trained.to(frozen.dtype)
        self.bias = frozen_bias
        if frozen_bias is not None and trained_bias is not None:
            self.bias = torch.cat([frozen_bias, trained_bias.to(frozen_bias.dtype)])

    def __call__(self, rows_SI: Tensor) -> Tensor:
        """Every row times the weight of its group, plus its bias."""
        out = self._times(rows_SI, self.is_transposed)
        return out if self.bias is None else out.add_(self.bias_rows(0))

    def grad_input(self, grad_RO: Tensor) -> Tensor:
        """Gradient of the last R rows of the input from that of the output."""
        return self._times(grad_RO, not self.is_transposed)

    def bias_rows(self, first: int) -> Tensor:
        """The bias of each row from `first` on."""
        assert self.bias is not None
        return self.bias[self.plan.group_of_row[first:]]

    def grad_trained(self, grad_rows: Tensor, rows: Tensor) -> list[Tensor]:
        """Gradient of the trained weight, and bias if any, from all trained rows."""
        plan = self.plan
        left, right = (rows, grad_rows) if self.is_transposed else (grad_rows, rows)
        num_trained = len(plan.trained_ends)
        if len(rows):
            grads = [_grouped_mm(left.transpose(0, 1), right, plan.trained_ends)]
        else:
            grads = [rows.new_zeros((num_trained, left.shape[1], right.shape[1]))]
        if self.bias is not None:
            groups = plan.group_of_row[plan.num_frozen_rows :] - len(plan.frozen_ends)
            # Summed in fp32 at least: there may be thousands of rows.
            addends = grad_rows.to(torch.promote_types(grad_rows.dtype, torch.float32))
            grad_bias = addends.new_zeros((num_trained, grad_rows.shape[1]))
            grads.append(grad_bias.index_add_(0, groups, addends))
        return grads

    def _times(self, rows: Tensor, as_stored: bool) -> Tensor:
        """The last rows, each times the weight of its group as stored `(in, out)`, or transposed."""
        num_frozen = self.plan.num_frozen_rows - (len(self.plan.group_of_row) - len(rows))
        frozen, trained = (
            weight if weight is None or as_stored else weight.transpose(-2, -1)
            for weight in (self.frozen, self.trained)
        )
        assert frozen is not None
        if num_frozen == 0 and trained is not None:
            return _grouped_mm(rows, trained, self.plan.trained_ends)
        # The kernel leaves rows beyond the last group unwritten: they are the trained ones.
        out = _grouped_mm(rows, frozen, self.plan.frozen_ends)
        if trained is not None and num_frozen < len(rows):
            out[num_frozen:] = _grouped_mm(rows[num_frozen:], trained, self.plan.trained_ends)
        return out


def _grouped_mm(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Rows of `left` times the matrix of their group; if `right` is rows too, each group's own product."""
    if all(_fits_the_kernel(tensor) for tensor in (left, right)):
        return nn.functional.grouped_mm(left, right, offs=ends)
    bounds = [0, *ends.tolist()]
    groups = [slice(start, end) for start, end in pairwise(bounds)]
    if right.dim() == 2:
        return torch.stack([left[:, group] @ right[group] for group in groups])
    out = left.new_empty(len(left), right.shape[2])
    for matrix, group in zip(right, groups, strict=True):
        torch.mm(left[group], matrix, out=out[group])
    return out


def _fits_the_kernel(tensor: Tensor) -> bool:
    """Whether `grouped_mm` takes a tensor: no float64, and every row starts at a multiple of 16 bytes."""
    row_bytes = max(tensor.stride()[-2:]) * tensor.itemsize
    return tensor.dtype != torch.float64 and row_bytes % 16 == 0 and tensor.data_ptr() % 16 == 0


def _projections(
    layout: Layout, plan: Plan, tensors: Sequence[Tensor]
) -> tuple[_Projection, _Projection]:
    """The up and the down projection, from the frozen tensors and the masters behind them."""
    size = 4 if layout.has_bias else 2
    frozen = [*tensors[:size], None, None]
    trained = [*tensors[size:], None, None] if len(tensors) > size else [None] * 4
    up, down = (
        _Projection(layout, plan, (frozen[i], trained[i], frozen[i + 2], trained[i + 2]))
        for i in (0, 1)
    )
    return up, down


def _through_down(
    down: _Projection, first: int, grad_RD: Tensor, weight_R1: Tensor, act_RF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the activation, of the trained pairs' outputs, and of the routing weights."""
    unweighted_RF = down.grad_input(grad_RD)
    grad_weight_R = (unweighted_RF * act_RF).sum(-1)
    if down.bias is not None:
        grad_weight_R += (grad_RD * down.bias_rows(first)).sum(-1)
    start = down.plan.num_frozen_rows - first
    grad_trained = (grad_RD[start:] * weight_R1[start:]).to(down.dtype)
    return (unweighted_RF * weight_R1).to(down.dtype), grad_trained, grad_weight_R


def _through_down_and_norm(
    down: _Projection,
    first: int,
    grad_RD: Tensor,
    weight_R1: Tensor,
    out_RD: Tensor,
    post_norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for experts whose outputs are normalised before they are weighted."""
    with torch.enable_grad():
        out_RD = out_RD.detach().requires_grad_()
        normed_RD = post_norm(out_RD)
    grad_weight_R = (grad_RD * normed_RD.detach()).sum(-1)
    grad_normed_RD = (grad_RD * weight_R1).to(normed_RD.dtype)
    (grad_out_RD,) = torch.autograd.grad(normed_RD, out_RD, grad_normed_RD)
    start = down.plan.num_frozen_rows - first
    return down.grad_input(grad_out_RD), grad_out_RD[start:], grad_weight_R


class _SplitExperts(torch.autograd.Function):
    """The routed experts of one layer; the gradients are in the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        plan: Plan,
        hidden_TD: Tensor,
        weights_TK: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        up, down = _projections(layout, plan, tensors)
        up_SU = up(hidden_TD[plan.token_of_row].to(up.dtype))
        out_SD = down(layout.activation(up_SU))
        normed_SD = out_SD if layout.post_norm is None else layout.post_norm(out_SD)
        weight_S1 = weights_TK.reshape(-1)[plan.pair_of_row].unsqueeze(-1)
        # Nothing reads the unweighted outputs again, unless a norm of them is differentiated.
        in_place = layout.post_norm is None and weight_S1.dtype == normed_SD.dtype
        weighted_SD = normed_SD.mul_(weight_S1) if in_place else normed_SD * weight_S1
        out_TD = weighted_SD[plan.row_of_pair].view(*weights_TK.shape, -1).sum(1)

        # Where the input is not differentiated (the lowest trained layer), only trained rows are.
        first = 0 if any(ctx.needs_input_grad[2:4]) else plan.num_frozen_rows
        ctx.layout, ctx.plan, ctx.first = layout, plan, first
        ctx.save_for_backward(
            hidden_TD if up.trained is not None else None,
            weights_TK,
            up_SU[first:].clone() if first else up_SU,
            None if layout.post_norm is None else out_SD[first:].clone(),
            *tensors,
        )
        return out_TD.to(hidden_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        layout, plan, first = ctx.layout, ctx.plan, ctx.first
        hidden_TD, weights_TK, up_RU, out_RD, *tensors = ctx.saved_tensors
        _, _, needs_hidden, needs_weights, *_ = ctx.needs_input_grad
        up, down = _projections(layout, plan, tensors)
        with torch.enable_grad():
            up_RU = up_RU.detach().requires_grad_()
            act_RF = layout.activation(up_RU)
        weight_R1 = weights_TK.reshape(-1)[plan.pair_of_row[first:]].unsqueeze(-1)
        grad_RD = grad_TD[plan.token_of_row[first:]].to(up.dtype)
        if layout.post_norm is None:
            grad_act_RF, grad_out, grad_weight_R = _through_down(
                down, first, grad_RD, weight_R1, act_RF.detach()
            )
        else:
            grad_act_RF, grad_out, grad_weight_R = _through_down_and_norm(
                down, first, grad_RD, weight_R1, out_RD, layout.post_norm
            )
        (grad_up_RU,) = torch.autograd.grad(act_RF, up_RU, grad_act_RF)

        grad_hidden_TD = grad_weights_TK = None
        if needs_hidden:
            grad_rows_SD = up.grad_input(grad_up_RU)[plan.row_of_pair]
            grad_hidden_TD = grad_rows_SD.view(*weights_TK.shape, -1).sum(1)
        if needs_weights:
            grad_weights_TK = grad_weight_R[plan.row_of_pair].view_as(weights_TK)
        grads: list[Tensor | None] = [None] * len(tensors)
        if hidden_TD is not None:
            start = plan.num_frozen_rows
            rows = hidden_TD[plan.token_of_row[start:]].to(up.dtype)
            of_up = up.grad_trained(grad_up_RU[start - first :], rows)
            of_down = down.grad_trained(grad_out, act_RF.detach()[start - first :])
            of_both = [grad for pair in zip(of_up, of_down, strict=True) for grad in pair]
            grads[-len(of_both) :] = of_both
        return (None, None, grad_hidden_TD, grad_weights_TK, *grads)
