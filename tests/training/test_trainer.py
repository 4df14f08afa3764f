"""The trainer against a reference in plain loops: one row at a time, no padding, stock experts.

Shape legend: T tokens, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from architectures import enable_checkpointing
from conftest import TinyCheckpoint
from steermoe.analysis.selection import create_expert_mask
from steermoe.errors import TrainingError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import masked_experts
from steermoe.moe.partial_passes import LowerLayers, only_positions
from steermoe.moe.slices import ExpertSlices, attach_expert_slices
from steermoe.records import Label
from steermoe.stages.train import freeze_model_except_unsafe_experts
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import MicroBatches, TrainingRow, collate
from steermoe.training.lower_states import LowerStates
from steermoe.training.trainer import (
    TRAINED_WEIGHTS,
    ExpertMaskingTrainer,
    LossWeights,
    kl_to_base,
)

EXPERTS = [(0, 1), (0, 6), (1, 0), (1, 5)]
CHECKPOINTING = (
    "activation_checkpointing"  # its name since transformers 5.20
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)
WEIGHTS = LossWeights(refusal=1.5, retention=2.5, first_tokens=2, first_tokens_weight=7.0)


def row(
    name: str,
    objective: str,
    label: Label = Label.UNSAFE,
    batch_idx: int = 0,
    seed: int = 0,
    lengths: tuple[int, int] | None = None,
) -> TrainingRow:
    """A row of random tokens, of a length that its seed draws."""
    generator = np.random.default_rng([seed, len(name), *name.encode()])
    num_prompt, num_completion = lengths or tuple(generator.integers(2, 9, 2))
    ids = generator.integers(3, 250, num_prompt + num_completion).tolist()
    messages = ({"role": "user", "content": name},)
    return TrainingRow(
        name,
        label,
        batch_idx,
        objective,
        messages,
        name,
        tuple(ids[:num_prompt]),
        tuple(ids[num_prompt:]),
    )


def mixed_rows(batch_idx: int = 0) -> list[TrainingRow]:
    """An unsafe prompt, a plain goal that must be refused too, and three replies to keep."""
    return [
        row("unsafe", "refusal", Label.UNSAFE, batch_idx, lengths=(4, 7)),
        row("plain goal", "refusal", Label.SAFE, batch_idx, lengths=(6, 3)),
        row("look-alike", "retention", Label.SAFE, batch_idx, lengths=(3, 5)),
        row("benign", "retention", Label.BENIGN, batch_idx, lengths=(8, 1)),
        row("safe", "retention", Label.SAFE, batch_idx, lengths=(2, 9)),
    ]


@pytest.fixture(params=["mixtral", "olmoe", "qwen3_moe"])
def base(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint(request.param)).eval()


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint("mixtral")).eval()


def with_moved_experts(
    base: Any, experts: Sequence[tuple[int, int]] = EXPERTS
) -> tuple[Any, ExpertSlices, Any]:
    """A model whose slices have moved, and a stock model with the same weights that trains its fused tensors."""
    model = copy.deepcopy(base)
    slices = attach_expert_slices(model, experts)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    stock = copy.deepcopy(base)
    stock.requires_grad_(False)
    for layer, expert in experts:
        for name in ("gate_up_proj", "down_proj"):
            fused = stock.model.layers[layer].mlp.experts.get_parameter(name)
            stack = dict(slices.named_parameters())[
                f"model.layers.{layer}.mlp.experts.trained_experts.{name}"
            ]
            place = [e for i, e in experts if i == layer].index(expert)
            fused.data[expert] = stack.data[place]
            fused.requires_grad_(True)
    stock.set_experts_implementation("eager")
    return model, slices, stock


def make_trainer(
    model: Any,
    folder: Path,
    rows: Sequence[TrainingRow] | MicroBatches = (),
    arguments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ExpertMaskingTrainer:
    data = rows if isinstance(rows, MicroBatches) else MicroBatches(list(rows) or mixed_rows())
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_grad_norm": 1e9,
        "data_seed": 0,
    }
    return ExpertMaskingTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **(chosen | (arguments or {}))),
        train_dataset=data,
        data_collator=partial(collate, pad_token_id=0),
        **({"weights": WEIGHTS} | kwargs),
    )


# ---- the reference ------------------------------------------------------------------------------------


def log_probabilities(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """`(T, V)`, of the token that follows each."""
    return torch.log_softmax(
        model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float(), -1
    )


def reference_loss(
    stock: Any,
    base: Any,
    rows: Sequence[TrainingRow],
    weights: LossWeights,
    masked: Callable[[TrainingRow], Any] | None = None,
) -> torch.Tensor:
    """The formula of the loss, token by token: each objective is a weighted mean over its own tokens."""
    terms: dict[str, list[torch.Tensor]] = {"refusal": [], "retention": []}
    shares: dict[str, list[float]] = {"refusal": [], "retention": []}
    for one in rows:
        tokens = one.prompt_token_ids + one.completion_token_ids
        first = len(one.prompt_token_ids)
        if masked is None:
            mine = log_probabilities(stock, tokens)
        else:
            with masked(one):
                mine = log_probabilities(stock, tokens)
        for place, token in enumerate(one.completion_token_ids):
            predicted = mine[first + place - 1]
            share = 1.0
            if place < weights.first_tokens:
                share = weights.first_tokens_weight
                own = weights.retention_first_tokens_weight
                if one.objective == "retention" and own is not None:
                    share = own
            shares[one.objective].append(share)
            if one.objective == "refusal":
                terms["refusal"].append(-share * predicted[token])
                continue
            with torch.no_grad():
                theirs = log_probabilities(base, tokens)[first + place - 1]
            kl = sum((p.exp() * (p - q) for p, q in zip(theirs, predicted, strict=True)))
            terms["retention"].append(share * kl)
    loss = torch.zeros(())
    for objective, weight in (("refusal", weights.refusal), ("retention", weights.retention)):
        if terms[objective]:
            loss = loss + weight * sum(terms[objective]) / math.fsum(shares[objective])
    return loss


def compare_gradients(slices: ExpertSlices, stock: Any) -> None:
    """The gradients of the stacks equal those of the stock model's slices."""
    for name, parameter in slices.named_parameters():
        module, _, tensor = name.rpartition(".trained_experts.")
        layer = int(module.split(".")[2])
        ids = [expert for i, expert in slices.experts if i == layer]
        expected = stock.get_submodule(module).get_parameter(tensor).grad[ids]
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6)


