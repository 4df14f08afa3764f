"""Whole trainings: accumulation, order, what a checkpoint holds, and going on from one."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from conftest import TinyCheckpoint
from steermoe.analysis.selection import create_expert_mask
from steermoe.api import freeze_model_except_unsafe_experts
from steermoe.errors import TrainingError
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.slices import ExpertSlices, attach_expert_slices
from steermoe.records import Label
from steermoe.training.dataset import MicroBatches, TrainingRow, collate
from steermoe.training.trainer import TRAINED_WEIGHTS
from training_references import (
    CHECKPOINTING,
    EXPERTS,
    WEIGHTS,
    LossWeights,
    make_trainer,
    mixed_rows,
    reference_loss,
    row,
    with_moved_experts,
)


@pytest.fixture(params=["mixtral", "olmoe", "qwen3_moe"])
def base(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint(request.param)).eval()


@pytest.fixture
def mixtral(tiny_checkpoint: TinyCheckpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint("mixtral")).eval()


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
            model,
            tmp_path,
            slices=slices,
            expert_mask=create_expert_mask(2, find_moe_layers(model).num_experts, EXPERTS),
            mask_scope=scope,
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
