"""What is recorded is what the routers chose, in every way a model is run."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from architectures import ARCHITECTURES, BY_NAME, Architecture, enable_checkpointing, token_ids
from steermoe.errors import RoutingError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import masked_experts
from steermoe.moe.routing import RoutingCounter, RoutingRecorder

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda x: x.name)

PAD = 0


def returned_by_routers(model: torch.nn.Module) -> tuple[list[torch.Tensor], list[Any]]:
    """Collects, layer by layer, the integer tensor that each router returns from now on."""
    chosen: list[torch.Tensor] = []
    handles = []

    def hook(module: Any, args: Any, output: tuple[torch.Tensor, ...]) -> None:
        index = next(x for x in output if x.dtype == torch.int64)
        chosen.append(index.flatten(0, -2))

    for layer in find_moe_layers(model).layers:
        handles.append(model.get_submodule(layer.router_name).register_forward_hook(hook))
    return chosen, handles


@each_architecture
def test_what_is_recorded_is_what_the_routers_returned(architecture: Architecture) -> None:
    model = architecture.build()
    router = model.get_submodule(find_moe_layers(model).layers[0].router_name)
    if type(router) is torch.nn.Linear:
        pytest.skip("in older releases its block chooses, and the router returns logits alone")
    chosen, handles = returned_by_routers(model)
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(token_ids(2, 5))
    for handle in handles:
        handle.remove()
    (recorded,) = recorder.take()
    assert recorded.shape == (10, len(architecture.layer_indices), architecture.top_k)
    assert recorded.dtype == torch.int64
    for position, index in enumerate(chosen):
        assert torch.equal(recorded[:, position], index)


@pytest.mark.parametrize("name", ["olmoe", "mixtral", "qwen3_moe", "gpt_oss", "granitemoe"])
def test_recorded_experts_have_the_largest_logits(name: str) -> None:
    # These routers choose by their logits alone, so a sort of the logits is an independent answer.
    model = BY_NAME[name].build()
    inputs: list[torch.Tensor] = []
    layers = find_moe_layers(model).layers
    for layer in layers:
        router = model.get_submodule(layer.router_name)
        router.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2)))
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(token_ids(2, 5))
    (recorded,) = recorder.take()
    for position, layer in enumerate(layers):
        router = model.get_submodule(layer.router_name)
        bias = router.bias.tolist() if hasattr(router, "bias") else [0.0] * 8
        for token, hidden in enumerate(inputs[position]):
            products = (router.weight.double() @ hidden.double()).tolist()
            logits = [x + b for x, b in zip(products, bias, strict=True)]
            best = sorted(range(8), key=lambda e: -logits[e])[:2]
            assert recorded[token, position].tolist() == best


def generated(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, count: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with RoutingRecorder(model) as recorder:
        tokens = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=PAD,
        )
    return tokens, recorder.take()


@each_architecture
def test_cached_decoding_records_one_pass_a_step_and_the_routes_of_a_teacher_forced_pass(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    ids = token_ids(2, 5)
    tokens, passes = generated(model, ids, torch.ones_like(ids), 4)
    shape = (len(architecture.layer_indices), architecture.top_k)
    assert [p.shape for p in passes] == [(10, *shape)] + [(2, *shape)] * 3
    rows = [passes[0].view(2, 5, *shape)] + [step.view(2, 1, *shape) for step in passes[1:]]
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(tokens[:, :-1])
    (teacher_forced,) = recorder.take()
    decoded = torch.cat(rows, dim=1).flatten(0, 1)
    assert torch.equal(decoded.sort(dim=-1).values, teacher_forced.sort(dim=-1).values)


@pytest.mark.parametrize("name", ["olmoe", "qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"])
def test_left_padding_changes_no_route(name: str) -> None:
    model = BY_NAME[name].build()
    short, long = token_ids(1, 3, seed=1), token_ids(1, 6, seed=2)
    batch = torch.cat([torch.cat([torch.full((1, 3), PAD), short], dim=1), long])
    tokens, passes = generated(model, batch, (batch != PAD).long(), 4)
    alone_tokens, alone = generated(model, short, torch.ones_like(short), 4)
    assert tokens[0, 3:].tolist() == alone_tokens[0].tolist()
    prefill = passes[0].view(2, 6, *passes[0].shape[1:])
    assert torch.equal(prefill[0, 3:], alone[0])
    for step, step_alone in zip(passes[1:], alone[1:], strict=True):
        assert torch.equal(step[:1], step_alone)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "jamba"])
def test_a_recomputed_pass_is_not_counted_twice(name: str, use_reentrant: bool) -> None:
    model = BY_NAME[name].build().train()
    enable_checkpointing(model, use_reentrant)
    model.enable_input_require_grads()
    ids = token_ids(2, 5)
    with RoutingRecorder(model, router_logits=True) as recorder:
        model(ids).logits.sum().backward()
    assert len(recorder.logits) == 1
    (recorded,) = recorder.take()
    model.eval()
    with torch.no_grad(), RoutingRecorder(model) as again:
        model(ids)
    assert torch.equal(recorded, again.take()[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3"])
def test_compiled_models_are_recorded_and_counted(name: str) -> None:
    model = BY_NAME[name].build()
    ids = token_ids(2, 5)
    with torch.no_grad():
        with RoutingRecorder(model, router_logits=True) as recorder:
            model(ids)
        logits, expected = recorder.logits[0], recorder.take()[0]
        compiled = torch.compile(model, backend="aot_eager")
        whole = torch.zeros(2, 5, dtype=torch.int64)
        with (
            RoutingRecorder(model, router_logits=True) as recorder,
            RoutingCounter(model, num_responses=1) as counter,
            counter.tokens(whole, whole, whole == 0),
        ):
            compiled(ids)
            compiled(ids)
    for layer in range(expected.shape[1]):
        chosen = torch.bincount(expected[:, layer].flatten(), minlength=8)
        assert torch.equal(counter.active_NSLE[0, 0, layer], 2 * chosen)
    assert counter.num_tokens.tolist() == [[20, 0]]
    torch.testing.assert_close(recorder.logits, [logits, logits])
    assert all(torch.equal(recorded, expected) for recorded in recorder.take())


def test_take_forgets() -> None:
    model = BY_NAME["olmoe"].build()
    with torch.no_grad(), RoutingRecorder(model, router_logits=True) as recorder:
        model(token_ids(1, 4))
        assert len(recorder.passes) == len(recorder.logits) == 1
        assert len(recorder.take()) == 1
        assert recorder.passes == recorder.logits == []
        model(token_ids(1, 2))
    assert [recorded.shape[0] for recorded in recorder.take()] == [2]


def test_nothing_is_recorded_outside_the_context() -> None:
    model = BY_NAME["olmoe"].build()
    with torch.no_grad():
        with RoutingRecorder(model, router_logits=True) as recorder:
            pass
        model(token_ids(1, 4))
    assert recorder.take() == []
    layer = model.model.layers[0].mlp
    assert not layer.experts._forward_pre_hooks
    assert "forward" not in vars(layer.gate)


def test_a_pass_that_stops_half_way_is_refused() -> None:
    model = BY_NAME["olmoe"].build()

    def stop(module: Any, args: Any) -> None:
        raise ValueError("stop")

    handle = model.model.layers[1].register_forward_pre_hook(stop)
    with RoutingRecorder(model) as recorder:
        with pytest.raises(ValueError, match="stop"):
            model(token_ids(1, 4))
        handle.remove()
        with pytest.raises(RoutingError, match="reached 1 of 2 MoE layers"):
            recorder.take()


@each_architecture
def test_router_logits_are_those_of_the_router(architecture: Architecture) -> None:
    model = architecture.build()
    inputs: list[torch.Tensor] = []
    layers = find_moe_layers(model).layers
    for layer in layers:
        router = model.get_submodule(layer.router_name)
        router.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2)))
    with torch.no_grad(), RoutingRecorder(model, router_logits=True) as recorder:
        model(token_ids(2, 3))
    (logits,) = recorder.logits
    assert logits.shape == (6, len(layers), architecture.num_experts)
    assert logits.dtype == torch.float32
    for position, layer in enumerate(layers):
        router = model.get_submodule(layer.router_name)
        hidden = inputs[position]
        if hasattr(router, "proj"):  # gemma4 reads a normalised and scaled input
            hidden = hidden * (hidden.pow(2).mean(-1, keepdim=True) + router.norm.eps).rsqrt()
            hidden = hidden * router.scale * router.scalar_root_size
        matrix = next(m for m in router.modules() if getattr(m, "weight", torch.ones(1)).dim() == 2)
        expected = hidden @ matrix.weight.T
        if isinstance(getattr(matrix, "bias", None), torch.Tensor):
            expected = expected + matrix.bias
        expected = expected[:, : layer.num_experts]
        torch.testing.assert_close(logits[:, position], expected, rtol=1e-4, atol=1e-5)


def test_router_logits_are_kept_in_fp32_without_a_gradient() -> None:
    model = BY_NAME["gpt_oss"].build().to(torch.bfloat16)
    with RoutingRecorder(model, router_logits=True) as recorder:
        model(token_ids(1, 3))
    assert recorder.logits[0].dtype == torch.float32
    assert not recorder.logits[0].requires_grad


@each_architecture
def test_counting_on_the_device_equals_counting_what_was_recorded(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    ids = token_ids(2, 5)
    response = torch.tensor([[1] * 5, [0] * 5])
    segment = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
    valid = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]])
    with (
        torch.no_grad(),
        RoutingRecorder(model) as recorder,
        RoutingCounter(model, num_responses=3) as counter,
        counter.tokens(response, segment, valid),
    ):
        model(ids)
    recorded = recorder.take()[0].unflatten(0, (2, 5)).tolist()
    layers, experts = len(architecture.layer_indices), architecture.num_experts
    expected = np.zeros((3, 2, layers, experts), dtype=int)
    tokens = np.zeros((3, 2), dtype=int)
    for row in range(2):
        for position in range(5):
            if not valid[row, position]:
                continue
            of, part = int(response[row, position]), int(segment[row, position])
            tokens[of, part] += 1
            for layer, chosen in enumerate(recorded[row][position]):
                for expert in chosen:
                    expected[of, part, layer, expert] += 1
    assert counter.active_NSLE.tolist() == expected.tolist()
    assert counter.num_tokens.tolist() == tokens.tolist()
    assert not counter.active_NSLE.is_floating_point()


def counts_in_a_loop(
    prompts: list[list[list[list[int]]]],
    steps: list[list[list[list[int]]]],
    replies: list[list[int]],
    padding: list[int],
    stops: set[int],
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of replies, token by token: `prompts` and `steps` hold the routes of each row's fed tokens."""
    active = np.zeros((len(replies), 2, *shape), dtype=int)
    num_tokens = np.zeros((len(replies), 2), dtype=int)
    for row, reply in enumerate(replies):
        length = next((i for i, token in enumerate(reply) if token in stops), len(reply) - 1) + 1
        fed = [(0, routes) for routes in prompts[row][padding[row] :]]
        fed += [(1, step[row]) for step in steps[: length - 1]]
        for segment, routes in fed:
            num_tokens[row, segment] += 1
            for layer, chosen in enumerate(routes):
                for expert in chosen:
                    active[row, segment, layer, expert] += 1
    return active, num_tokens