def compare_with_reference(
    loss: torch.Tensor, expected: torch.Tensor, slices: ExpertSlices, stock: Any
) -> None:
    """The loss equals the reference's, and so do the gradients of both."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    compare_gradients(slices, stock)


# ---- the loss and its gradient ------------------------------------------------------------------------


def test_kept_base_replies_give_the_same_loss_and_gradient(base: Any, tmp_path: Path) -> None:
    rows = mixed_rows()
    model, slices, stock = with_moved_experts(base)
    with slices.switched_off():
        # Other rows beside them, and so another padding, than in the micro-batch.
        others = [row(f"other {i}", "retention", Label.SAFE, seed=i) for i in range(20)]
        replies = BaseReplies(model, [*others, *rows[2:]], 0)
    assert replies.is_exact
    trainer = make_trainer(model, tmp_path, rows, slices=slices, base_replies=replies)
    loss = trainer.compute_loss(model, collate([rows], 0))
    expected = reference_loss(stock, base, rows, WEIGHTS)
    compare_with_reference(loss, expected, slices, stock)


@pytest.mark.parametrize("mask_scope", ["off", "unsafe"])
@pytest.mark.parametrize("keeps_replies", [True, False])
def test_kept_states_of_the_lower_layers_give_the_same_loss_and_gradient(
    base: Any, tmp_path: Path, keeps_replies: bool, mask_scope: str
) -> None:
    rows = mixed_rows()
    model, slices, stock = with_moved_experts(base, [(1, 0), (1, 5)])
    layers = LowerLayers(model, find_moe_layers(model), 1)
    others = [row(f"other {i}", "retention", Label.SAFE, seed=i) for i in range(20)]
    states = LowerStates(model, layers, [*others, *rows], 0)
    assert states.is_usable
    replies = None
    if keeps_replies:
        with slices.switched_off():
            replies = BaseReplies(model, [*others, *rows[2:]], 0, states)
    allowed = create_expert_mask(2, find_moe_layers(model).num_experts, [(1, 0), (1, 5)])
    trainer = make_trainer(
        model,
        tmp_path,
        rows,
        slices=slices,
        base_replies=replies,
        lower_states=states,
        mask_scope=mask_scope,
        expert_mask=allowed,
    )
    runs: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    loss = trainer.compute_loss(model, collate([rows], 0))
    # Only the base model's own pass, where its replies were not kept.
    assert len(runs) == (0 if keeps_replies else 1)

    def masked(one: TrainingRow) -> Any:
        is_masked = mask_scope == "unsafe" and one.label is Label.UNSAFE
        return masked_experts(stock, allowed) if is_masked else nullcontext()

    expected = reference_loss(stock, base, rows, WEIGHTS, masked)
    compare_with_reference(loss, expected, slices, stock)


def rows_that_begin_alike() -> list[TrainingRow]:
    """The mixed rows, each behind the same five tokens."""
    beginning = (7, 8, 9, 10, 11)
    return [
        dataclasses.replace(one, prompt_token_ids=beginning + one.prompt_token_ids)
        for one in mixed_rows()
    ]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("keeps_replies", [True, False])
def test_a_step_computes_what_rows_share_once_and_its_gradient_is_that_of_all_tokens(
    base: Any,
    tmp_path: Path,
    computed_tokens: list[int],
    keeps_replies: bool,
    checkpointed: bool,
) -> None:
    rows = rows_that_begin_alike()
    model, slices, stock = with_moved_experts(base)
    replies = None
    if keeps_replies:
        with slices.switched_off():
            replies = BaseReplies(model, rows[2:], 0)
    if checkpointed:
        enable_checkpointing(model)
    trainer = make_trainer(model, tmp_path, rows, slices=slices, base_replies=replies)
    loss = take_step(trainer, model, rows)
    own = sum(one.num_tokens - 1 - 5 for one in rows)
    assert set(computed_tokens) == {5 + own}
    expected = reference_loss(stock, base, rows, WEIGHTS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    compare_gradients(slices, stock)
    # Outside a step nothing is left of it.
    computed_tokens.clear()
    trainer.compute_loss(model, collate([rows], 0))
    assert set(computed_tokens) == {len(rows) * max(one.num_tokens - 1 for one in rows)}


@pytest.mark.parametrize("why", ["mask", "dropout"])
def test_a_step_computes_each_row_where_rows_differ_in_what_they_share(
    mixtral: Any, tmp_path: Path, computed_tokens: list[int], why: str
) -> None:
    rows = rows_that_begin_alike()
    model, slices, _ = with_moved_experts(mixtral)
    mask: dict[str, Any] = {}
    if why == "mask":
        allowed = create_expert_mask(2, find_moe_layers(model).num_experts, EXPERTS)
        mask = {"mask_scope": "unsafe", "expert_mask": allowed}
    else:
        model.config.attention_dropout = 0.1
    trainer = make_trainer(model, tmp_path, rows, slices=slices, **mask)
    take_step(trainer, model, rows)
    lengths = [one.num_tokens - 1 for one in rows]
    # Padding is needed by none of them, but a mask is laid over whole rows.
    assert set(computed_tokens) == {len(rows) * max(lengths) if why == "mask" else sum(lengths)}


def take_step(trainer: ExpertMaskingTrainer, model: Any, rows: list[TrainingRow]) -> torch.Tensor:
    """Forward and backward, as in the middle of a training."""
    trainer.current_gradient_accumulation_steps = 1
    return trainer.training_step(model, collate([rows], 0))


def test_base_replies_do_not_stand_in_for_a_model_that_changes_its_logits(
    mixtral: Any,
) -> None:
    forward = type(mixtral).forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(mixtral, *args, **kwargs)
        outputs.logits = outputs.logits / 8.0
        return outputs

    rows = [one for one in mixed_rows() if one.objective == "retention"]
    assert BaseReplies(mixtral, rows, 0).is_exact
    mixtral.forward = scaled
    assert not BaseReplies(mixtral, rows, 0).is_exact


def test_base_replies_of_two_rows_of_one_prompt_id_must_be_the_same(mixtral: Any) -> None:
    first, other = [one for one in mixed_rows() if one.objective == "retention"][:2]
    BaseReplies(mixtral, [first, first], 0)
    with pytest.raises(
        TrainingError, match=r"two training rows have the prompt id .* different tokens"
    ):
        BaseReplies(mixtral, [first, dataclasses.replace(other, prompt_id=first.prompt_id)], 0)


@pytest.mark.parametrize(
    "objectives", [{"refusal"}, {"retention"}, {"refusal", "retention"}], ids=sorted
)
def test_loss_and_gradient_equal_the_reference(
    base: Any, tmp_path: Path, objectives: set[str]
) -> None:
    rows = [one for one in mixed_rows() if one.objective in objectives]
    model, slices, stock = with_moved_experts(base)
    trainer = make_trainer(model, tmp_path, rows, slices=slices)
    model.train()
    loss = trainer.compute_loss(model, collate([rows], 0))
    expected = reference_loss(stock, base, rows, WEIGHTS)
    assert expected.item() > 0.01
    compare_with_reference(loss, expected, slices, stock)
    trained = {id(parameter) for parameter in slices.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in trained:
            assert not parameter.requires_grad and parameter.grad is None, name


def test_first_tokens_weigh_what_they_are_told(mixtral: Any, tmp_path: Path) -> None:
    rows = [one for one in mixed_rows() if one.objective == "retention"]
    losses = []
    for weights in (LossWeights(retention=1.0), LossWeights(1.0, 1.0, 2, 50.0)):
        model, slices, stock = with_moved_experts(mixtral)
        trainer = make_trainer(model, tmp_path, rows, slices=slices, weights=weights)
        loss = trainer.compute_loss(model, collate([rows], 0)).item()
        assert loss == pytest.approx(reference_loss(stock, mixtral, rows, weights).item(), rel=1e-4)
        losses.append(loss)
    assert abs(losses[0] - losses[1]) > 0.01 * losses[0]


def test_first_tokens_of_harmless_replies_may_weigh_otherwise(mixtral: Any, tmp_path: Path) -> None:
    rows = mixed_rows()
    losses = []
    for weights in (LossWeights(0.01, 2.0, 2, 50.0), LossWeights(0.01, 2.0, 2, 50.0, 3.0)):
        model, slices, stock = with_moved_experts(mixtral)
        trainer = make_trainer(model, tmp_path, rows, slices=slices, weights=weights)
        loss = trainer.compute_loss(model, collate([rows], 0))
        expected = reference_loss(stock, mixtral, rows, weights)
        compare_with_reference(loss, expected, slices, stock)
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) > 0.01 * losses[0]


def test_many_completion_tokens_are_computed_in_pieces_alike(
    mixtral: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, slices, _ = with_moved_experts(mixtral)
    trainer = make_trainer(model, tmp_path, slices=slices)
    batch = collate([mixed_rows()], 0)
    whole = trainer.compute_loss(model, batch).item()
    monkeypatch.setattr("steermoe.training.trainer.ROWS_OF_LOGITS", 4)
    assert trainer.compute_loss(model, batch).item() == pytest.approx(whole, rel=1e-6)


def test_an_untrained_model_is_at_its_base(mixtral: Any, tmp_path: Path) -> None:
    rows = [one for one in mixed_rows() if one.objective == "retention"]
    model = freeze_model_except_unsafe_experts(copy.deepcopy(mixtral), EXPERTS)
    trainer = make_trainer(model, tmp_path, rows)
    assert abs(trainer.compute_loss(model, collate([rows], 0)).item()) < 1e-6


def test_the_base_of_a_baseline_is_a_model_of_its_own(mixtral: Any, tmp_path: Path) -> None:
    rows = mixed_rows()
    _, _, stock = with_moved_experts(mixtral)
    stock.requires_grad_(True)
    trainer = make_trainer(stock, tmp_path, rows, base_model=mixtral)
    loss = trainer.compute_loss(stock, collate([rows], 0))
    assert loss.item() == pytest.approx(
        reference_loss(stock, mixtral, rows, WEIGHTS).item(), rel=1e-4
    )


def test_a_retention_loss_without_base_is_refused(mixtral: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs the base model"):
        make_trainer(mixtral, tmp_path)
    make_trainer(mixtral, tmp_path, weights=LossWeights(retention=0.0))


def test_a_second_gpu_does_not_split_micro_batches(mixtral: Any, tmp_path: Path) -> None:
    """transformers would wrap the model in DataParallel and feed it two micro-batches at once."""
    slices = attach_expert_slices(mixtral, EXPERTS)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    arguments._n_gpu = 2
    assert arguments.train_batch_size == 2 * arguments.per_device_train_batch_size
    trainer = ExpertMaskingTrainer(
        model=mixtral, args=arguments, train_dataset=MicroBatches(mixed_rows()), slices=slices
    )
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == trainer.args.per_device_train_batch_size


def test_kl_by_hand() -> None:
    # Base (1/2, 1/2), model (9/10, 1/10): 1/2 ln(5/9) + 1/2 ln 5.
    base = torch.log(torch.tensor([[0.5, 0.5], [0.2, 0.8]]))
    model = torch.log(torch.tensor([[0.9, 0.1], [0.2, 0.8]])) + 3.0
    by_hand = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    assert kl_to_base(base, model).tolist() == pytest.approx([by_hand, 0.0], abs=1e-6)


def test_kl_of_half_precision_logits_is_computed_in_fp32() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    moved = (logits + 0.05 * torch.arange(1000) / 1000).bfloat16()
    found = kl_to_base(logits, moved)
    p = torch.softmax(logits.double(), -1)
    exact = (p * (p.log() - torch.log_softmax(moved.double(), -1))).sum(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-7)


def test_only_positions_leaves_the_other_logits_out_and_itself_behind_nothing(mixtral: Any) -> None:
    ids = torch.arange(3, 15).view(2, 6)
    wanted = torch.zeros(2, 6, dtype=torch.bool)
    wanted[0, 2] = wanted[1, 5] = wanted[1, 0] = True
    with torch.no_grad():
        every = mixtral(ids).logits
        with only_positions(mixtral, wanted):
            some = mixtral(ids).logits
        after = mixtral(ids).logits
    assert some.shape[:2] == (1, 3)
    torch.testing.assert_close(some[0], every[wanted], rtol=1e-5, atol=1e-5)
    assert torch.equal(after, every)


# ---- expert masks -------------------------------------------------------------------------------------


@contextmanager
def masked_router(stock: Any, allowed: np.ndarray) -> Iterator[None]:
    """Mixtral's routers written again over the allowed experts alone: softmax, top-k, renormalise."""
    gates = [layer.mlp.gate for layer in stock.model.layers]

    def make(gate: Any, experts: list[int]) -> Callable[[torch.Tensor], Any]:
        def forward(hidden: torch.Tensor) -> Any:
            hidden = hidden.reshape(-1, hidden.shape[-1])
            logits = hidden @ gate.weight.T
            probabilities = torch.softmax(logits[:, experts].float(), -1)
            top = probabilities.topk(min(2, len(experts)), -1)
            weights = top.values / top.values.sum(-1, keepdim=True)
            chosen = torch.tensor(experts)[top.indices]
            if len(experts) == 1:  # a second slot that weighs nothing
                weights = torch.cat([weights, torch.zeros_like(weights)], -1)
                chosen = torch.cat([chosen, torch.full_like(chosen, (experts[0] + 1) % 8)], -1)
            return logits, weights, chosen

        return forward

    for gate, row_E in zip(gates, allowed, strict=True):
        if row_E.any():  # a layer that allows none is left as it is
            gate.forward = make(gate, np.flatnonzero(row_E).tolist())
    try:
        yield
    finally:
        for gate in gates:
            gate.__dict__.pop("forward", None)


