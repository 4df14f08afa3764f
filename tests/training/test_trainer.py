"""The trainer's loss and gradient against a reference in plain loops.

Shape legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from architectures import enable_checkpointing
from conftest import TinyCheckpoint
from steermoe.analysis.selection import create_expert_mask
from steermoe.api import freeze_model_except_unsafe_experts
from steermoe.errors import TrainingError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.masking import masked_experts
from steermoe.moe.partial_passes import LowerLayers, only_positions
from steermoe.moe.slices import attach_expert_slices
from steermoe.records import Label
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import MicroBatches, TrainingRow, collate
from steermoe.training.forward_plan import ForwardPlan
from steermoe.training.lower_states import LowerStates
from steermoe.training.objectives.retention import kl_to_base
from steermoe.training.trainables import trainable_of
from steermoe.training.trainer import ExpertMaskingTrainer
from training_references import (
    EXPERTS,
    WEIGHTS,
    LossWeights,
    compare_gradients,
    compare_with_reference,
    make_trainer,
    mixed_rows,
    reference_loss,
    row,
    rows_that_begin_alike,
    take_step,
    with_moved_experts,
)


@pytest.fixture(params=["mixtral", "olmoe", "qwen3_moe"])
def base(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint(request.param)).eval()


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint("mixtral")).eval()


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


def test_many_completion_tokens_are_computed_in_pieces_alike(
    mixtral: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, slices, _ = with_moved_experts(mixtral)
    trainer = make_trainer(model, tmp_path, slices=slices)
    batch = collate([mixed_rows()], 0)
    whole = trainer.compute_loss(model, batch).item()
    monkeypatch.setattr("steermoe.training.objectives.retention.ROWS_OF_LOGITS", 4)
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
        model=mixtral,
        args=arguments,
        train_dataset=MicroBatches(mixed_rows()),
        plan=ForwardPlan(mixtral, trainable_of(mixtral, slices)),
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
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-6)


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
