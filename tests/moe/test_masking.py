"""Masked routing is ordinary routing over the allowed experts only, for every architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)

from architectures import ARCHITECTURES, BY_NAME, Architecture, enable_checkpointing, token_ids
from routing_references import (
    Routing,
    Token,
    logits_plus_bias,
    root_of_softplus,
    scores_plus_bias,
    shared_with_routed,
    softmax_in_groups,
    softmax_then_top_k,
    sparse_mixer,
    top_k_then_softmax,
)
from steermoe.errors import ModelError, TrainingError
from steermoe.moe.description import MoEDescription, MoELayer
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import masked_experts, masks_of_samples, router_noise_off
from steermoe.moe.routing import RoutingRecorder
from steermoe.moe.slices import attach_expert_slices
from steermoe.records import NO_EXPERT

# Every routing family, with the constants that the tiny configs leave at their defaults.
IN_GROUPS = {"num_groups": 2}
ROUTINGS: dict[str, Routing] = {
    "olmoe": softmax_then_top_k(normalise=False),
    "flex_olmo": softmax_then_top_k(normalise=False),
    "qwen2_moe": softmax_then_top_k(normalise=False),
    "qwen3_moe": softmax_then_top_k(normalise=False),
    "qwen3_next": softmax_then_top_k(normalise=True),
    "qwen3_5_moe_text": softmax_then_top_k(normalise=True),
    "qwen4_exp_text": softmax_then_top_k(normalise=True),
    "mixtral": softmax_then_top_k(normalise=True),
    "minimax": softmax_then_top_k(normalise=True),
    "mellum": softmax_then_top_k(normalise=True),
    "hunyuan_v1_moe": softmax_then_top_k(normalise=True),
    "jamba": softmax_then_top_k(normalise=False),
    "ernie4_5_moe": softmax_then_top_k(normalise=True, biased=True),
    "gemma4_text": softmax_then_top_k(normalise=True),
    "deepseek_v2": softmax_in_groups(normalise=False, members=1),
    "mistral4": softmax_in_groups(normalise=True, members=2),
    "gpt_oss": top_k_then_softmax,
    "granitemoe": top_k_then_softmax,
    "granitemoe_swa": top_k_then_softmax,
    "granitemoeshared": top_k_then_softmax,
    "granitemoehybrid": top_k_then_softmax,
    "aria_text": top_k_then_softmax,
    "cohere2_moe": top_k_then_softmax,
    "phimoe": sparse_mixer(threshold=0.01),
    "afmoe": scores_plus_bias(),
    "flint": scores_plus_bias(biased=False),
    "hy_v3": scores_plus_bias(scale=2.826),
    "kolibri1": logits_plus_bias,
    "laguna": scores_plus_bias(),
    "lfm2_moe": scores_plus_bias(),
    "minimax_m2": scores_plus_bias(),
    "minimax_m3_vl_text": scores_plus_bias(),
    "inkling_text": shared_with_routed(scale=8.0),
    "inkling2_text": scores_plus_bias(scale=8.0),
    "deepseek_v3": scores_plus_bias(scale=2.5, **IN_GROUPS),
    "deepseek_v32": scores_plus_bias(scale=2.5, **IN_GROUPS),
    "axk1": scores_plus_bias(scale=2.5, **IN_GROUPS),
    "axk2": scores_plus_bias(scale=2.5, **IN_GROUPS),
    "beam": scores_plus_bias(**IN_GROUPS),
    "dots1": scores_plus_bias(normalise=False, **IN_GROUPS),
    "exaone_moe": scores_plus_bias(scale=2.5, **IN_GROUPS),
    "glm4_moe": scores_plus_bias(**IN_GROUPS),
    "glm4_moe_lite": scores_plus_bias(scale=1.8, **IN_GROUPS),
    "glm_moe_dsa": scores_plus_bias(scale=2.5, **IN_GROUPS),
    "hy_v4": scores_plus_bias(scale=2.827, **IN_GROUPS),
    "mimo_v2_flash": scores_plus_bias(**IN_GROUPS),
    "solar_open": scores_plus_bias(**IN_GROUPS),
    "bailing_hybrid": scores_plus_bias(scale=2.5, **IN_GROUPS),
    "kimi_linear": scores_plus_bias(scale=2.446, **IN_GROUPS),
    "nemotron_h": scores_plus_bias(**IN_GROUPS),
    "muse_spark": scores_plus_bias(),
    "deepseek_v4": scores_plus_bias(scale=1.5, score=root_of_softplus),
}

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda x: x.name)


class Seen:
    """What went into the routers and the experts of one pass."""

    def __init__(self) -> None:
        self.hidden: dict[int, torch.Tensor] = {}
        self.index: dict[int, torch.Tensor] = {}
        self.weight: dict[int, torch.Tensor] = {}

    def dense_weights(self, layer: int, num_experts: int) -> torch.Tensor:
        """Weight of each expert for each token, `(T, E)`."""
        dense = torch.zeros(self.index[layer].shape[0], num_experts, dtype=torch.float64)
        return dense.scatter_add(1, self.index[layer], self.weight[layer].double())


@contextmanager
def watching(model: torch.nn.Module, description: MoEDescription) -> Iterator[Seen]:
    seen = Seen()
    handles = []

    def on_router(layer: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            seen.hidden[layer] = args[0].detach().flatten(0, -2)

        return hook

    def on_experts(layer: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            seen.index[layer], seen.weight[layer] = args[1].detach(), args[2].detach()

        return hook

    for layer in description.layers:
        router = model.get_submodule(layer.router_name)
        experts = model.get_submodule(layer.experts_name)
        handles.append(router.register_forward_pre_hook(on_router(layer.index)))
        handles.append(experts.register_forward_pre_hook(on_experts(layer.index)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def tokens_of(
    model: torch.nn.Module, layer: MoELayer, hidden: torch.Tensor, allowed: np.ndarray
) -> list[Token]:
    """The tokens of one layer, logits worked out from the router's weights in float64."""
    router, block = model.get_submodule(layer.router_name), model.get_submodule(layer.block_name)
    x = hidden.double()
    if hasattr(router, "proj"):  # gemma4 reads a normalised and scaled input
        x = x * (x.pow(2).mean(-1, keepdim=True) + router.norm.eps).rsqrt()
        x = x * router.scale.double() * router.scalar_root_size
    matrix = next(m for m in router.modules() if getattr(m, "weight", torch.ones(1)).dim() == 2)
    logits = x @ matrix.weight.double().T
    if isinstance(getattr(matrix, "bias", None), torch.Tensor):
        logits = logits + matrix.bias.double()
    logits = logits * getattr(router, "output_multiplier", 1.0)
    cap = getattr(router, "router_logit_softcapping", 0.0)
    if cap:
        logits = torch.tanh(logits / cap) * cap
    names = ("e_score_correction_bias", "expert_bias")
    biases = [
        tensor
        for module in (router, block)
        for name, tensor in [*module.named_buffers(), *module.named_parameters()]
        if name.rpartition(".")[2] in names
    ]
    scale = getattr(router, "per_expert_scale", None)
    if hasattr(router, "global_scale"):
        scale = router.global_scale.expand(layer.num_experts)
    return [
        Token(
            logits=row[: layer.num_experts],
            allowed=np.flatnonzero(allowed).tolist(),
            top_k=layer.top_k,
            bias=biases[0].flatten().tolist() if biases else [],
            shared_logits=row[layer.num_experts :],
            expert_scale=[] if scale is None else scale.tolist(),
        )
        for row in logits.tolist()
    ]