def mask_of(*experts: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((2, 8), dtype=bool)
    for expert in experts:
        mask[expert] = True
    return mask


MASKS = {
    "both layers": mask_of(*EXPERTS),
    "one layer": mask_of((1, 0), (1, 5)),
    "one expert": mask_of((0, 6), (1, 0), (1, 5)),
}


@pytest.mark.parametrize("scope", ["unsafe", "all"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_masked_loss_equals_a_reference_with_masked_routers(
    mixtral: Any, tmp_path: Path, mask: np.ndarray, scope: str
) -> None:
    rows = mixed_rows()
    model, slices, stock = with_moved_experts(mixtral)

    @contextmanager
    def masked(one: TrainingRow) -> Iterator[None]:
        applies = one.objective == "refusal" and (scope == "all" or one.label is Label.UNSAFE)
        with masked_router(stock, mask if applies else np.zeros_like(mask)):
            yield

    trainer = make_trainer(model, tmp_path, rows, slices=slices, expert_mask=mask, mask_scope=scope)
    loss = trainer.compute_loss(model, collate([rows], 0))
    expected = reference_loss(stock, mixtral, rows, WEIGHTS, masked)
    unmasked = reference_loss(stock, mixtral, rows, WEIGHTS)
    assert abs(loss.item() - unmasked.item()) > 1e-2
    compare_with_reference(loss, expected, slices, stock)


def test_scopes_differ_and_off_masks_nothing(mixtral: Any, tmp_path: Path) -> None:
    losses = {}
    for scope in ("off", "unsafe", "all"):
        model, slices, stock = with_moved_experts(mixtral)
        trainer = make_trainer(
            model, tmp_path, slices=slices, expert_mask=MASKS["both layers"], mask_scope=scope
        )
        losses[scope] = trainer.compute_loss(model, collate([mixed_rows()], 0)).item()
    assert len({round(loss, 4) for loss in losses.values()}) == 3
    assert losses["off"] == pytest.approx(
        reference_loss(stock, mixtral, mixed_rows(), WEIGHTS).item(), rel=1e-4
    )


def test_each_batch_has_its_own_mask(mixtral: Any, tmp_path: Path) -> None:
    masks = {3: MASKS["both layers"], 8: MASKS["one layer"]}
    model, slices, _ = with_moved_experts(mixtral)
    of_batch = make_trainer(model, tmp_path, slices=slices, expert_mask=masks, mask_scope="unsafe")
    for batch_idx, mask in masks.items():
        batch = collate([mixed_rows(batch_idx)], 0)
        alone = make_trainer(model, tmp_path, slices=slices, expert_mask=mask, mask_scope="unsafe")
        assert of_batch.compute_loss(model, batch).item() == pytest.approx(
            alone.compute_loss(model, batch).item(), rel=1e-6
        )


@pytest.mark.parametrize("scope", ["unsafe", "all"])
def test_rows_of_several_batches_are_each_masked_by_their_own_batchs_mask(
    mixtral: Any, tmp_path: Path, scope: str
) -> None:
    masks = {3: MASKS["both layers"], 8: MASKS["one layer"]}
    rows = mixed_rows(3)[1:] + mixed_rows(8)[:4] + mixed_rows(5)  # batch 5 has no mask
    rows = [rows[i] for i in (4, 0, 9, 1, 5, 8, 2, 6, 10, 3, 7, 11, 12)]
    model, slices, stock = with_moved_experts(mixtral)

    @contextmanager
    def masked(one: TrainingRow) -> Iterator[None]:
        applies = one.objective == "refusal" and (scope == "all" or one.label is Label.UNSAFE)
        mask = masks.get(one.batch_idx, mask_of()) if applies else mask_of()
        with masked_router(stock, mask):
            yield

    trainer = make_trainer(
        model, tmp_path, rows, slices=slices, expert_mask=masks, mask_scope=scope
    )
    loss = trainer.compute_loss(model, collate([rows], 0))
    expected = reference_loss(stock, mixtral, rows, WEIGHTS, masked)
    compare_with_reference(loss, expected, slices, stock)


def test_a_batch_without_a_mask_trains_unmasked(mixtral: Any, tmp_path: Path) -> None:
    # The verdict filter can leave a batch without a class, and so without a selection of its own.
    model, slices, stock = with_moved_experts(mixtral)
    trainer = make_trainer(
        model, tmp_path, slices=slices, expert_mask={3: MASKS["both layers"]}, mask_scope="unsafe"
    )
    loss = trainer.compute_loss(model, collate([mixed_rows(5)], 0))
    expected = reference_loss(stock, mixtral, mixed_rows(), WEIGHTS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"mask_scope": "all"}, "no expert_mask"),
        (
            {"mask_scope": "all", "expert_mask": np.zeros((3, 8), bool)},
            r"shape \(3, 8\).*\(2, 8\)",
        ),
        (
            {"mask_scope": "unsafe", "expert_mask": mask_of((1, 4))},
            "expert 4 of layer 1, which does not train",
        ),
        (
            {"mask_scope": "unsafe", "expert_mask": {0: mask_of((0, 1)), 1: mask_of((0, 2))}},
            "expert 2 of layer 0",
        ),
    ],
)
def test_a_mask_that_cannot_apply_is_refused(
    mixtral: Any, tmp_path: Path, kwargs: dict[str, Any], reason: str
) -> None:
    model, slices, _ = with_moved_experts(mixtral)
    with pytest.raises(TrainingError, match=reason) as caught:
        make_trainer(model, tmp_path, slices=slices, **kwargs)
    assert "\n" not in str(caught.value)


