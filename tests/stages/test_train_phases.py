"""Trainings of several phases, of routers and of own objectives: what they change on disk, and how they are resumed."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TinyCheckpoint
from ready_run import EXPERT, Ready, changed_experts, die_after, ready_run, tensors
from steermoe.errors import ConfigError, TrainingError
from steermoe.store.names import CHECKPOINTS, MODEL, SFT_DATASET
from steermoe.training.dataset import Example, TrainingRow
from steermoe.training.lower_states import LowerStates
from steermoe.training.trainer import ExpertMaskingTrainer

TWO_PHASES = [{"epochs": 1}, {"parameters": "routers", "epochs": 1, "learning_rate": 1e-2}]


@pytest.fixture
def ready(tmp_path: Path, tiny_checkpoint: TinyCheckpoint, small_prompts: Path) -> Ready:
    return ready_run(tiny_checkpoint("mixtral"), small_prompts, tmp_path / "run")


def changed_names(ready: Ready) -> set[str]:
    before, after = tensors(ready.checkpoint), tensors(ready.run.file(MODEL))
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def experts_and_others(names: set[str]) -> tuple[set[tuple[int, int]], set[str]]:
    places = {name: EXPERT.search(name) for name in names}
    experts = {(int(m[1]), int(m[2])) for m in places.values() if m is not None}
    return experts, {name for name, place in places.items() if place is None}


# ---- what changes, and the proof of it ----------------------------------------------------------------


def test_the_second_phase_goes_on_from_the_first_and_each_changes_its_own(ready: Ready) -> None:
    ready.select((0, 1), (1, 3))
    alone = ready.train(phases=TWO_PHASES[:1])
    first = tensors(ready.run.file(MODEL))
    figures = ready.train(phases=TWO_PHASES)
    assert figures["trained_experts"] == [(0, 1), (1, 3)]
    # D 32, F 16: three matrices an expert; 8 experts in each of two routers.
    assert figures["num_trained_parameters"] == 2 * 3 * 32 * 16 + 2 * 8 * 32
    experts, others = experts_and_others(changed_names(ready))
    assert experts == {(0, 1), (1, 3)}
    assert others and all(name.endswith("gate.weight") for name in others)
    both = tensors(ready.run.file(MODEL))
    # What the first phase has made of the experts stays bit for bit.
    assert all(torch.equal(first[name], both[name]) for name in first if name not in others)
    history = figures["history"]
    assert [(x["phase"], x["step"]) for x in history] == [(i // 3, i + 1) for i in range(6)]
    assert [x["loss"] for x in history[:3]] == [x["loss"] for x in alone["history"]]
    assert "only the selected experts' and the routers' differ" in ready.listener.text


def test_two_rounds_of_the_same_experts_are_told_from_one(ready: Ready) -> None:
    ready.select((0, 1))
    one = ready.train(epochs=1)["history"]
    two = ready.train(epochs=1, phases=[{}, {}])["history"]
    assert [x["loss"] for x in two[:3]] == [x["loss"] for x in one]
    # The second begins where the first has ended, and both are held to the model that the run began with.
    assert len(two) == 6 and two[0]["retention_kl"] == pytest.approx(0, abs=1e-5)
    assert two[3]["retention_kl"] > 1e-4  # its rounding is 1e-4
    assert ready.changed() == {(0, 1)}


def test_experts_and_routers_train_at_once(ready: Ready) -> None:
    ready.select((1, 3))
    ready.train(epochs=1, parameters="experts+routers")
    experts, others = experts_and_others(changed_names(ready))
    assert experts == {(1, 3)} and {name.split(".")[2] for name in others} == {"0", "1"}
    card = (ready.run.file(MODEL) / "README.md").read_text("utf-8")
    assert "L01_E03" in card and "routers" in card


def test_a_share_of_the_change_is_kept_of_both(ready: Ready) -> None:
    ready.select((1, 3))
    found = []
    for share in (1.0, 0.5):
        ready.train(epochs=1, parameters="experts+routers", kept_change=share)
        found.append(tensors(ready.run.file(MODEL)))
    whole, half = found
    base = tensors(ready.checkpoint)
    moved = {name for name in base if not torch.equal(base[name], whole[name])}
    assert any("gate" in name for name in moved) and any("experts" in name for name in moved)
    for name in moved:
        torch.testing.assert_close(half[name], (base[name] + whole[name]) / 2)


@pytest.mark.parametrize("parameters", ["routers", "experts+routers"])
def test_that_only_routers_changed_is_proven_on_disk(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, parameters: str
) -> None:
    from steermoe.stages import train as stage

    save = stage.save_hardened

    def spoil(model: Any, *more: Any) -> None:
        model.model.layers[1].self_attn.q_proj.weight.data[0, 0] += 1.0
        save(model, *more)

    monkeypatch.setattr(stage, "save_hardened", spoil)
    with pytest.raises(TrainingError, match=r"q_proj.*belongs to no selected expert"):
        ready.train(epochs=1, parameters=parameters)
    assert not ready.run.file(MODEL).exists()


# ---- going on -----------------------------------------------------------------------------------------


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of its phase with every step that is computed from now on."""
    taken: list[int] = []
    step = ExpertMaskingTrainer.training_step

    def counted(self: ExpertMaskingTrainer, *args: Any, **kwargs: Any) -> Any:
        taken.append(self.phase)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ExpertMaskingTrainer, "training_step", counted)
    return taken


