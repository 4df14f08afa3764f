"""Expert masks while training, against routers that are written again over the allowed experts.

Shape legend: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from conftest import TinyCheckpoint
from steermoe.api import freeze_model_except_unsafe_experts
from steermoe.errors import TrainingError
from steermoe.records import Label
from steermoe.training.dataset import MicroBatches, TrainingRow, collate
from steermoe.training.trainer import ExpertMaskingTrainer
from training_references import (
    EXPERTS,
    WEIGHTS,
    compare_with_reference,
    make_trainer,
    mixed_rows,
    reference_loss,
    with_moved_experts,
)


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint("mixtral")).eval()


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


def test_a_mask_may_be_given_to_the_trainer_itself_and_not_beside_a_plan(
    mixtral: Any, tmp_path: Path
) -> None:
    model = freeze_model_except_unsafe_experts(mixtral, EXPERTS)
    given: dict[str, Any] = {
        "model": model,
        "args": TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
        "train_dataset": MicroBatches(mixed_rows()),
    }
    masked = ExpertMaskingTrainer(
        **given,
        expert_mask=MASKS["both layers"],
        mask_scope="unsafe",
        objectives=WEIGHTS.objectives(),
    )
    batch = collate([mixed_rows()], 0)
    planned = make_trainer(
        model, tmp_path, expert_mask=MASKS["both layers"], mask_scope="unsafe"
    ).compute_loss(model, batch)
    assert masked.compute_loss(model, batch).item() == planned.item()
    with pytest.raises(TrainingError, match="'all' but no expert_mask"):
        ExpertMaskingTrainer(**given, mask_scope="all")
    with pytest.raises(TrainingError, match="give expert_mask to it"):
        ExpertMaskingTrainer(
            **given,
            plan=masked.plan,
            mask_scope="all",
            expert_mask=MASKS["both layers"],
        )
