"""Training only some experts: exact gradients, nothing else moved, and the base model always at hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    OlmoeConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from architectures import ARCHITECTURES, BY_NAME, Architecture, enable_checkpointing, token_ids
from steermoe.errors import ModelError, SelectionError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.slices import (
    ExpertSlices,
    attach_expert_slices,
)
from steermoe.moe.trained_stack import fused_parameters

FEW = ("olmoe", "gpt_oss", "nemotron_h", "deepseek_v3", "muse_spark")
"""Concatenated; transposed, interleaved and biased; ungated; routed by sigmoid; post-expert norm."""

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
few_architectures = pytest.mark.parametrize(
    "architecture", [BY_NAME[name] for name in FEW if name in BY_NAME], ids=lambda a: a.name
)


def selection(architecture: Architecture) -> list[tuple[int, int]]:
    """Four experts of the first MoE layer, some of them reached, and one of the last layer."""
    first, last = architecture.layer_indices[0], architecture.layer_indices[-1]
    experts = [(first, expert) for expert in (0, 1, 4, 6)]
    return experts + ([(last, 2)] if last != first else [])


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def full_gradients(model: PreTrainedModel, *batches: Tensor) -> dict[str, Tensor]:
    """Gradients of all parameters of the stock model, run by the loop over experts in its modeling file."""
    stock = copy.deepcopy(model)
    stock.set_experts_implementation("eager")
    stock.requires_grad_(True)
    for ids in batches:
        loss_of(stock, ids).backward()
    return {n: p.grad for n, p in stock.named_parameters() if p.grad is not None}


def assert_gradients_are_slices(
    model: nn.Module, slices: ExpertSlices, expected: dict[str, Tensor], some_are_zero: bool = False
) -> None:
    checked, largest = 0, 0.0
    for name, master in slices.named_parameters():
        fused_name = name.replace(".trained_experts", "")
        layer = int(next(part for part in name.split(".") if part.isdigit()))
        ids = [expert for i, expert in slices.experts if i == layer]
        want = expected[fused_name][ids]
        assert master.grad is not None
        scale = expected[fused_name].abs().max().item()
        torch.testing.assert_close(master.grad, want, rtol=1e-4, atol=1e-5 * scale)
        checked += len(ids)
        largest = max(largest, want.abs().max().item())
    assert checked % len(slices.experts) == 0 and (largest > 0 or some_are_zero)
    masters = {id(p) for p in slices.parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in masters)


@every_architecture
def test_gradients_equal_a_full_backward_on_the_slices(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(3, 9)
    expected = full_gradients(model, ids)
    slices = attach_expert_slices(model, selection(architecture))
    loss_of(model, ids).backward()
    assert_gradients_are_slices(model, slices, expected)


@every_architecture
def test_untrained_slices_give_the_base_models_logits(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(2, 7)
    with torch.no_grad():
        before = model(ids).logits
        slices = attach_expert_slices(model, selection(architecture))
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)
    assert slices.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    per_expert = find_moe_layers(model).parameters_per_expert
    assert slices.num_parameters == len(selection(architecture)) * per_expert


@every_architecture
def test_training_moves_the_selected_experts_and_nothing_else(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(3, 9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slices = attach_expert_slices(model, selection(architecture))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    for _ in range(2):
        loss_of(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained = model(ids).logits
        with slices.switched_off():
            base = model(ids).logits
        slices.fold()
        slices.detach()
        folded = model(ids).logits
    torch.testing.assert_close(folded, trained, rtol=1e-4, atol=1e-5)
    assert not torch.equal(base, folded)

    after = model.state_dict()
    assert after.keys() == before.keys()
    fused = {}
    for layer in find_moe_layers(model).layers:
        ids_here = [expert for i, expert in selection(architecture) if i == layer.index]
        for name in fused_parameters(model.get_submodule(layer.experts_name)):
            fused[f"{layer.experts_name}.{name}"] = ids_here
    for name, tensor in after.items():
        if name not in fused:
            assert torch.equal(tensor, before[name]), name
            continue
        for expert in range(architecture.num_experts):
            same = torch.equal(tensor[expert], before[name][expert])
            assert same == (expert not in fused[name]), (name, expert)


@few_architectures
def test_switched_off_is_the_base_model_bit_for_bit(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(2, 7)
    arguments = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        logits, text = model(ids).logits, model.generate(ids, **arguments)
        slices = attach_expert_slices(model, selection(architecture))
        for parameter in slices.parameters():
            parameter.normal_()
        assert not torch.equal(model(ids).logits, logits)
        with slices.switched_off():
            assert not slices.enabled
            assert torch.equal(model(ids).logits, logits)
            assert torch.equal(model.generate(ids, **arguments), text)
        assert slices.enabled
        assert not torch.equal(model(ids).logits, logits)
        slices.detach()
        assert torch.equal(model(ids).logits, logits)


def test_switching_off_nests_and_survives_errors() -> None:
    slices = attach_expert_slices(BY_NAME["olmoe"].build(), [(0, 1)])
    with pytest.raises(ZeroDivisionError), slices.switched_off(), slices.switched_off():
        assert 1 / 0
    assert slices.enabled
    slices.enabled = False
    with slices.switched_off():
        pass
    assert not slices.enabled


@few_architectures
def test_cached_decoding_uses_the_trained_experts(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(2, 5)
    slices = attach_expert_slices(model, selection(architecture))
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.add_(0.3)
        text = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        slices.fold()
        slices.detach()
        assert torch.equal(
            model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0), text
        )


@few_architectures
def test_nothing_below_the_lowest_trained_layer_is_differentiated(
    architecture: Architecture,
) -> None:
    model = architecture.build()
    layers = find_moe_layers(model).layers
    seen: dict[int, bool] = {}
    for layer in layers:
        model.get_submodule(layer.experts_name).register_forward_pre_hook(
            lambda _, args, index=layer.index: seen.__setitem__(index, args[0].requires_grad)
        )
    attach_expert_slices(model, [(layers[-1].index, 3)])
    loss_of(model, token_ids(2, 7)).backward()
    assert seen == {layer.index: False for layer in layers}


def test_layers_above_the_lowest_trained_one_are_differentiated_without_their_weights() -> None:
    config = OlmoeConfig(**vars_of(num_hidden_layers=4))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    ids = token_ids(3, 9)
    expected = full_gradients(model, ids)
    slices = attach_expert_slices(model, [(1, 2), (3, 0), (1, 5)])
    loss_of(model, ids).backward()
    assert slices.experts == [(1, 2), (1, 5), (3, 0)]
    assert_gradients_are_slices(model, slices, expected)


def vars_of(**options: Any) -> dict[str, Any]:
    """An OLMoE config of a few thousand numbers."""
    return {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
        **options,
    }


@few_architectures
def test_gradient_checkpointing(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(3, 9)
    expected = full_gradients(model, ids)
    slices = attach_expert_slices(model, selection(architecture))
    enable_checkpointing(model)
    model.train()
    loss_of(model, ids).backward()
    assert_gradients_are_slices(model, slices, expected)


@few_architectures
def test_gradients_accumulate(architecture: Architecture) -> None:
    model, batches = architecture.build(), [token_ids(2, 9), token_ids(3, 6, seed=1)]
    expected = full_gradients(model, *batches)
    slices = attach_expert_slices(model, selection(architecture))
    for ids in batches:
        loss_of(model, ids).backward()
    assert_gradients_are_slices(model, slices, expected)


@few_architectures
def test_autocast_computes_what_the_stock_model_does(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(2, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            logits = model(ids).logits
        slices = attach_expert_slices(model, selection(architecture))
        loss = loss_of(model, ids)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, logits, rtol=1e-2, atol=1e-2)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in slices.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_model_runs_the_split_execution_uncompiled() -> None:
    model, ids = BY_NAME["olmoe"].build(), token_ids(3, 9)
    expected = full_gradients(model, ids)
    slices = attach_expert_slices(model, [(0, 1), (0, 4), (1, 2)])
    loss_of(torch.compile(model, backend="eager"), ids).backward()
    assert_gradients_are_slices(model, slices, expected)


@pytest.mark.parametrize("experts", [[(1, e) for e in range(8)], [(0, 0)], [(1, 7)]])
@few_architectures
def test_all_or_one_of_a_layer(architecture: Architecture, experts: list[tuple[int, int]]) -> None:
    layers = architecture.layer_indices
    experts = [(layers[min(layer, len(layers) - 1)], expert) for layer, expert in experts]
    model, ids = architecture.build(), token_ids(1, 4)
    expected = full_gradients(model, ids)
    slices = attach_expert_slices(model, experts)
    loss_of(model, ids).backward()
    assert_gradients_are_slices(model, slices, expected, some_are_zero=True)


@few_architectures
def test_bfloat16_weights_under_fp32_masters(architecture: Architecture) -> None:
    model, ids = architecture.build(), token_ids(4, 16)
    exact = full_gradients(model, ids)
    model = model.to(torch.bfloat16)
    stock = full_gradients(model, ids)
    slices = attach_expert_slices(model, selection(architecture))
    loss_of(model, ids).backward()
    for name, master in slices.named_parameters():
        assert master.dtype is master.grad.dtype is torch.float32
        layer = int(next(part for part in name.split(".") if part.isdigit()))
        rows = [expert for i, expert in slices.experts if i == layer]
        want = exact[name.replace(".trained_experts", "")][rows]
        theirs = stock[name.replace(".trained_experts", "")][rows].float()
        error, their_error = (master.grad - want).norm(), (theirs - want).norm()
        assert error <= 1.5 * their_error + 0.02 * want.norm()


def test_steps_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    model = BY_NAME["olmoe"].build().to(torch.bfloat16)
    slices = attach_expert_slices(model, [(0, 1)])
    before = {name: tensor.clone() for name, tensor in slices.state_dict().items()}
    optimizer = torch.optim.SGD(slices.parameters(), lr=1.0)
    for _ in range(64):
        for parameter in slices.parameters():
            parameter.grad = parameter.detach().abs() * 2.0**-11  # a quarter of the last bit
        optimizer.step()
    slices.fold()
    experts = model.model.layers[0].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        start = before[f"model.layers.0.mlp.experts.trained_experts.{name}"]
        moved = (getattr(experts, name)[1].float() - start[0]).abs() / start[0].abs()
        assert 0.02 < moved.median() < 0.05  # 64 / 2048 = 3.1 %


def test_a_share_of_the_change_can_be_folded_in() -> None:
    model = BY_NAME["olmoe"].build()
    experts = model.model.layers[0].mlp.experts
    before = experts.down_proj.detach().clone()
    slices = attach_expert_slices(model, [(0, 1)])
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter += 1.0
    slices.fold(kept_change=0.75)
    torch.testing.assert_close(experts.down_proj[1], before[1] + 0.75)
    others = [expert for expert in range(len(before)) if expert != 1]
    assert torch.equal(experts.down_proj[others], before[others])


def test_stepping_during_the_backward_pass_equals_stepping_after_it() -> None:
    results = []
    for during in (False, True):
        model, ids = BY_NAME["olmoe"].build(), token_ids(3, 9)
        slices = attach_expert_slices(model, [(0, 1), (0, 6), (1, 2)])

        def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)

        if during:
            assert len(slices.step_during_backward(make)) == len(list(slices.parameters()))
        optimizer = make(list(slices.parameters()))
        for _ in range(3):
            loss_of(model, ids).backward()
            if during:
                assert all(p.grad is None for p in slices.parameters())
            else:
                optimizer.step()
                optimizer.zero_grad()
        results.append(slices.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_names_and_round_trip_of_the_masters() -> None:
    model = BY_NAME["gpt_oss"].build()
    slices = attach_expert_slices(model, [(1, 3), (0, 5), (1, 0)])
    names = {
        f"model.layers.{layer}.mlp.experts.trained_experts.{name}"
        for layer in (0, 1)
        for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    }
    saved = slices.state_dict()
    assert set(saved) == names == {n for n in model.state_dict() if "trained_experts" in n}
    assert saved["model.layers.1.mlp.experts.trained_experts.gate_up_proj"].shape == (2, 32, 32)
    saved = {name: torch.randn_like(tensor) for name, tensor in saved.items()}
    slices.load_state_dict(saved)
    assert all(torch.equal(slices.state_dict()[name], saved[name]) for name in names)
    slices.fold()
    rows = model.model.layers[1].mlp.experts.down_proj[[0, 3]]
    assert torch.equal(rows, saved["model.layers.1.mlp.experts.trained_experts.down_proj"])


def test_masters_that_do_not_fit_are_refused_and_change_nothing() -> None:
    slices = attach_expert_slices(BY_NAME["olmoe"].build(), [(0, 1), (1, 2)])
    name = "model.layers.1.mlp.experts.trained_experts.down_proj"
    before = {key: tensor.clone() for key, tensor in slices.state_dict().items()}
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({k: v + 1 for k, v in before.items() if k != name}, f"{name} is missing from"),
        ({**{k: v + 1 for k, v in before.items()}, "more": torch.ones(1)}, "more is unknown to"),
        ({**{k: v + 1 for k, v in before.items()}, name: torch.ones(2, 32, 16)}, "has shape"),
    ]
    for state, message in wrong:
        with pytest.raises(ModelError, match=message):
            slices.load_state_dict(state)
    assert all(torch.equal(slices.state_dict()[key], before[key]) for key in before)


def _quantise(model: Any) -> None:
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), False)


def _offload(model: Any) -> None:
    model.model.layers[1].mlp.experts.to("meta")


def _split_by_experts(model: Any) -> None:
    model.model.layers[1].mlp.experts._is_expert_parallel = True


def _attach(model: Any) -> None:
    attach_expert_slices(model, [(1, 1)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_quantise, r"layers\.1\.mlp\.experts\.down_proj is quantised \(torch.float8_e4m3fn\)"),
        (_offload, "is not in memory"),
        (_split_by_experts, "expert parallelism"),
        (_attach, "already attached"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(
    spoil: Callable[[Any], None], message: str
) -> None:
    model = BY_NAME["olmoe"].build()
    spoil(model)
    names = set(model.state_dict())
    with pytest.raises(ModelError, match=message):
        attach_expert_slices(model, [(0, 1)])
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([], "no experts are selected"),
        ([(2, 0)], r"decoder layer 2 has no routed experts; choose among layers \[0, 1\]"),
        ([(0, 8)], "layer 0 has no expert 8; choose an expert from 0 to 7"),
        ([(0, -1)], "no expert -1"),
        ([(1, 3), (0, 2), (1, 3)], r"expert \(1, 3\) is selected twice"),
    ],
)
def test_selections_that_do_not_exist_are_refused(
    experts: list[tuple[int, int]], message: str
) -> None:
    model = BY_NAME["olmoe"].build()
    with pytest.raises(SelectionError, match=message):
        attach_expert_slices(model, experts)
    assert all(p.requires_grad for p in model.parameters())


def test_a_dense_layer_is_no_layer_to_select_from() -> None:
    with pytest.raises(SelectionError, match=r"decoder layer 0 .* layers \[1\]"):
        attach_expert_slices(BY_NAME["deepseek_v3"].build(), [(0, 1)])


def test_detaching_leaves_the_model_as_it_was() -> None:
    model = BY_NAME["olmoe"].build()
    model.model.embed_tokens.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    attributes = [set(vars(module)) for module in model.modules()]
    attach_expert_slices(model, [(0, 1)]).detach()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert [set(vars(module)) for module in model.modules()] == attributes
    attach_expert_slices(model, [(1, 1)])


def test_a_deep_copy_has_slices_of_its_own() -> None:
    model, ids = BY_NAME["olmoe"].build(), token_ids(1, 5)
    slices = attach_expert_slices(model, [(0, 1)])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.add_(1.0)
        with slices.switched_off():
            base = model(ids).logits
            assert torch.equal(twin(ids).logits, base)
    assert not torch.equal(model(ids).logits, base)


def test_trainer_saves_and_resumes_with_the_masters(tmp_path: Path) -> None:
    """Four steps in a row equal two steps, a checkpoint, a fresh model, and two more."""
    rows = [{"input_ids": ids, "labels": ids} for ids in token_ids(8, 7)]

    def trainer(steps: int) -> tuple[Trainer, ExpertSlices]:
        model = AutoModelForCausalLM.from_config(
            OlmoeConfig(**vars_of(num_hidden_layers=2, router_aux_loss_coef=0.0))
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.1, generator=generator)
        slices = attach_expert_slices(model, [(0, 1), (0, 3), (1, 2)])
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        return Trainer(model=model, args=arguments, train_dataset=rows), slices

    whole, expected = trainer(4)
    whole.train()
    first, _ = trainer(2)
    first.train()
    second, resumed = trainer(4)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert math.isfinite(second.state.log_history[-1]["train_loss"])


@pytest.mark.gpu
@few_architectures
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_an_accelerator(architecture: Architecture, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    # On the same device in the same dtype: rounded otherwise, a near-tie of a router goes to another expert.
    model, ids = architecture.build().to("cuda", dtype), token_ids(3, 9).cuda()
    expected = full_gradients(model, ids)
    slices = attach_expert_slices(model, selection(architecture))
    loss_of(model, ids).backward()
    tolerance = 1e-4 if dtype is torch.float32 else 5e-2
    for name, master in slices.named_parameters():
        layer = int(next(part for part in name.split(".") if part.isdigit()))
        rows = [expert for i, expert in slices.experts if i == layer]
        want = expected[name.replace(".trained_experts", "")][rows].float()
        assert (master.grad - want).norm() <= tolerance * want.norm()