@pytest.mark.parametrize(
    "phases",
    [
        TWO_PHASES,
        [{"epochs": 1}, {"epochs": 1.5}],
        [{"parameters": "routers", "epochs": 1}, {"epochs": 2}],
        [{"epochs": 1}, {"parameters": "experts+routers", "epochs": 1}, {"epochs": 1}],
        [{"parameters": "everything", "epochs": 1}, {"parameters": "everything", "epochs": 1}],
    ],
    ids=str,
)
def test_one_that_died_in_its_second_phase_goes_on_there_and_ends_the_same(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, phases: list[dict[str, Any]]
) -> None:
    ready.select((1, 0), (1, 3))
    through = ready.train(phases=phases)["history"]
    expected = tensors(ready.run.file(MODEL))
    die_after(ready, monkeypatch, step=1, phase=1, phases=phases)
    # Of a phase that is done only what the next one builds on is kept.
    (kept,) = ready.run.file(f"{CHECKPOINTS}/phase-0").iterdir()
    assert kept.name == "checkpoint-3"
    taken = steps_taken(monkeypatch)
    assert ready.train(phases=phases)["history"] == through
    num_steps = [sum(x["phase"] == i for x in through) for i in range(len(phases))]
    assert [taken.count(i) for i in range(len(phases))] == [0, num_steps[1] - 1, *num_steps[2:]]
    said = ready.listener.text
    assert f"train, phase 1 of {len(phases)}: done already" in said
    assert f"train, phase 2 of {len(phases)}: going on from checkpoint-1" in said
    resumed = tensors(ready.run.file(MODEL))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def test_one_that_died_in_its_first_phase_does_the_second_afterwards(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = ready.train(phases=TWO_PHASES)["history"]
    expected = tensors(ready.run.file(MODEL))
    die_after(ready, monkeypatch, step=1, phase=0, phases=TWO_PHASES)
    assert ready.train(phases=TWO_PHASES)["history"] == through
    resumed = tensors(ready.run.file(MODEL))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def test_a_second_phase_does_not_go_on_where_the_first_must_be_done_again(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = ready.train(phases=TWO_PHASES)["history"]
    die_after(ready, monkeypatch, step=1, phase=1, phases=TWO_PHASES)
    (ready.run.file(f"{CHECKPOINTS}/phase-0") / "checkpoint-3" / "trainer_state.json").unlink()
    taken = steps_taken(monkeypatch)
    assert ready.train(phases=TWO_PHASES)["history"] == through
    assert taken == [0, 0, 0, 1, 1, 1]


def test_a_checkpoint_of_another_phase_is_refused(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [{"epochs": 1}, {"epochs": 1}]
    die_after(ready, monkeypatch, step=1, phase=1, phases=phases)
    second, first = (ready.run.file(f"{CHECKPOINTS}/phase-{i}") for i in (1, 0))
    for name in ("trained.safetensors",):
        (first / "checkpoint-3" / name).write_bytes((second / "checkpoint-1" / name).read_bytes())
    with pytest.raises(TrainingError, match="holds other parameters; delete it"):
        ready.train(phases=phases)


# ---- what a phase may know already --------------------------------------------------------------------


def rows_kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of rows whenever the states of lower layers are kept from now on."""
    kept: list[int] = []
    make = LowerStates.__init__

    def counted(self: LowerStates, model: Any, layers: Any, rows: Any, pad: int) -> None:
        kept.append(len(rows))
        make(self, model, layers, rows, pad)

    monkeypatch.setattr(LowerStates, "__init__", counted)
    return kept


@pytest.mark.parametrize(
    ("phases", "times"),
    [
        ([{"epochs": 2}, {"epochs": 2}], 1),
        # Routers of the lowest layer train in between: what leaves it is another then.
        ([{"epochs": 2}, {"parameters": "routers", "epochs": 2}, {"epochs": 2}], 2),
        ([{"parameters": "routers", "epochs": 2}, {"epochs": 2}, {"epochs": 2}], 1),
    ],
    ids=str,
)
def test_kept_states_serve_as_long_as_nothing_below_them_trains(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, phases: list[dict[str, Any]], times: int
) -> None:
    ready.select((1, 0), (1, 3))
    kept = rows_kept(monkeypatch)
    history = ready.train(phases=phases)["history"]
    assert len(kept) == times
    monkeypatch.setattr("steermoe.training.lower_states.MOST_BYTES", 0)
    for one, other in zip(history, ready.train(phases=phases)["history"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)
    assert "cannot be spared (0.0 GiB would be kept" in ready.listener.text


# ---- objectives ---------------------------------------------------------------------------------------


class SumOfLogits:
    """Pushes the mean logit of every token up: a loss that no shipped objective has."""

    name = "push"
    weight = 0.5

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def row(self, example: Example, position: int) -> TrainingRow | None:
        if example.prompt.label != "benign":
            return None
        output = example.output
        return TrainingRow(
            example.prompt.prompt_id,
            example.prompt.label,
            example.batch_idx,
            self.name,
            output.messages,
            f"row {position}",
            output.prompt_token_ids,
            output.generated_token_ids,
        )

    def loss(self, batch: Any, forward: Any) -> torch.Tensor:
        return -forward.tokens(self.name).logits.float().mean()


def own_objective(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    module = types.ModuleType("my_objectives")
    module.push = made
    monkeypatch.setitem(sys.modules, "my_objectives", module)


def test_an_own_objective_trains_on_its_own_rows(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_objective(monkeypatch, SumOfLogits)
    names = ["my_objectives:push", "refusal", "retention"]
    history = ready.train(objectives=names, epochs=2)["history"]
    # Three batches an epoch, in another order each.
    first_epoch, second_epoch = (
        sum(entry["push_loss"] for entry in part) for part in (history[:3], history[3:])
    )
    assert second_epoch < first_epoch
    first = history[0]
    total = first["refusal_loss"] + 2 * first["retention_kl"] + 0.5 * first["push_loss"]
    assert first["loss"] == pytest.approx(total, abs=1e-3)
    lines = ready.run.file(SFT_DATASET).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["objective"] for row in rows if row["label"] == "benign"} == {"push"}
    assert {row["objective"] for row in rows if row["label"] == "unsafe"} == {"refusal"}


def test_a_phase_has_the_rows_of_its_own_objectives(ready: Ready) -> None:
    ready.train(phases=[{"objectives": ["refusal"], "epochs": 1}, {"epochs": 1}])
    said = ready.listener.text
    assert "24 prompts belong to no objective and are not trained on" in said
    assert "on 12 refusals and 0 benign ones, in 3 micro-batches" in said
    assert "on 12 refusals, 12 harmless replies and 12 benign ones, in 3 micro-batches" in said
    assert len(ready.run.file(SFT_DATASET).read_text("utf-8").splitlines()) == 36
    assert changed_experts(ready.checkpoint, ready.run.file(MODEL))


def test_an_own_objective_that_fails_is_told_in_one_line(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(SumOfLogits):
        def loss(self, batch: Any, forward: Any) -> torch.Tensor:
            raise KeyError("no such\nthing")

    own_objective(monkeypatch, Fails)
    with pytest.raises(TrainingError, match="'my_objectives:push' failed with KeyError") as caught:
        ready.train(objectives=["my_objectives:push", "refusal", "retention"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot import the objective 'nowhere:push'"):
        ready.train(objectives=["nowhere:push"])
