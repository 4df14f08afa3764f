"""The split execution against experts written as a loop over tokens, and against its own numerical gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from steermoe.moe.split import Layout, Plan, split_experts

WIDTH, HIDDEN = 6, 4
"""D and F; rows of 6 numbers are no multiple of 16 bytes, in fp32 either."""


def gated(up: Tensor) -> Tensor:
    gate, value = up.chunk(2, dim=-1)
    return F.silu(gate) * value


def interleaved(up: Tensor) -> Tensor:
    gate, value = up[..., ::2], up[..., 1::2]
    return (value + 1) * gate * torch.sigmoid(1.7 * gate)


def plain(up: Tensor) -> Tensor:
    return torch.relu(up).square()


def unit_norm(out: Tensor) -> Tensor:
    return out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + 1e-6)


@dataclass(frozen=True)
class Case:
    """One layer: its layout, its weights for every expert, and what is routed where."""

    layout: Layout
    tensors: list[Tensor]
    hidden_TD: Tensor
    index_TK: Tensor
    weights_TK: Tensor
    trained: tuple[int, ...]


def make_case(
    trained: Sequence[int],
    index: Sequence[Sequence[int]],
    num_experts: int = 5,
    has_bias: bool = False,
    is_transposed: bool = False,
    activation: Callable[[Tensor], Tensor] = gated,
    post_norm: Callable[[Tensor], Tensor] | None = None,
    width: int = WIDTH,
    hidden: int = HIDDEN,
    dtype: torch.dtype = torch.float64,
) -> Case:
    generator = torch.Generator().manual_seed(len(index) + 10 * num_experts)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    up_width = hidden if activation is plain else 2 * hidden
    tensors = [random(num_experts, up_width, width), random(num_experts, width, hidden)]
    if is_transposed:
        tensors = [tensor.transpose(1, 2).contiguous() for tensor in tensors]
    if has_bias:
        tensors += [random(num_experts, up_width), random(num_experts, width)]
    index_TK = torch.tensor(index)
    return Case(
        Layout(has_bias, is_transposed, activation, post_norm),
        tensors,
        random(len(index_TK), width),
        index_TK,
        random(*index_TK.shape),
        tuple(trained),
    )


def loop_over_tokens(
    case: Case, tensors: Sequence[Tensor], hidden: Tensor, weights: Tensor
) -> Tensor:
    """Each token's experts one after the other, by plain matrix products."""
    rows = []
    for token, experts in enumerate(case.index_TK.tolist()):
        total = torch.zeros_like(hidden[token])
        for slot, expert in enumerate(experts):
            up, down = (t[expert] for t in tensors[:2])
            if case.layout.is_transposed:
                up, down = up.T, down.T
            value = up @ hidden[token]
            if case.layout.has_bias:
                value = value + tensors[2][expert]
            value = down @ case.layout.activation(value)
            if case.layout.has_bias:
                value = value + tensors[3][expert]
            if case.layout.post_norm is not None:
                value = case.layout.post_norm(value)
            total = total + weights[token, slot] * value
        rows.append(total)
    return torch.stack(rows)


def run_split(
    case: Case, masters: Sequence[Tensor], hidden: Tensor, weights: Tensor, frozen: Any = None
) -> Tensor:
    num_experts = len(case.tensors[0])
    groups = torch.arange(num_experts)
    groups[list(case.trained)] = num_experts + torch.arange(len(case.trained))
    plan = Plan.make(groups[case.index_TK], num_experts, len(case.trained))
    return split_experts(case.layout, plan, hidden, weights, frozen or case.tensors, masters)


