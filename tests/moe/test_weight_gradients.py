"""Inner products of experts' gradients against autograd on the full weights, and choices against small steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from architectures import BY_NAME, ROUTED_DIFFERENTLY, known, token_ids
from steermoe.errors import RoutingError
from steermoe.moe import weight_gradients
from steermoe.moe.choice_gradients import differentiable_choices
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.trained_stack import fused_parameters
from steermoe.moe.weight_gradients import captured_tokens, gradient_products

NAMES = known(*ROUTED_DIFFERENTLY, "lfm2_moe")
IDS, TARGETS = token_ids(4, 6, seed=3), torch.tensor([5, 9, 11, 7])
ALL = torch.ones(24, dtype=torch.bool)


def in_double(name: str) -> Any:
    """A tiny model whose figures have enough digits to compare; grouped_mm takes no fp64."""
    model = BY_NAME[name].build().double()
    model.set_experts_implementation("batched_mm")
    return model


def loss_of_rows(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the token that follows each row, `(R,)`."""
    return F.cross_entropy(model(ids).logits[:, -1], targets, reduction="none")


def gradients_by_autograd(model: Any) -> list[list[torch.Tensor]]:
    """Of every row and MoE layer: the gradient of each expert's own numbers, flat, `(E, numbers)`."""
    model.requires_grad_(False)
    layers = [model.get_submodule(layer.experts_name) for layer in find_moe_layers(model).layers]
    tensors = [list(fused_parameters(experts).values()) for experts in layers]
    for tensor in (t for of_layer in tensors for t in of_layer):
        tensor.requires_grad_(True)
    found = []
    for row in range(len(IDS)):
        loss = loss_of_rows(model, IDS[row : row + 1], TARGETS[row : row + 1]).sum()
        flat = [t for of_layer in tensors for t in of_layer]
        gradients = iter(torch.autograd.grad(loss, flat))
        found.append(
            [torch.cat([next(gradients).flatten(1) for _ in of_layer], 1) for of_layer in tensors]
        )
    model.requires_grad_(False)
    return found


@pytest.mark.parametrize("is_worth_a_gradient", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_full_gradients(
    name: str, is_worth_a_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_double(name)
    towards = torch.tensor([True, False, True, False])
    whole = gradients_by_autograd(model)
    if is_worth_a_gradient:  # repeat the summed tokens until a gradient is the cheaper way
        by_gram = weight_gradients.products_with_sum

        def repeated(read: Any, changed: Any, summed: Any) -> Any:
            many = 400
            more_read = torch.cat([read, *[read[summed]] * (many - 1)])
            more_changed = torch.cat([changed, *[changed[summed]] * (many - 1)])
            is_summed = torch.cat([summed, summed.new_ones(int(summed.sum()) * (many - 1))])
            return by_gram(more_read, more_changed, is_summed)[: len(read)] / many

        monkeypatch.setattr(weight_gradients, "products_with_sum", repeated)
    description = find_moe_layers(model)
    with captured_tokens(model, description) as layers:
        loss_of_rows(model, IDS, TARGETS).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    text_of_token = torch.arange(4).repeat_interleave(6)
    for position, (layer, tokens) in enumerate(zip(description.layers, layers, strict=True)):
        experts = model.get_submodule(layer.experts_name)
        found = gradient_products(experts, tokens.select(ALL), text_of_token, towards)
        mean = (whole[0][position] + whole[2][position]) / 2
        for row in range(4):
            expected = (mean * whole[row][position]).sum(dim=1)
            torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-14)
        assert float(found.abs().max()) > 0


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_every_implementation_gives_the_same(implementation: str) -> None:
    found = []
    for chosen in (implementation, "batched_mm"):
        model = BY_NAME["olmoe"].build().requires_grad_(False)
        model.set_experts_implementation(chosen)
        description = find_moe_layers(model)
        with captured_tokens(model, description) as layers:
            loss_of_rows(model, IDS, TARGETS).sum().backward()
        experts = model.get_submodule(description.layers[0].experts_name)
        of_texts = torch.arange(4).repeat_interleave(6)
        tokens = layers[0].select(ALL)
        found.append(gradient_products(experts, tokens, of_texts, torch.ones(4, dtype=torch.bool)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-10)


def test_without_a_backward_pass_there_is_nothing_to_multiply() -> None:
    model = BY_NAME["mixtral"].build().requires_grad_(False)
    with captured_tokens(model, find_moe_layers(model)) as layers:
        model(IDS)
    with pytest.raises(RoutingError, match="no gradient"):
        layers[0].select(ALL)


@pytest.mark.parametrize("name", NAMES)
def test_weight_times_gradient_is_what_small_steps_of_the_weights_do(name: str) -> None:
    model = in_double(name).requires_grad_(False)
    description = find_moe_layers(model)
    with differentiable_choices(model, description) as choices:
        figure = loss_of_rows(model, IDS, TARGETS).sum()
        ids, products = choices.products(figure)
    assert ids.shape == products.shape == (24, description.num_layers, ids.shape[-1])
    fixed = [weights.detach() for weights in choices.weights]

    def figure_with(position: int, token: int, choice: int, factor: float) -> float:
        """The figure with one weight changed, and all others as they were."""
        given = [weights.clone() for weights in fixed]
        given[position].view(24, -1)[token, choice] *= factor
        handles = []
        for at, layer in enumerate(description.layers):
            module = model.get_submodule(layer.experts_name)

            def hook(m: Any, args: Any, at: int = at) -> Any:
                return (*args[:2], given[at])

            handles.append(module.register_forward_pre_hook(hook))
        with torch.no_grad():
            value = float(loss_of_rows(model, IDS, TARGETS).sum())
        for handle in handles:
            handle.remove()
        return value

    step = 1e-2  # norms are computed in fp32, whatever the model is
    for position, token, choice in ((0, 3, 0), (0, 5, 1), (description.num_layers - 1, 17, 0)):
        above = figure_with(position, token, choice, 1 + step)
        below = figure_with(position, token, choice, 1 - step)
        slope = (above - below) / (2 * step)
        assert float(products[token, position, choice]) == pytest.approx(slope, rel=5e-3, abs=1e-4)