def some_allowed(
    description: MoEDescription, count: int, seed: int = 0, samples: int | None = None
) -> np.ndarray:
    """A mask that allows `count` random experts of each layer that can be masked."""
    generator = np.random.default_rng(seed)
    shape = (samples or 1, description.num_layers, description.num_experts)
    ranks = generator.random(shape).argsort(axis=-1)
    allowed = ranks < count
    allowed[:, [layer.is_hash_routed for layer in description.layers]] = True
    return allowed if samples else allowed[0]


def assert_as_reference(
    architecture: Architecture,
    model: torch.nn.Module,
    layer: MoELayer,
    seen: Seen,
    allowed_of_token: list[np.ndarray],
) -> None:
    route = ROUTINGS[architecture.name]
    dense = seen.dense_weights(layer.index, layer.num_experts)
    tokens: list[Token] = []
    for position, allowed in enumerate(allowed_of_token):
        hidden = seen.hidden[layer.index][position : position + 1]
        tokens += tokens_of(model, layer, hidden, allowed)
    assert len(tokens) == len(dense)
    for token, weights in zip(tokens, dense, strict=True):
        expected = torch.zeros(layer.num_experts, dtype=torch.float64)
        for expert, weight in route(token).items():
            expected[expert] = weight
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
        forbidden = sorted(set(range(layer.num_experts)) - set(token.allowed))
        assert (weights[forbidden] == 0).all()