def check_against_the_loop(case: Case, tolerance: float = 1e-10) -> None:
    """Output and every gradient, once with the input differentiated and once without."""
    grad_out = torch.ones_like(case.hidden_TD).cumsum(0).cos()
    for differentiate_input in (True, False):
        inputs = [case.hidden_TD.clone(), case.weights_TK.clone()]
        for tensor in inputs:
            tensor.requires_grad_(differentiate_input)
        whole = [tensor.clone().requires_grad_() for tensor in case.tensors]
        expected = loop_over_tokens(case, whole, *inputs)
        expected.backward(grad_out)
        expected_grads = [tensor.grad for tensor in inputs]

        for tensor in inputs:
            tensor.grad = None
        ids = list(case.trained)
        masters = [t[ids].clone().requires_grad_() for t in case.tensors] if ids else []
        # What the fused tensors hold for the trained experts must not matter.
        frozen = [tensor.clone() for tensor in case.tensors]
        for tensor in frozen:
            tensor[ids] = float("nan")
        out = run_split(case, masters, *inputs, frozen=frozen)
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
        if not out.requires_grad:
            assert not masters
            continue
        out.backward(grad_out)
        for tensor, expected_grad in zip(inputs, expected_grads, strict=True):
            torch.testing.assert_close(tensor.grad, expected_grad, rtol=tolerance, atol=tolerance)
        for master, fused in zip(masters, whole, strict=bool(masters)):
            torch.testing.assert_close(master.grad, fused.grad[ids], rtol=tolerance, atol=tolerance)
        assert all(tensor.grad is None for tensor in frozen)


LAYOUTS = {
    "concatenated": {},
    "transposed_interleaved_biased": {
        "is_transposed": True,
        "activation": interleaved,
        "has_bias": True,
    },
    "transposed": {"is_transposed": True},
    "biased": {"has_bias": True},
    "ungated": {"activation": plain},
    "ungated_biased": {"activation": plain, "has_bias": True},
    "post_norm": {"post_norm": unit_norm},
    "post_norm_biased": {"post_norm": unit_norm, "has_bias": True},
}
ROUTES = [[0, 3], [1, 2], [4, 0], [3, 1], [2, 4], [1, 0], [3, 4]]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_equals_the_loop(layout: dict[str, Any]) -> None:
    check_against_the_loop(make_case([1, 4], ROUTES, **layout))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_equals_the_loop_through_the_grouped_kernel(layout: dict[str, Any]) -> None:
    case = make_case([1, 4], ROUTES, width=16, hidden=8, dtype=torch.float32, **layout)
    check_against_the_loop(case, tolerance=2e-4)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_numerical_gradient(layout: dict[str, Any]) -> None:
    case = make_case([0, 3], ROUTES[:3], **layout)
    masters = [tensor[[0, 3]].clone().requires_grad_() for tensor in case.tensors]
    inputs = [case.hidden_TD.clone().requires_grad_(), case.weights_TK.clone().requires_grad_()]

    def run(hidden: Tensor, weights: Tensor, *trained: Tensor) -> Tensor:
        return run_split(case, trained, hidden, weights)

    assert torch.autograd.gradcheck(run, (*inputs, *masters), atol=1e-6)


@pytest.mark.parametrize(
    ("trained", "index"),
    [
        pytest.param([], ROUTES, id="none_trained"),
        pytest.param([0, 1, 2, 3, 4], ROUTES, id="all_trained"),
        pytest.param([2], [[2, 0]], id="one_token"),
        pytest.param([2], [[2]], id="one_pair_to_a_trained_expert"),
        pytest.param([2], [[0]], id="one_pair_to_a_frozen_expert"),
        pytest.param([1, 2], [[0, 3], [3, 4], [4, 0]], id="only_frozen_experts_are_reached"),
        pytest.param([0, 3, 4], [[0, 3], [3, 4], [4, 0]], id="only_trained_experts_are_reached"),
        pytest.param([0, 1], [[1, 1], [1, 0]], id="an_expert_twice_for_one_token"),
    ],
)
@pytest.mark.parametrize("layout", ["concatenated", "biased", "post_norm"])
def test_corners(trained: list[int], index: list[list[int]], layout: str) -> None:
    check_against_the_loop(make_case(trained, index, **LAYOUTS[layout]))
    aligned = {"width": 8, "hidden": 8, "dtype": torch.float32}
    check_against_the_loop(make_case(trained, index, **LAYOUTS[layout], **aligned), tolerance=2e-4)