# ---- steps --------------------------------------------------------------------------------------------

BATCHES = [
    [row(f"u{b}", "refusal", Label.UNSAFE, b), row(f"s{b}", "retention", Label.SAFE, b)]
    for b in range(4)
]
BENIGN = [row(f"b{i}", "retention", Label.BENIGN, -1) for i in range(10)]
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}


def masters(slices: ExpertSlices) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in slices.named_parameters()}


def gradients_of(mixtral: Any, rows: Sequence[TrainingRow]) -> dict[str, torch.Tensor]:
    """Gradients of the reference loss at the base model, by the name of the master."""
    stock = copy.deepcopy(mixtral)
    stock.set_experts_implementation("eager")
    reference_loss(stock, mixtral, rows, WEIGHTS).backward()
    found = {}
    for layer in (0, 1):
        ids = [expert for i, expert in EXPERTS if i == layer]
        for name in ("gate_up_proj", "down_proj"):
            module = f"model.layers.{layer}.mlp.experts"
            grad = stock.get_submodule(module).get_parameter(name).grad
            found[f"{module}.trained_experts.{name}"] = grad[ids]
    return found


@pytest.mark.parametrize(("num_batches", "accumulation"), [(2, 2), (3, 3), (3, 4)])
def test_accumulated_micro_batches_move_by_the_mean_of_their_gradients(
    mixtral: Any, tmp_path: Path, num_batches: int, accumulation: int
) -> None:
    model = copy.deepcopy(mixtral)
    slices = attach_expert_slices(model, EXPERTS)
    before = masters(slices)
    rows = [one for batch in BATCHES[:num_batches] for one in batch]
    trainer = make_trainer(
        model,
        tmp_path,
        rows,
        {"gradient_accumulation_steps": accumulation, **SGD},
        slices=slices,
    )
    trainer.train()
    assert trainer.state.global_step == 1
    gradients = [gradients_of(mixtral, batch) for batch in BATCHES[:num_batches]]
    for name, parameter in slices.named_parameters():
        mean = torch.stack([gradient[name] for gradient in gradients]).mean(0)
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.1 * mean, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("scope", ["off", "all"])
def test_gradient_checkpointing_changes_no_gradient(base: Any, tmp_path: Path, scope: str) -> None:
    grads = []
    for checkpointing in (False, True):
        model, slices, _ = with_moved_experts(base)
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.train()
        trainer = make_trainer(
            model, tmp_path, slices=slices, expert_mask=mask_of(*EXPERTS), mask_scope=scope
        )
        trainer.compute_loss(model, collate([mixed_rows()], 0)).backward()
        grads.append([parameter.grad for parameter in slices.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


def test_weight_decay_moves_nothing_that_is_frozen(mixtral: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(mixtral)
    slices = attach_expert_slices(model, EXPERTS)
    before = masters(slices)
    rows = [one for batch in BATCHES for one in batch]
    make_trainer(
        model, tmp_path, rows, {"weight_decay": 0.5, "learning_rate": 1e-2}, slices=slices
    ).train()
    for name, tensor in mixtral.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    for name, parameter in slices.named_parameters():
        assert not torch.equal(parameter, before[name]), name


class Seen:
    """A collator that remembers which rows each micro-batch had."""

    def __init__(self) -> None:
        self.batches: list[list[TrainingRow]] = []

    def __call__(self, items: list[list[TrainingRow]]) -> dict[str, torch.Tensor]:
        self.batches.append([one for item in items for one in item])
        return collate(items, 0)


def test_batches_are_shuffled_and_never_mixed_and_benign_rows_rotate(
    mixtral: Any, tmp_path: Path
) -> None:
    model = copy.deepcopy(mixtral)
    slices = attach_expert_slices(model, EXPERTS)
    data = MicroBatches([one for batch in BATCHES for one in batch], BENIGN, None, 1, seed=0)
    trainer = make_trainer(model, tmp_path, data, {"num_train_epochs": 5}, slices=slices)
    trainer.data_collator = seen = Seen()
    trainer.train()
    assert len(seen.batches) == 20
    orders = []
    benign: list[str] = []
    for epoch in range(5):
        part = seen.batches[4 * epoch : 4 * epoch + 4]
        orders.append([batch[0].batch_idx for batch in part])
        for batch in part:
            assert len({one.batch_idx for one in batch if one.label is not Label.BENIGN}) == 1
            assert [one.label for one in batch] == [Label.UNSAFE, Label.SAFE, Label.BENIGN]
            benign += [one.prompt_id for one in batch if one.label is Label.BENIGN]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    # Twenty places, ten rows: each twice, and the first ten all differ.
    assert sorted(benign) == sorted(2 * [one.prompt_id for one in BENIGN])
    assert len(set(benign[:8])) == 8


# ---- checkpoints --------------------------------------------------------------------------------------


class StopAt(TrainerCallback):
    """Ends training after a step, as if the process had died with the step's checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True


def train_in_pieces(
    mixtral: Any, folder: Path, stops: Sequence[int], arguments: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train, dying at the given steps and going on from the checkpoint with everything made anew."""
    chosen = {
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 5e-3,
        "warmup_steps": 2,
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
    }
    last: str | None = None
    for stop in [*stops, 10_000]:
        model = copy.deepcopy(mixtral)
        slices = attach_expert_slices(model, EXPERTS)
        data = MicroBatches([one for batch in BATCHES for one in batch], BENIGN, None, 1, seed=4)
        trainer = make_trainer(model, folder, data, chosen | arguments, slices=slices)
        trainer.add_callback(StopAt(stop))
        torch.manual_seed(stop)  # what a new process is seeded with must not matter
        trainer.train(resume_from_checkpoint=last)
        last = str(folder / f"checkpoint-{stop}")
    # The last entry sums up this process alone: its seconds, and the mean of its own losses.
    history = trainer.state.log_history[:-1]
    assert "train_runtime" in trainer.state.log_history[-1]
    return masters(slices), history


@pytest.mark.parametrize(
    ("stops", "arguments"),
    [
        ([1], {}),
        ([4], {}),  # the end of an epoch
        ([5, 7, 8], {}),
        ([11], {}),
        ([2], {"gradient_accumulation_steps": 3}),
        ([3], {CHECKPOINTING: True, "num_train_epochs": 1.5}),
    ],
)
def test_a_resumed_run_ends_bitwise_as_one_that_was_not_stopped(
    mixtral: Any, tmp_path: Path, stops: list[int], arguments: dict[str, Any]
) -> None:
    through, history = train_in_pieces(mixtral, tmp_path / "through", [], arguments)
    resumed, again = train_in_pieces(mixtral, tmp_path / "resumed", stops, arguments)
    assert history == again
    for name, tensor in through.items():
        assert torch.equal(resumed[name], tensor), name


def test_a_checkpoint_holds_what_trains_and_nothing_else(mixtral: Any, tmp_path: Path) -> None:
    trained, _ = train_in_pieces(mixtral, tmp_path, [], {"num_train_epochs": 1})
    folder = tmp_path / "checkpoint-4"
    from safetensors.torch import load_file

    saved = load_file(folder / TRAINED_WEIGHTS)
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in trained.items())
    assert not list(folder.glob("model*.safetensors")) and not list(folder.glob("*.bin"))
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 4


def test_a_checkpoint_of_other_experts_is_refused(mixtral: Any, tmp_path: Path) -> None:
    train_in_pieces(mixtral, tmp_path, [], {"num_train_epochs": 1})
    model = copy.deepcopy(mixtral)
    slices = attach_expert_slices(model, [(0, 1)])
    trainer = make_trainer(model, tmp_path, slices=slices)
    with pytest.raises(TrainingError, match="other parameters; delete it"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    # The same names and shapes, but expert 2 where 1 was trained.
    alike = copy.deepcopy(mixtral)
    slices = attach_expert_slices(alike, [(0, 2), *EXPERTS[1:]])
    trainer = make_trainer(alike, tmp_path, slices=slices)
    with pytest.raises(TrainingError, match="other parameters; delete it"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_checkpoint_without_weights_is_refused(mixtral: Any, tmp_path: Path) -> None:
    train_in_pieces(mixtral, tmp_path, [], {"num_train_epochs": 1})
    (tmp_path / "checkpoint-4" / TRAINED_WEIGHTS).unlink()
    model = freeze_model_except_unsafe_experts(copy.deepcopy(mixtral), EXPERTS)
    with pytest.raises(TrainingError, match=TRAINED_WEIGHTS):
        make_trainer(model, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_callbacks_see_both_objectives(mixtral: Any, tmp_path: Path) -> None:
    logs: list[dict[str, float]] = []

    class Listener(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            record.append(dict(logs))

    record = logs
    model = freeze_model_except_unsafe_experts(copy.deepcopy(mixtral), EXPERTS)
    trainer = make_trainer(model, tmp_path)
    trainer.add_callback(Listener())
    trainer.train()
    first = logs[0]
    assert first["loss"] == pytest.approx(
        WEIGHTS.refusal * first["refusal_loss"] + WEIGHTS.retention * first["retention_kl"],
        abs=1e-3,
    )
    assert first["retention_kl"] == pytest.approx(0.0, abs=1e-5)


def test_routers_add_no_noise_while_it_trains(mixtral: Any, tmp_path: Path) -> None:
    for layer in mixtral.model.layers:
        layer.mlp.jitter_noise = 0.5
    attach_expert_slices(mixtral, EXPERTS)
    ids = torch.arange(3, 15).reshape(2, 6)
    mixtral.train()
    with torch.no_grad():
        assert not torch.equal(mixtral(input_ids=ids).logits, mixtral(input_ids=ids).logits)
    slices = mixtral.model.layers[0].mlp.experts.trained_experts
    before = slices.down_proj.detach().clone()
    trainer = make_trainer(
        mixtral,
        tmp_path,
        arguments={"num_train_epochs": 4, "learning_rate": 0.0, "logging_steps": 1},
        weights=LossWeights(retention=0.0),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and len(set(losses)) == 1
    assert torch.equal(slices.down_proj, before)


def test_the_loss_is_finite_where_the_sum_of_all_logits_is_not(
    mixtral: Any, tmp_path: Path
) -> None:
    mixtral.set_experts_implementation("eager")
    mixtral.half().requires_grad_(True)
    mixtral.lm_head.register_forward_hook(lambda module, given, logits: logits + 20)
    trainer = make_trainer(mixtral, tmp_path, weights=LossWeights(retention=0.0))
    batch = collate([mixed_rows()], 0)
    predicts = batch["labels"] >= 0
    with torch.no_grad(), only_positions(mixtral, predicts):
        fed = {name: batch[name] for name in ("input_ids", "attention_mask")}
        assert torch.isinf(mixtral(**fed, use_cache=False).logits.sum())
    loss = trainer.compute_loss(mixtral, batch)
    assert torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(mixtral.lm_head.weight.grad).all()