@each_architecture
@pytest.mark.parametrize("count", [8, 5, 3, 1])
def test_masked_routing_is_ordinary_routing_over_the_allowed_experts(
    architecture: Architecture, count: int
) -> None:
    model = architecture.build()
    description = find_moe_layers(model)
    allowed = some_allowed(description, count)
    ids = token_ids(2, 5)
    with torch.no_grad(), masked_experts(model, allowed), watching(model, description) as seen:
        logits = model(ids).logits
    assert not logits.isnan().any()
    for layer, allowed_E in zip(description.layers, allowed, strict=True):
        if not layer.is_hash_routed:
            assert_as_reference(architecture, model, layer, seen, [allowed_E] * ids.numel())


@each_architecture
@pytest.mark.parametrize("count", [3, 1])
@pytest.mark.parametrize("recorder_first", [True, False])
def test_what_is_recorded_under_a_mask_is_what_is_chosen_and_spare_slots_hold_no_expert(
    architecture: Architecture, count: int, recorder_first: bool
) -> None:
    model = architecture.build()
    description = find_moe_layers(model)
    allowed = some_allowed(description, count)
    recorder = RoutingRecorder(model)
    contexts = [recorder, masked_experts(model, allowed)]
    with (
        torch.no_grad(),
        watching(model, description) as seen,
        contexts[not recorder_first],
        contexts[recorder_first],
    ):
        model(token_ids(2, 5))
    (recorded,) = recorder.take()
    for position, layer in enumerate(description.layers):
        if layer.is_hash_routed:
            continue
        tokens = tokens_of(model, layer, seen.hidden[layer.index], allowed[position])
        for token, slots in zip(tokens, recorded[:, position].tolist(), strict=True):
            chosen = sorted(ROUTINGS[architecture.name](token))
            spare = [NO_EXPERT] * (layer.top_k - len(chosen))
            assert sorted(slots) == spare + chosen


def test_a_slot_is_spare_where_any_of_two_masks_says_so() -> None:
    model = BY_NAME["mixtral"].build()
    outer, inner = np.zeros((2, 8), dtype=bool), np.zeros((2, 8), dtype=bool)
    outer[:, [2, 5]] = inner[:, [5, 6]] = True
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        with masked_experts(model, outer):
            with masked_experts(model, inner):
                model(token_ids(1, 4))
            model(token_ids(1, 4))
        model(token_ids(1, 4))
    both, one, none = (recorded.sort(dim=-1).values.tolist() for recorded in recorder.take())
    assert both == [[[NO_EXPERT, 5]] * 2] * 4
    assert one == [[[2, 5]] * 2] * 4
    assert all(0 <= slots[0] < slots[1] for token in none for slots in token)