def test_an_unreached_trained_expert_gets_zeros_and_not_nothing() -> None:
    case = make_case([1, 2], [[0, 3], [3, 4]], has_bias=True)
    masters = [tensor[[1, 2]].clone().requires_grad_() for tensor in case.tensors]
    run_split(case, masters, case.hidden_TD, case.weights_TK).sum().backward()
    assert [master.grad.count_nonzero().item() for master in masters] == [0, 0, 0, 0]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_random_routing_and_selection(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(1, num_experts))
    experts = st.permutations(range(num_experts)).map(lambda order: order[:top_k])
    index = data.draw(st.lists(experts, min_size=1, max_size=8))
    trained = sorted(data.draw(st.sets(st.integers(0, num_experts - 1))))
    layout = LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))]
    check_against_the_loop(make_case(trained, index, num_experts=num_experts, **layout))


def test_worked_by_hand() -> None:
    """Two tokens, experts of width 1 without a gate: out = w * down * relu(up * x)^2."""
    layout = Layout(False, False, plain, None)
    frozen = [torch.tensor([[[2.0]], [[7.0]]]), torch.tensor([[[3.0]], [[7.0]]])]
    up, down = torch.tensor([[[1.0]]]), torch.tensor([[[5.0]]])
    masters = [up.requires_grad_(), down.requires_grad_()]
    plan = Plan.make(torch.tensor([[0], [2]]), num_experts=2, num_trained=1)
    hidden, weights = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [0.25]])
    out = split_experts(layout, plan, hidden, weights, frozen, masters)
    assert out.tolist() == [[0.5 * 3 * 4], [0.25 * 5 * 4]]
    out.sum().backward()
    # d out / d down = 0.25 * (1 * 2)^2, d out / d up = 0.25 * 5 * 2 * (1 * 2) * 2
    assert (down.grad.item(), up.grad.item()) == (1.0, 10.0)


@pytest.mark.parametrize("layout", ["concatenated", "transposed_interleaved_biased", "post_norm"])
def test_bfloat16_weights_keep_fp32_masters_and_gradients(layout: str) -> None:
    options = {"width": 32, "hidden": 16, **LAYOUTS[layout]}
    exact = make_case([1, 4], ROUTES, **options)
    whole = [tensor.clone().requires_grad_() for tensor in exact.tensors]
    loop_over_tokens(exact, whole, exact.hidden_TD, exact.weights_TK).sum().backward()
    case = make_case([1, 4], ROUTES, dtype=torch.bfloat16, **options)
    masters = [tensor[[1, 4]].float().requires_grad_() for tensor in exact.tensors]
    out = run_split(case, masters, case.hidden_TD, case.weights_TK)
    assert out.dtype is torch.bfloat16
    out.sum().backward()
    for master, fused in zip(masters, whole, strict=True):
        assert master.grad.dtype is torch.float32
        error = (master.grad - fused.grad[[1, 4]]).norm() / fused.grad[[1, 4]].norm()
        assert error < 0.03  # bfloat16 keeps 8 bits: 0.4 % a rounding, of which there are several


def test_one_tensor_of_activations_is_kept_a_layer() -> None:
    case = make_case([1, 4], ROUTES, width=16, hidden=8, dtype=torch.float32)
    masters = [tensor[[1, 4]].clone().requires_grad_() for tensor in case.tensors]
    num_pairs, up_width = case.index_TK.numel(), 16
    trained_pairs = int(torch.isin(case.index_TK, torch.tensor([1, 4])).sum())
    for differentiated, expected_rows in ((True, num_pairs), (False, trained_pairs)):
        kept: list[tuple[int, ...]] = []
        hidden = case.hidden_TD.clone().requires_grad_(differentiated)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tuple(tensor.shape)) or tensor, lambda t: t
        ):
            run_split(case, masters, hidden, case.weights_TK)
        weights = [tuple(tensor.shape) for tensor in [*case.tensors, *masters]]
        inputs = [(len(hidden), 16), tuple(case.weights_TK.shape)]
        assert sorted(kept) == sorted([*weights, *inputs, (expected_rows, up_width)])
