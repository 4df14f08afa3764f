"""The train stage: what it writes, what it leaves bitwise as it was, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from ready_run import Ready, changed_experts, die_after, ready_run, tensors
from steermoe.errors import ConfigError, RunDirectoryError, SteerMoEError, TrainingError
from steermoe.loading import LoadedModel, load_model
from steermoe.records import Judgement, Verdict
from steermoe.stages import train as train_stage
from steermoe.stages.train import train
from steermoe.stages.training_rows import training_rows
from steermoe.store.directory import RunDirectory
from steermoe.store.names import CHECKPOINTS, MODEL, SFT_DATASET
from steermoe.store.run import load_run
from steermoe.training import lower_states
from steermoe.training.lower_states import ROWS_AT_A_TIME, LowerStates
from tiny import Listener, files_of, finished_run, tiny_config


@pytest.fixture(scope="module", params=["mixtral", "olmoe", "qwen3_moe"])
def checkpoint(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint(request.param)


@pytest.fixture
def ready(tmp_path: Path, tiny_checkpoint: TinyCheckpoint, small_prompts: Path) -> Ready:
    return ready_run(tiny_checkpoint("mixtral"), small_prompts, tmp_path / "run")


# ---- the hardened checkpoint --------------------------------------------------------------------------


def test_only_the_selected_experts_differ_bit_for_bit(finished: Path, checkpoint: Path) -> None:
    selected = load_run(finished).unsafe_experts
    assert len(selected) == 4
    assert changed_experts(checkpoint, finished / MODEL) == set(selected)


def test_it_loads_in_plain_transformers_with_its_tokenizer(
    finished: Path, checkpoint: Path
) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(finished / MODEL, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(model) is type(base)
    tokenizer = AutoTokenizer.from_pretrained(finished / MODEL)
    original = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.special_tokens_map == original.special_tokens_map
    assert tokenizer.padding_side == original.padding_side == "right"
    ids = tokenizer("Hello", return_tensors="pt").input_ids
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, base(ids).logits)
        assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[0] == 1
    configs = [json.loads((p / "config.json").read_text()) for p in (finished / MODEL, checkpoint)]
    for config in configs:
        config.pop("transformers_version", None)
    assert configs[0] == configs[1]


def test_the_model_card_names_base_experts_and_settings(finished: Path, checkpoint: Path) -> None:
    card = (finished / MODEL / "README.md").read_text("utf-8")
    assert card.startswith("---\nbase_model:")
    assert checkpoint.name in card and str(checkpoint.parent) not in card
    for layer, expert in load_run(finished).unsafe_experts:
        assert f"L{layer:02d}_E{expert:02d}" in card


def test_training_leaves_no_checkpoint_and_tells_what_it_did(finished: Path) -> None:
    assert not (finished / CHECKPOINTS).exists()
    figures = load_run(finished).state.figures_of("train")
    assert figures["num_trained_experts"] == 4
    # D 32, F 16: gate, up and down of one expert.
    assert figures["num_trained_parameters"] == 4 * 3 * 32 * 16
    history = figures["history"]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["refusal_loss"] < history[0]["refusal_loss"]


def test_a_checkpoint_that_differs_elsewhere_is_refused_and_not_left_behind(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steermoe.stages import train as stage

    save = stage.save_hardened

    def spoil(model: Any, *more: Any) -> None:
        model.lm_head.weight.data[0, 0] += 1.0
        save(model, *more)

    monkeypatch.setattr(stage, "save_hardened", spoil)
    with pytest.raises(TrainingError, match="lm_head"):
        ready.train()
    assert not ready.run.file(MODEL).exists()
    assert not any("model" in name for name in files_of(ready.run.path))


# ---- what it is trained on ----------------------------------------------------------------------------


def test_the_dataset_is_what_trl_reads_and_holds_train_prompts_only(finished: Path) -> None:
    run = load_run(finished)
    prompts = {prompt.prompt_id: prompt for prompt in run.prompts}
    rows = [json.loads(line) for line in (finished / SFT_DATASET).read_text("utf-8").splitlines()]
    replies = run.responses.set_index("prompt_id")["generated_text"]
    assert sorted(row["prompt_id"] for row in rows) == sorted(
        p.prompt_id for p in run.prompts if p.split == "train"
    )
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        assert row["prompt"] == [dict(message) for message in prompt.messages]
        (completion,) = row["completion"]
        assert completion["role"] == "assistant"
        if prompt.label == "unsafe":
            assert completion["content"] == "No." and row["objective"] == "refusal"
        else:
            assert completion["content"] == replies[row["prompt_id"]]
            assert row["objective"] == "retention"
        assert row["label"] == prompt.label
    batches = run.responses.set_index("prompt_id")["batch_idx"]
    for row in rows:
        if row["label"] != "benign":
            assert row["batch_idx"] == batches[row["prompt_id"]]


def with_verdicts(ready: Ready, **verdicts: str) -> None:
    """Overwrite the verdict of some prompts, and make the safe one of a pair a plain goal."""
    before = ready.run.read_verdicts("base", "keyword")
    found = {
        ("base", prompt_id, "keyword"): Judgement(Verdict(verdict))
        for prompt_id, verdict in (before | verdicts).items()
    }
    ready.run.write_verdicts(found, ["base"])


def test_a_plain_goal_is_kept_where_the_base_refused_it_and_learned_where_it_complied(
    ready: Ready,
) -> None:
    import dataclasses

    prompts = list(ready.run.read_prompts())
    safe = [i for i, p in enumerate(prompts) if p.label == "safe" and p.split == "train"][:3]
    for i in safe:
        prompts[i] = dataclasses.replace(prompts[i], category="plain_goal")
    ready.run.write_prompts(prompts)
    ids = [prompts[i].prompt_id for i in safe]
    with_verdicts(ready, **dict(zip(ids, ["refused", "answered", "unscored"], strict=True)))
    tokenizer = AutoTokenizer.from_pretrained(ready.checkpoint)
    rows, _, _ = training_rows(ready.run, ready.config(), tokenizer)
    objectives = {row.prompt_id: row.objective for row in rows}
    assert [objectives[i] for i in ids] == ["retention", "refusal", "refusal"]


def test_prompts_in_no_mixed_batch_are_left_out_and_counted(ready: Ready) -> None:
    table = ready.run.read_replies()
    unplaced = (table["batch_idx"] == 2).to_numpy()
    table.loc[unplaced, ["batch_idx", "in_batch_idx"]] = -1
    ready.run.write_table("responses.parquet", table)
    tokenizer = AutoTokenizer.from_pretrained(ready.checkpoint)
    rows, _, left_out = training_rows(ready.run, ready.config(), tokenizer)
    assert Counter(row.batch_idx for row in rows) == {0: 8, 1: 8}
    assert left_out == {"are in no mixed batch": 8}


def test_an_empty_reply_has_nothing_to_keep_and_is_counted(ready: Ready) -> None:
    first = ready.run.read_replies().iloc[0]
    assert first["label"] == "safe"
    tokens = ready.run.read_table("tokens.parquet")
    tokens.at[0, "generated_token_ids"] = np.array([], dtype=np.int32)
    ready.run.write_table("tokens.parquet", tokens)
    ready.train(epochs=0.3)
    assert "1 prompts have an empty reply" in ready.listener.text
    rows = ready.run.file(SFT_DATASET).read_text("utf-8").splitlines()
    assert first["prompt_id"] not in [json.loads(row)["prompt_id"] for row in rows]
    assert len(rows) == 35


@pytest.mark.parametrize("target", ["Nope.", ["One.", "Two."], "my_targets:echo"])
def test_the_target_response_may_be_a_text_a_list_or_a_callable(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    module = types.ModuleType("my_targets")
    module.echo = lambda prompt: f"No to {prompt.goal}"
    monkeypatch.setitem(sys.modules, "my_targets", module)
    tokenizer = AutoTokenizer.from_pretrained(ready.checkpoint)
    rows, _, _ = training_rows(ready.run, ready.config(target_response=target), tokenizer)
    refusals = [row for row in rows if row.objective == "refusal"]
    goals = {p.prompt_id: p.goal for p in ready.run.read_prompts()}
    if target == "Nope.":
        assert {row.completion for row in refusals} == {"Nope."}
    elif isinstance(target, list):
        assert Counter(row.completion for row in refusals) == {"One.": 6, "Two.": 6}
    else:
        assert all(row.completion == f"No to {goals[row.prompt_id]}" for row in refusals)


# ---- which experts ------------------------------------------------------------------------------------


def test_targets_that_the_judge_would_not_call_refusals_are_noted_before_training(
    ready: Ready,
) -> None:
    ready.train(epochs=1, target_response=["I can't help with that.", "Have a nice day."])
    said = ready.listener.said
    (note,) = [i for i, line in enumerate(said) if "would not call" in line]
    assert "the judge keyword would not call 1 of 2 target responses a refusal" in said[note]
    assert "'Have a nice day.'" in said[note]
    assert note < min(i for i, line in enumerate(said) if line.startswith("training "))
    ready.listener.said.clear()
    ready.train(epochs=1, target_response="I can't help with that.")
    assert "would not call" not in ready.listener.text


def test_a_judge_that_cannot_be_asked_about_the_targets_hinders_no_training(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise ConfigError("the server is away")

    monkeypatch.setattr(train_stage, "not_refusals", fails)
    ready.train(epochs=1)
    assert "is not known: the server is away" in ready.listener.text


def test_nothing_selected_trains_nothing_and_says_so(ready: Ready) -> None:
    (ready.run.path / MODEL).mkdir()
    ready.run.write_json_lines(SFT_DATASET, [])
    ready.select()
    assert ready.train() == {"num_trained_experts": 0, "trained_experts": []}
    assert "no unsafe experts were selected, so nothing is trained" in ready.listener.text
    # What an earlier training wrote would be taken for this one's.
    assert not ready.run.file(MODEL).exists() and not ready.run.file(SFT_DATASET).exists()


def test_the_union_of_the_batches_trains_and_its_size_is_said(ready: Ready) -> None:
    ready.select((0, 1), b0=[[0, 2], [1, 3]], b1=[[1, 3]], b2=[[1, 5]])
    figures = ready.train(experts="union", epochs=1)
    assert figures["num_trained_experts"] == 3
    assert ready.changed() == {(0, 2), (1, 3), (1, 5)} == set(figures["trained_experts"])
    assert re.search(r"union.*3 experts", ready.listener.text)


def test_half_of_the_change_lies_half_way_between_both_models(ready: Ready) -> None:
    ready.select((0, 1))
    found = []
    for share in (1.0, 0.5):
        ready.train(epochs=1, kept_change=share)
        found.append(tensors(ready.run.file(MODEL)))
    whole, half = found
    base = tensors(ready.checkpoint)
    moved = [name for name in base if not torch.equal(base[name], whole[name])]
    assert moved
    for name in moved:
        torch.testing.assert_close(half[name], (base[name] + whole[name]) / 2)


def test_a_baseline_keeps_its_whole_change_and_says_so(ready: Ready) -> None:
    ready.train(epochs=1, parameters="routers")
    whole = tensors(ready.run.file(MODEL))
    ready.train(epochs=1, parameters="routers", kept_change=0.5)
    assert "0.5, but a baseline keeps its whole change" in ready.listener.text
    again = tensors(ready.run.file(MODEL))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(("epochs", "is_few"), [(6, True), (7, False)])
def test_few_steps_are_worth_a_word(ready: Ready, epochs: float, is_few: bool) -> None:
    ready.train(epochs=epochs)  # of three batches each
    said = "training steps are few; raise train.epochs (6 now)" in ready.listener.text
    assert said == is_few


@pytest.mark.parametrize("scope", ["unsafe", "all"])
@pytest.mark.parametrize("mask", ["global", "batch"])
def test_training_under_a_mask_runs_and_differs(ready: Ready, scope: str, mask: str) -> None:
    ready.select((0, 1), (1, 3), b0=[[0, 1], [1, 5]], b1=[[1, 3]])  # batch 2 has none
    plain = ready.train(epochs=1)["history"]
    masked = ready.train(epochs=1, mask_scope=scope, mask=mask)["history"]
    assert ready.changed() == {(0, 1), (1, 3)}
    assert [e["refusal_loss"] for e in plain] != [e["refusal_loss"] for e in masked]


def test_experts_that_are_looked_up_by_token_id_are_left_out_of_the_mask(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such layers cannot be masked: the choice is not the router's. Here the first one says that it is one."""

    def load(*arguments: Any, **keywords: Any) -> LoadedModel:
        loaded = load_model(*arguments, **keywords)
        first, *others = loaded.description.layers
        layers = (dataclasses.replace(first, is_hash_routed=True), *others)
        return dataclasses.replace(
            loaded, description=dataclasses.replace(loaded.description, layers=layers)
        )

    monkeypatch.setattr("steermoe.stages.train.load_model", load)
    ready.select((1, 3))
    alone = ready.train(epochs=1, mask_scope="all")["history"]
    assert "looked up by token id" not in ready.listener.text
    ready.select((0, 1))
    assert ready.train(epochs=1, mask_scope="all")["history"] != alone
    assert "1 trained experts are looked up by token id; their layers are not masked" in (
        ready.listener.text
    )
    unmasked = ready.train(epochs=1)["history"]
    assert ready.train(epochs=1, mask_scope="all")["history"] == unmasked