@each_architecture
def test_each_sample_has_its_own_mask_and_the_others_are_untouched(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    description = find_moe_layers(model)
    allowed = some_allowed(description, 3, seed=1, samples=3)
    ids = token_ids(3, 4)
    with (
        torch.no_grad(),
        masked_experts(model, allowed, rows=[True, False, True]),
        watching(model, description) as seen,
    ):
        logits = model(ids).logits
    for position, layer in enumerate(description.layers):
        if layer.is_hash_routed:
            continue
        everything = np.ones(layer.num_experts, dtype=bool)
        of_sample = [allowed[0, position], everything, allowed[2, position]]
        of_token = [of_sample[token // 4] for token in range(12)]
        assert_as_reference(architecture, model, layer, seen, of_token)
    with torch.no_grad():
        torch.testing.assert_close(logits[1], model(ids).logits[1], rtol=1e-4, atol=1e-5)


EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def ungrouped(architecture: Architecture, num_experts: int) -> Architecture:
    """The same architecture with so many experts and no groups of them."""
    options = dict(architecture.options)
    text = options.get("text_config", options)
    changed = {name: num_experts for name in EXPERT_COUNTS if name in text}
    changed |= {name: 1 for name in ("n_group", "num_expert_group") if name in text}
    changed |= {"topk_group": 1} if "topk_group" in text else {}
    if text is options:
        options |= changed
    else:
        options["text_config"] = {**text, **changed}
    return dataclasses.replace(architecture, options=options, num_experts=num_experts)


def copy_experts(small: torch.nn.Module, large: torch.nn.Module, kept: list[int]) -> None:
    """Give a model of fewer experts the weights of the kept ones."""
    theirs = {**dict(large.named_parameters()), **dict(large.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
            source = theirs[name]
            for axis, (few, many) in enumerate(zip(tensor.shape, source.shape, strict=True)):
                if few != many:
                    after = range(source.shape[axis] - (few - len(kept)), source.shape[axis])
                    source = source.index_select(axis, torch.tensor([*kept, *after]))
            tensor.copy_(source)


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@each_architecture
def test_a_masked_model_and_its_gradients_are_those_of_the_model_without_the_other_experts(
    architecture: Architecture,
) -> None:
    if architecture.name == "deepseek_v4":
        pytest.skip("its hash layer has a table of expert ids")
    kept = [1, 4, 6]
    large = ungrouped(architecture, 8).build()
    small = ungrouped(architecture, len(kept)).build()
    copy_experts(small, large, kept)
    ids = token_ids(2, 6)
    description = find_moe_layers(large)
    allowed = np.zeros((description.num_layers, 8), dtype=bool)
    allowed[:, kept] = True
    with masked_experts(large, allowed):
        masked_loss = loss_of(large, ids)
    expected_loss = loss_of(small, ids)
    torch.testing.assert_close(masked_loss, expected_loss, rtol=1e-5, atol=1e-6)
    masked_loss.backward()
    expected_loss.backward()
    theirs = dict(large.named_parameters())
    compared = 0
    for name, parameter in small.named_parameters():
        if parameter.grad is None:
            continue
        gradient = theirs[name].grad
        if gradient.shape != parameter.shape:
            few, many = parameter.shape[0], gradient.shape[0]
            forbidden = sorted(set(range(8)) - set(kept))
            assert (gradient[forbidden] == 0).all()
            gradient = gradient[[*kept, *range(8, 8 + few - len(kept))]]
            assert many == few + len(forbidden)
            compared += 1
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
    assert compared >= 3  # a router and both projections of a layer


@each_architecture
def test_gradients_stay_finite_where_fewer_experts_are_allowed_than_chosen(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    description = find_moe_layers(model)
    with masked_experts(model, some_allowed(description, 1)):
        loss_of(model, token_ids(2, 5)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@each_architecture
def test_a_layer_that_allows_none_or_all_is_left_as_it_is(architecture: Architecture) -> None:
    model = architecture.build()
    description = find_moe_layers(model)
    ids = token_ids(2, 5)
    nothing = np.zeros((description.num_layers, description.num_experts), dtype=bool)
    with torch.no_grad():
        expected = model(ids).logits
        with masked_experts(model, nothing):
            assert torch.equal(model(ids).logits, expected)
        with masked_experts(model, ~nothing):
            assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", "phimoe", "lfm2_moe"])
def test_one_layer_can_be_masked_while_another_is_not(name: str) -> None:
    model = dataclasses.replace(BY_NAME[name]).build()
    description = find_moe_layers(model)
    allowed = np.zeros((description.num_layers, description.num_experts), dtype=bool)
    allowed[-1, [0, 3]] = True
    with torch.no_grad(), masked_experts(model, allowed), watching(model, description) as seen:
        model(token_ids(2, 5))
    everything = np.ones(description.num_experts, dtype=bool)
    for layer, allowed_E in zip(description.layers, allowed, strict=True):
        expected = allowed_E if allowed_E.any() else everything
        assert_as_reference(BY_NAME[name], model, layer, seen, [expected] * 10)


SEVERAL_GROUPS = {"num_groups": 4, "kept": 2}
GROUPED: dict[str, Routing] = {
    "deepseek_v2": softmax_in_groups(normalise=False, members=1, **SEVERAL_GROUPS),
    "mistral4": softmax_in_groups(normalise=True, members=2, **SEVERAL_GROUPS),
    "deepseek_v3": scores_plus_bias(scale=2.5, **SEVERAL_GROUPS),
    "glm4_moe": scores_plus_bias(**SEVERAL_GROUPS),
    "dots1": scores_plus_bias(normalise=False, **SEVERAL_GROUPS),
    "nemotron_h": scores_plus_bias(**SEVERAL_GROUPS),
}


@pytest.mark.parametrize("count", [16, 11, 6, 2, 1])
@pytest.mark.parametrize("name", GROUPED)
def test_two_of_four_groups_are_chosen_by_their_allowed_experts(name: str, count: int) -> None:
    groups = {"n_group": 4, "topk_group": 2, "n_routed_experts": 16, "num_experts_per_tok": 3}
    model = dataclasses.replace(BY_NAME[name], options=BY_NAME[name].options | groups).build()
    description = find_moe_layers(model)
    allowed = some_allowed(description, count, samples=3)
    with (
        torch.no_grad(),
        masked_experts(model, allowed),
        watching(model, description) as seen,
        RoutingRecorder(model) as recorder,
    ):
        model(token_ids(3, 6))
    (recorded,) = recorder.take()
    for position, layer in enumerate(description.layers):
        dense = seen.dense_weights(layer.index, 16)
        for place, weights in enumerate(dense):
            hidden = seen.hidden[layer.index][place : place + 1]
            (token,) = tokens_of(model, layer, hidden, allowed[place // 6, position])
            expected = torch.zeros(16, dtype=torch.float64)
            chosen = GROUPED[name](token)
            for expert, weight in chosen.items():
                expected[expert] = weight
            torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
            spare = [NO_EXPERT] * (3 - len(chosen))
            assert sorted(recorded[place, position].tolist()) == spare + sorted(chosen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_a_compiled_model_is_masked_and_differentiated_alike(name: str) -> None:
    ids = token_ids(2, 6)
    gradients = []
    for is_compiled in (False, True):
        model = BY_NAME[name].build().train()
        allowed = some_allowed(find_moe_layers(model), 2, samples=2)
        run = torch.compile(model, backend="aot_eager") if is_compiled else model
        with torch.no_grad():
            plain = run(ids).logits  # compiled before there is a mask
        with masked_experts(model, allowed, rows=[True, False]):
            masked = run(ids).logits
        masked.square().mean().backward()
        with torch.no_grad():
            assert torch.equal(run(ids).logits, plain)  # and after it
        assert (masked[0] - plain[0]).abs().max() > 1e-4
        torch.testing.assert_close(masked[1], plain[1], rtol=1e-4, atol=1e-5)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    eager, compiled = gradients
    assert eager.keys() == compiled.keys()
    for parameter, gradient in eager.items():
        torch.testing.assert_close(compiled[parameter], gradient, rtol=1e-4, atol=1e-7)


def test_a_group_with_one_allowed_expert_can_win_by_that_expert_alone() -> None:
    # Two groups of four, one kept; experts 0 and 5 are allowed, each alone in its group. Whatever
    # the forbidden experts score, the token goes to the better of the two, with the whole weight.
    architecture = BY_NAME["glm4_moe"]
    model = architecture.build()
    description = find_moe_layers(model)
    allowed = np.zeros((1, 8), dtype=bool)
    allowed[0, [0, 5]] = True
    with torch.no_grad(), masked_experts(model, allowed), watching(model, description) as seen:
        model(token_ids(4, 8))
    weights = seen.dense_weights(1, 8)
    assert set(weights.argmax(dim=-1).tolist()) == {0, 5}
    torch.testing.assert_close(weights.max(dim=-1).values, torch.ones(32, dtype=torch.float64))
    assert ((weights > 0).sum(dim=-1) == 1).all()


def gradients_of(
    model: torch.nn.Module, allowed: np.ndarray, backward: str, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Gradients of a masked pass and an unmasked one before it, with the backward pass somewhere."""
    ids = token_ids(2, 6, seed)
    other = some_allowed(find_moe_layers(model), 3, seed=5)
    with router_noise_off(model):
        unmasked = loss_of(model, ids)
        with masked_experts(model, allowed):
            loss = loss_of(model, ids) + 2 * unmasked
            if backward == "inside":
                loss.backward()
        if backward == "outside":
            loss.backward()
        if backward == "inside another mask":
            with masked_experts(model, other):
                loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trained", ["everything", "experts of the last layer"])
@pytest.mark.parametrize("backward", ["inside", "outside", "inside another mask"])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "name", ["mixtral", "deepseek_v3", "gpt_oss", "gemma4_text", "nemotron_h", "afmoe", "phimoe"]
)
def test_a_recomputed_pass_is_masked_as_its_first_run(
    name: str, use_reentrant: bool, backward: str, trained: str
) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        model = BY_NAME[name].build().train()
        description = find_moe_layers(model)
        if trained != "everything":
            attach_expert_slices(model, [(description.layer_indices[-1], e) for e in (1, 2, 5)])
        if is_checkpointed:
            enable_checkpointing(model, use_reentrant)
            if use_reentrant:
                model.enable_input_require_grads()
        gradients.append(gradients_of(model, some_allowed(description, 2), backward))
    plain, recomputed = gradients
    assert plain.keys() <= recomputed.keys()
    assert any(gradient.abs().max() > 1e-5 for gradient in plain.values())
    for parameter, gradient in plain.items():
        torch.testing.assert_close(recomputed[parameter], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backward", ["inside", "outside", "inside another mask"])
@pytest.mark.parametrize(
    ("implementation", "is_nested"),
    [
        (CheckpointImpl.NO_REENTRANT, False),
        (CheckpointImpl.NO_REENTRANT, True),
        (CheckpointImpl.REENTRANT, True),
    ],
)
def test_layers_that_torch_checkpoints_see_their_mask_again(
    implementation: CheckpointImpl, is_nested: bool, backward: str
) -> None:
    plain, wrapped = BY_NAME["mixtral"].build().train(), BY_NAME["mixtral"].build().train()
    wrapped.enable_input_require_grads()
    if is_nested:
        enable_checkpointing(wrapped)
    layers = wrapped.model.layers
    for position, layer in enumerate(layers):
        layers[position] = checkpoint_wrapper(layer, implementation)
    description = find_moe_layers(wrapped)
    assert description.layer_indices == (0, 1)
    allowed = some_allowed(description, 2)
    expected = gradients_of(plain, allowed, backward)
    found = gradients_of(wrapped, allowed, backward)
    for name, gradient in found.items():
        unwrapped = name.replace("_checkpoint_wrapped_module.", "")
        torch.testing.assert_close(gradient, expected[unwrapped], rtol=1e-4, atol=1e-7)
    assert len(found) == len(expected)


def test_two_masks_at_once_are_both_seen_again() -> None:
    # Experts that the outer mask and the inner one allow: 1 and 2 of 0..2 and 1..3.
    outer, inner, both = (np.zeros((2, 8), dtype=bool) for _ in range(3))
    outer[:, :3] = inner[:, 1:4] = both[:, 1:3] = True
    plain, nested = BY_NAME["mixtral"].build().train(), BY_NAME["mixtral"].build().train()
    enable_checkpointing(nested)
    ids = token_ids(2, 6)
    with masked_experts(plain, both):
        loss_of(plain, ids).backward()
    with masked_experts(nested, outer):
        with masked_experts(nested, inner):
            loss = loss_of(nested, ids)
        loss.backward()
    for parameter, theirs in zip(plain.parameters(), nested.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_loss_of_a_masked_pass_differs_from_the_unmasked_one() -> None:
    model = BY_NAME["olmoe"].build()
    ids = token_ids(2, 6)
    with torch.no_grad(), masked_experts(model, some_allowed(find_moe_layers(model), 2)):
        masked = loss_of(model, ids)
    with torch.no_grad():
        assert abs(float(masked - loss_of(model, ids))) > 1e-4


def test_generation_can_be_masked_sample_by_sample() -> None:
    model = BY_NAME["qwen3_moe"].build()
    description = find_moe_layers(model)
    allowed = some_allowed(description, 3, samples=2)
    ids = token_ids(2, 6)
    mask = torch.ones_like(ids)
    with masked_experts(model, allowed):
        both = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row in range(2):
        with masked_experts(model, allowed[row]):
            alone = model.generate(
                ids[row : row + 1], attention_mask=mask[:1], max_new_tokens=6, do_sample=False
            )
        assert both[row, : alone.shape[1]].tolist() == alone[0].tolist()


def test_nothing_is_left_behind_even_after_an_error() -> None:
    model = BY_NAME["mixtral"].build()
    enable_checkpointing(model)
    layer = model.model.layers[0]
    before = layer._gradient_checkpointing_func
    with (
        pytest.raises(RuntimeError, match="stop"),
        masked_experts(model, some_allowed(find_moe_layers(model), 2)),
    ):
        raise RuntimeError("stop")
    assert layer._gradient_checkpointing_func is before
    assert "forward" not in vars(layer.mlp.gate)
    assert not layer.mlp.experts._forward_pre_hooks
    assert "spare_slots" not in vars(layer.mlp.experts)


def test_bfloat16_routers_are_masked_too() -> None:
    model = BY_NAME["gpt_oss"].build().to(torch.bfloat16)
    description = find_moe_layers(model)
    with (
        torch.no_grad(),
        masked_experts(model, some_allowed(description, 1)),
        watching(model, description) as seen,
    ):
        assert not model(token_ids(2, 5)).logits.isnan().any()
    assert ((seen.dense_weights(0, 8) > 0).sum(dim=-1) == 1).all()


def test_a_layer_that_looks_experts_up_by_token_is_refused() -> None:
    model = BY_NAME["deepseek_v4"].build()
    allowed = np.ones((2, 8), dtype=bool)
    allowed[0, 3] = False
    with (
        pytest.raises(ModelError, match="layer 0 looks its experts up by token id"),
        masked_experts(model, allowed),
    ):
        pass


@pytest.mark.parametrize("shape", [(2, 7), (3, 8), (8,), (1, 2, 3, 8)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = BY_NAME["mixtral"].build()
    with (
        pytest.raises(TrainingError, match=r"an expert mask for this model has shape \(2, 8\)"),
        masked_experts(model, np.ones(shape, dtype=bool)),
    ):
        pass


def test_rows_and_masks_must_agree_on_the_samples() -> None:
    model = BY_NAME["mixtral"].build()
    allowed = np.ones((3, 2, 8), dtype=bool)
    with (
        pytest.raises(TrainingError, match="rows has 2 samples, but there are masks for 3"),
        masked_experts(model, allowed, rows=[True, False]),
    ):
        pass


def test_a_batch_of_another_size_than_its_masks_is_refused() -> None:
    model = BY_NAME["mixtral"].build()
    allowed = some_allowed(find_moe_layers(model), 2, samples=3)
    with (
        pytest.raises(TrainingError, match="3 samples, but the pass has 10 tokens"),
        masked_experts(model, allowed),
    ):
        model(token_ids(2, 5))


def test_samples_take_the_mask_of_their_batch() -> None:
    first, second = np.eye(2, dtype=bool), np.ones((2, 2), dtype=bool)
    default = np.zeros((2, 2), dtype=bool)
    masks = masks_of_samples({0: first, 3: second}, [3, 0, -1, 3], default)
    assert masks.shape == (4, 2, 2)
    assert masks.tolist() == [x.tolist() for x in (second, first, default, second)]


NOISY = {
    "mixtral": {"router_jitter_noise": 0.5},
    "minimax": {"router_jitter_noise": 0.5},
    "minimax_m2": {"router_jitter_noise": 0.5},
    "phimoe": {"input_jitter_noise": 0.5, "router_jitter_noise": 0.5},
}


@pytest.mark.parametrize("name", NOISY)
def test_router_noise_is_off_while_the_model_trains(name: str) -> None:
    architecture = BY_NAME[name]
    options = {**architecture.options, **NOISY[name]}
    model = dataclasses.replace(architecture, options=options).build()
    ids = token_ids(2, 6)
    expected = model(ids).logits
    model.train()
    assert not torch.equal(model(ids).logits, expected)
    with router_noise_off(model):
        model.train()  # as a trainer does before every step
        assert torch.equal(model(ids).logits, expected)
    assert all(module.training for module in model.modules())
    assert not torch.equal(model(ids).logits, expected)


def test_router_noise_off_leaves_checkpointing_on() -> None:
    model = BY_NAME["gemma4_text"].build().train()
    with router_noise_off(model):
        model(token_ids(2, 5))
        assert all(layer.training for layer in model.model.layers)


FAMILIES = ["olmoe", "mixtral", "gpt_oss", "deepseek_v2", "deepseek_v3", "lfm2_moe", "phimoe"]
MODELS = {name: BY_NAME[name].build() for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_mask_routes_over_its_experts_alone(name: str, data: st.DataObject) -> None:
    model = MODELS[name]
    description = find_moe_layers(model)
    samples = data.draw(st.integers(1, 3), label="samples")
    size = samples * description.num_layers * description.num_experts
    bits = data.draw(st.lists(st.booleans(), min_size=size, max_size=size), label="allowed")
    allowed = np.array(bits).reshape(samples, description.num_layers, description.num_experts)
    rows = data.draw(st.lists(st.booleans(), min_size=samples, max_size=samples), label="rows")
    length = data.draw(st.integers(1, 4), label="length")
    ids = token_ids(samples, length, seed=data.draw(st.integers(0, 99), label="seed"))
    with (
        torch.no_grad(),
        masked_experts(model, allowed, rows=rows),
        watching(model, description) as seen,
    ):
        assert not model(ids).logits.isnan().any()
    everything = np.ones(description.num_experts, dtype=bool)
    for position, layer in enumerate(description.layers):
        of_sample = [
            allowed[sample, position]
            if rows[sample] and allowed[sample, position].any()
            else everything
            for sample in range(samples)
        ]
        of_token = [of_sample[token // length] for token in range(samples * length)]
        assert_as_reference(BY_NAME[name], model, layer, seen, of_token)