@each_architecture
def test_counting_while_generating_leaves_out_padding_and_what_follows_the_end(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    ids = token_ids(3, 6)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 2, 4)):
        ids[row, :padding], mask[row, :padding] = PAD, 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    # What the first row says second ends a reply, there and wherever else it is said.
    stop = int(model.generate(ids, eos_token_id=None, **options)[0, 7])
    with (
        RoutingRecorder(model) as recorder,
        RoutingCounter(model, num_responses=3) as counter,
        counter.generation(mask, [stop]),
    ):
        tokens = model.generate(ids, eos_token_id=stop, **options)
    prefill, *steps = recorder.take()
    layers, experts = len(architecture.layer_indices), architecture.num_experts
    expected, num_tokens = counts_in_a_loop(
        prefill.unflatten(0, (3, 6)).tolist(),
        [step.tolist() for step in steps],
        tokens[:, 6:].tolist(),
        [0, 2, 4],
        {stop},
        (layers, experts),
    )
    assert num_tokens[:, 0].tolist() == [6, 4, 2] and num_tokens[0, 1] <= 1
    assert counter.num_tokens.tolist() == num_tokens.tolist()
    assert counter.active_NSLE.tolist() == expected.tolist()


def test_prompts_may_be_fed_in_pieces_and_counted_for_any_response() -> None:
    model = BY_NAME["olmoe"].build()
    ids = token_ids(2, 6)
    mask = torch.ones_like(ids)
    options = {"attention_mask": mask, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    counts = []
    for pieces, response in ({}, None), ({"prefill_chunk_size": 4}, torch.tensor([3, 1])):
        with (
            RoutingCounter(model, num_responses=4) as counter,
            counter.generation(mask, [2], response),
        ):
            model.generate(ids, **options, **pieces)
        counts.append(counter.active_NSLE)
    assert counter.num_tokens.tolist() == [[0, 0], [6, 2], [0, 0], [6, 2]]
    assert torch.equal(counts[0][:2], counts[1][[3, 1]])


def test_generation_without_a_cache_is_not_counted_but_refused() -> None:
    model = BY_NAME["olmoe"].build()
    ids = token_ids(2, 3)
    mask = torch.ones_like(ids)
    with (
        RoutingCounter(model, num_responses=2) as counter,
        pytest.raises(RoutingError, match="a pass feeds 4 tokens of each reply"),
        counter.generation(mask, [2]),
    ):
        model.generate(ids, attention_mask=mask, max_new_tokens=3, use_cache=False, do_sample=False)


def test_spare_slots_of_a_masked_pass_are_not_counted() -> None:
    model = BY_NAME["olmoe"].build()
    allowed = np.zeros((2, 8), dtype=bool)
    allowed[0, 3] = True  # one expert for two slots; the other layer is not masked
    whole = torch.zeros(1, 4, dtype=torch.int64)
    with (
        torch.no_grad(),
        RoutingCounter(model, num_responses=1) as counter,
        masked_experts(model, allowed),
        counter.tokens(whole, whole, whole == 0),
    ):
        model(token_ids(1, 4))
    assert counter.active_NSLE[0, 0, 0].tolist() == [0, 0, 0, 4, 0, 0, 0, 0]
    assert counter.active_NSLE[0, 0].sum(dim=-1).tolist() == [4, 8]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_recomputed_pass_adds_nothing_to_the_counts(use_reentrant: bool) -> None:
    model = BY_NAME["mixtral"].build().train()
    enable_checkpointing(model, use_reentrant)
    model.enable_input_require_grads()
    whole = torch.zeros(2, 5, dtype=torch.int64)
    with (
        RoutingCounter(model, num_responses=1) as counter,
        counter.tokens(whole, whole, whole == 0),
    ):
        model(token_ids(2, 5)).logits.sum().backward()
    assert counter.active_NSLE.sum(dim=-1).tolist() == [[[20, 20], [0, 0]]]
    assert counter.num_tokens.tolist() == [[10, 0]]


def test_counts_add_up_over_passes() -> None:
    model = BY_NAME["olmoe"].build()
    ids = token_ids(1, 4)
    whole = torch.zeros(1, 4, dtype=torch.int64)
    with torch.no_grad(), RoutingCounter(model, num_responses=1) as counter:
        for _ in range(3):
            with counter.tokens(whole, whole, whole == 0):
                model(ids)
    # 3 passes x 4 tokens x top-2, all of them prompt.
    assert counter.active_NSLE.sum(dim=-1).tolist() == [[[24, 24], [0, 0]]]
    assert counter.num_tokens.tolist() == [[12, 0]]


def test_counting_a_pass_of_unknown_tokens_is_refused() -> None:
    model = BY_NAME["olmoe"].build()
    with (
        torch.no_grad(),
        RoutingCounter(model, num_responses=1) as counter,
        pytest.raises(RoutingError, match="nobody said whose tokens"),
    ):
        model(token_ids(1, 4))
    three = torch.zeros(3, dtype=torch.int64)
    with (
        torch.no_grad(),
        counter,
        counter.tokens(three, three, three == 0),
        pytest.raises(RoutingError, match="4 tokens, but 3 were announced"),
    ):
        model(token_ids(1, 4))


@pytest.mark.slow
def test_recording_costs_little() -> None:
    """At most 3 % of a pass; the bound here is loose, for machines that are busy with other things."""
    architecture = BY_NAME["olmoe"]
    options = {"num_experts": 16, "num_experts_per_tok": 4, "hidden_size": 256, "head_dim": 64}
    options |= {"intermediate_size": 256, "num_hidden_layers": 8}
    config = type(architecture)("olmoe", options)
    model = config.build()
    ids = token_ids(4, 64)
    plain, recorded = [], []
    with torch.no_grad():
        for _ in range(15):
            start = time.perf_counter()
            model(ids)
            plain.append(time.perf_counter() - start)
            with RoutingRecorder(model) as recorder:
                start = time.perf_counter()
                model(ids)
                recorded.append(time.perf_counter() - start)
            recorder.take()
    assert median(recorded[1:]) < 1.15 * median(plain[1:])