@pytest.mark.parametrize("parameters", ["routers", "everything"])
def test_the_baselines_train_what_they_say(ready: Ready, parameters: str) -> None:
    figures = ready.train(epochs=1, parameters=parameters)
    assert figures["num_trained_experts"] is None
    before, after = tensors(ready.checkpoint), tensors(ready.run.file(MODEL))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    if parameters == "routers":
        assert changed and all(name.endswith("gate.weight") for name in changed)
    else:
        assert {"lm_head.weight", "model.norm.weight"} <= changed
        assert any("experts" in name for name in changed)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
        {"batch_size": 3},
        {"benign_per_batch": 1, "retention_tokens": 2},
        {"retention_weight": 0.0},
        {"weight_decay": 0.1, "lr_scheduler_type": "cosine"},
        {"first_tokens": 2, "first_tokens_weight": 5.0},
        {"adam_epsilon": 1e-4},
    ],
    ids=str,
)
def test_every_setting_trains_the_selected_experts_alone(
    ready: Ready, settings: dict[str, Any]
) -> None:
    ready.train(epochs=1, **settings)
    assert ready.changed() == set(load_run(ready.run.path).unsafe_experts)


# ---- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "num_steps"),
    [
        ({"warmup_steps": 6}, 6),
        ({"warmup_steps": 60}, 6),
        ({"warmup_ratio": 1.0}, 6),
        ({"warmup_steps": 2, "gradient_accumulation_steps": 3}, 2),
        ({"warmup_steps": 1, "epochs": 0.3}, 1),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_refused(
    ready: Ready, settings: dict[str, Any], num_steps: int
) -> None:
    with pytest.raises(TrainingError, match=rf"warm-up of \d+ steps.*run of {num_steps}:"):
        ready.train(**settings)
    assert not ready.run.file(MODEL).exists()


def test_a_warm_up_one_step_shorter_trains(ready: Ready) -> None:
    history = ready.train(warmup_steps=5)["history"]
    rates = [entry["learning_rate"] for entry in history]
    assert rates == pytest.approx([i * 1e-3 for i in range(6)])


def test_an_epsilon_above_the_gradients_bounds_every_weights_change(ready: Ready) -> None:
    def largest_change(**settings: float) -> float:
        ready.train(epochs=1, warmup_steps=0, lr_scheduler_type="constant", **settings)
        before, after = tensors(ready.checkpoint), tensors(ready.run.file(MODEL))
        return max(
            float((after[name].float() - before[name].float()).abs().max()) for name in before
        )

    usual = largest_change()
    # No gradient is above max_grad_norm, 1, so a step moves no weight by more than rate * 1 / (0 + epsilon).
    num_steps, rate, epsilon = 6, 5e-3, 100.0
    bounded = largest_change(adam_epsilon=epsilon)
    assert 0 < bounded <= num_steps * rate / epsilon * 1.01
    assert usual > rate / 2, "by itself AdamW moves a weight by the rate, whatever its gradient"


def test_a_schedule_is_told_its_own_settings(ready: Ready) -> None:
    history = ready.train(
        warmup_steps=0,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 2, "lr_end": 0.0},
    )["history"]
    rates = [entry["learning_rate"] for entry in history]
    assert rates == pytest.approx([5e-3 * (left / 6) ** 2 for left in range(6, 0, -1)])


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "sideways"},
        {"lr_scheduler_kwargs": {"power": 2.0}},  # the linear schedule takes none
        {"report_to": ["a_tracker_that_is_not_there"]},
        {"target_response": "no_such_module:refuse"},
        {"target_response": " "},
    ],
    ids=str,
)
def test_a_setting_that_cannot_hold_is_refused_in_one_line(
    ready: Ready, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        ready.train(**settings)
    (name,) = settings
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not ready.run.file(MODEL).exists()


def test_an_expert_that_the_model_lacks_is_refused(ready: Ready) -> None:
    ready.select((0, 1), (5, 1))
    with pytest.raises(SteerMoEError, match="layer 5"):
        ready.train()


def test_training_before_collecting_names_the_missing_stage(
    tmp_path: Path, tiny_checkpoint: TinyCheckpoint, small_prompts: Path
) -> None:
    run = RunDirectory(tmp_path / "empty")
    run.create()
    config = tiny_config(tiny_checkpoint("mixtral"), run.path, small_prompts)
    with pytest.raises(RunDirectoryError, match="steermoe identify --run"):
        train(run, config, Listener())


# ---- checkpoints that died ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "goes_on_from"),
    [
        (lambda folder: None, 4),
        (lambda folder: (folder / "trainer_state.json").unlink(), 3),
        (lambda folder: (folder / "trainer_state.json").write_text('{"epoch": 1.'), 3),
        (lambda folder: (folder / "trained.safetensors").unlink(), 3),
        (lambda folder: (folder / "optimizer.pt").unlink(), 3),
    ],
)
def test_training_goes_on_from_the_last_checkpoint_that_is_whole(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, damage: Any, goes_on_from: int
) -> None:
    whole = finished_run(ready.checkpoint, ready.prompts)
    through = load_run(whole).state.figures_of("train")["history"]
    expected = tensors(whole / MODEL)
    die_after(ready, monkeypatch, step=4)
    damage(ready.run.file(f"{CHECKPOINTS}/phase-0/checkpoint-4"))
    again = ready.train()["history"]
    assert f"going on from checkpoint-{goes_on_from}" in ready.listener.text
    assert again == through
    resumed = tensors(ready.run.file(MODEL))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


