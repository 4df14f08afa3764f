"""Sums of gate weights and of what experts put out, against plain loops over tokens and experts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from architectures import BY_NAME, ROUTED_DIFFERENTLY, known, token_ids
from steermoe.errors import RoutingError
from steermoe.moe.distinct_tokens import computing_distinct
from steermoe.moe.expert_sums import ExpertSums
from steermoe.moe.layers import find_moe_layers

NAMES = known(*ROUTED_DIFFERENTLY, "phimoe")


def one_expert(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """What one expert puts out for some tokens, written out from its own weights."""
    up_name = "gate_up_proj" if experts.has_gate else "up_proj"
    up, down = getattr(experts, up_name)[expert], experts.down_proj[expert]
    if not experts.is_transposed:
        up, down = up.T, down.T
    inner = hidden @ up
    if experts.has_bias:
        inner = inner + getattr(experts, f"{up_name}_bias")[expert]
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    out = inner @ down
    if experts.has_bias:
        out = out + experts.down_proj_bias[expert]
    if getattr(experts, "has_post_expert_norm", False):
        out = experts.post_expert_norm(out)
    return out


def sums_in_a_loop(
    model: Any, ids: torch.Tensor, rows: list[tuple[int, int] | None], num_responses: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate mass and contribution `(N, 2, L, E)`; `rows` says of each token its response and segment."""
    description = find_moe_layers(model)
    shape = (num_responses, 2, description.num_layers, description.num_experts)
    mass, contribution = torch.zeros(shape), torch.zeros(shape)
    given: list[tuple[Any, ...]] = []
    with ExitStack() as stack:
        for layer in description.layers:
            module = model.get_submodule(layer.experts_name)
            hook = module.register_forward_pre_hook(lambda m, a: given.append((m, *a)))
            stack.callback(hook.remove)
        with torch.no_grad():
            model(ids)
    for position, (experts, hidden, index, weights) in enumerate(given):
        for token, row in enumerate(rows):
            if row is None:
                continue
            for choice in range(index.shape[1]):
                expert, weight = int(index[token, choice]), float(weights[token, choice])
                output = one_expert(experts, expert, hidden[token : token + 1])[0]
                mass[row[0], row[1], position, expert] += weight
                contribution[row[0], row[1], position, expert] += weight * output.norm().item()
    return mass, contribution


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_a_loop_over_tokens_and_experts(name: str, implementation: str) -> None:
    model = BY_NAME[name].build()
    model.set_experts_implementation(implementation)
    ids = token_ids(2, 5)
    rows: list[tuple[int, int] | None] = [(0, 0)] * 3 + [(0, 1)] * 2 + [None] + [(1, 0)] * 4
    counted = [row if row is not None else (0, 0) for row in rows]
    with torch.no_grad():
        alone = model(ids).logits
    with (
        torch.no_grad(),
        ExpertSums(model, 2) as sums,
        sums.tokens(
            torch.tensor([row[0] for row in counted]),
            torch.tensor([row[1] for row in counted]),
            torch.tensor([row is not None for row in rows]),
        ),
    ):
        watched = model(ids).logits
    assert torch.equal(alone, watched)  # looking changes no bit
    mass, contribution = sums_in_a_loop(model, ids, rows, 2)
    torch.testing.assert_close(sums.totals["gate_mass"].float(), mass, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        sums.totals["contribution"].float(), contribution, rtol=2e-4, atol=1e-5
    )
    assert float(contribution.sum()) > 0


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_tokens_that_are_computed_once_count_for_every_row(implementation: str) -> None:
    model = BY_NAME["olmoe"].build()
    model.set_experts_implementation(implementation)
    ids = token_ids(3, 6)
    ids[:, :4] = ids[0, :4]
    mask = torch.ones_like(ids)
    mask[1, 5] = 0
    response = torch.arange(3)[:, None].expand(3, 6)
    announced = (response, torch.zeros(3, 6, dtype=torch.long), mask.bool())
    found = []
    for distinct in (False, True):
        with (
            torch.no_grad(),
            ExpertSums(model, 3) as sums,
            sums.tokens(*announced),
            ExitStack() as stack,
        ):
            if distinct:
                sums.expand = stack.enter_context(computing_distinct(model))
            model(input_ids=ids, attention_mask=mask)
        found.append(sums.totals)
    for name in ("gate_mass", "contribution"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-6)
    # Each of 6, 5 and 6 tokens has two weights that add up to what the router made of them.
    assert found[1]["contribution"].sum(dim=(1, 3)).min() > 0


def test_another_quantity_of_outputs_is_summed_as_it_is_given() -> None:
    model = BY_NAME["mixtral"].build()
    ids = token_ids(1, 4)
    direction = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))

    def along(position: int, weighted: torch.Tensor) -> torch.Tensor:
        return weighted @ direction[position]

    announced = (torch.zeros(4), torch.zeros(4), torch.ones(4))
    with torch.no_grad(), ExpertSums(model, 1, of_outputs={"along": along}) as sums:
        outputs = []
        for layer in find_moe_layers(model).layers:
            module = model.get_submodule(layer.experts_name)
            module.register_forward_hook(lambda m, a, out: outputs.append(out))
        with sums.tokens(*announced):
            model(ids)
    assert set(sums.totals) == {"gate_mass", "along"}
    for position, output in enumerate(outputs):  # a layer's weighted outputs add up to its output
        whole = (output.reshape(4, -1) @ direction[position]).sum()
        assert float(sums.totals["along"][0, 0, position].sum()) == pytest.approx(
            float(whole), rel=1e-4
        )


def test_a_pass_of_unknown_tokens_is_refused() -> None:
    model = BY_NAME["mixtral"].build()
    with torch.no_grad(), ExpertSums(model, 1), pytest.raises(RoutingError, match="whose tokens"):
        model(token_ids(1, 3))


def test_nothing_stays_on_the_model() -> None:
    model = BY_NAME["mixtral"].build()
    with ExpertSums(model, 1):
        pass
    for layer in find_moe_layers(model).layers:
        experts = model.get_submodule(layer.experts_name)
        assert "forward" not in experts.__dict__
        assert not experts._forward_hooks and not experts._forward_pre_hooks