# ---- layers below the lowest trained one --------------------------------------------------------------


def passes_of_the_lowest_layer(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every row that the lowest layer's experts read from now on."""
    from steermoe.stages import train as stage

    rows: list[int] = []

    def load(*args: Any, **kwargs: Any) -> LoadedModel:
        loaded = load_model(*args, **kwargs)
        loaded.model.model.layers[0].mlp.register_forward_hook(
            lambda _, arguments, __: rows.append(len(arguments[0]))
        )
        return loaded

    monkeypatch.setattr(stage, "load_model", load)
    return rows


def test_the_layers_below_run_once_for_each_row_however_many_epochs(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.select((1, 0), (1, 3))
    rows = passes_of_the_lowest_layer(ready, monkeypatch)
    ready.train(epochs=3)
    num_rows = len(ready.run.file(SFT_DATASET).read_text("utf-8").splitlines())
    first_group = min(num_rows, ROWS_AT_A_TIME)
    # Once, of the first group once more, to see that the model can do without them, and one row of the trained model,
    # to see that it still computes numbers.
    assert sum(rows) == num_rows + first_group + 1
    assert ready.changed() == {(1, 0), (1, 3)}


@pytest.mark.parametrize("settings", [{"epochs": 1}, {"epochs": 3, "parameters": "everything"}])
def test_nothing_is_kept_where_it_would_not_be_read_again_or_would_change(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    ready.select((1, 0), (1, 3))
    monkeypatch.setattr(LowerStates, "__init__", lambda *_: pytest.fail("states were kept"))
    ready.train(**settings)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_on_kept_states_ends_where_training_without_them_does(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    ready.select((1, 0), (1, 3))
    kept = ready.train(epochs=3, gradient_checkpointing=checkpointing)["history"]
    monkeypatch.setattr(lower_states, "MOST_BYTES", 0)
    computed = ready.train(epochs=3)["history"]
    assert len(kept) == len(computed) > 3
    for one, other in zip(kept, computed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_a_resumed_training_sees_the_same_kept_states(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.select((1, 0), (1, 3))
    through = ready.train()["history"]
    expected = tensors(ready.run.file(MODEL))
    shutil.rmtree(ready.run.file(MODEL))
    die_after(ready, monkeypatch, step=4)
    assert ready.train()["history"] == through
    assert "going on from checkpoint-4" in ready.listener.text
    resumed = tensors(ready.run.file(MODEL))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
