"""Which steps are done, and which are done again: by what they read, and by nothing else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_steps import ALL, Fakes
from steermoe.config import Config
from steermoe.errors import RunDirectoryError
from steermoe.pipeline import run_pipeline
from steermoe.pipeline.commands import RUN
from steermoe.records import Expert, Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    CHECKPOINTS,
    EVALUATION,
    HARDENED,
    MODEL,
    PROMPTS,
    RESPONSES,
    RISK,
    RISK_HELD_OUT,
    ROUTING,
    RUN_JSON,
    SFT_DATASET,
    SHARDS,
    UNSAFE_EXPERTS,
    VERDICTS,
    replies_of,
    shard_of,
)
from steermoe.store.run import load_run
from tiny import Listener, files_of

Make = Callable[..., Config]


def test_steps_run_once_in_order(fakes: Fakes, config: Make) -> None:
    listener = Listener()
    run = run_pipeline(config(), reporter=listener)
    assert fakes.take() == ALL
    assert ALL[:4] == ["collect", "judge", "identify", "train"]
    assert ALL[4:6] == ["reply", "judge hardened"]
    assert ALL[6:] == ["capability", "capability hardened", "evaluate", "report"]
    assert {name: s.status for name, s in run.state.stages.items()} == dict.fromkeys(ALL, "done")
    run_pipeline(config(), reporter=listener)
    assert fakes.take() == []
    assert all(f"{name}: done already" in listener.text for name in ALL)
    run_pipeline(config(), force=True)
    assert fakes.take() == ALL


TRAINED_AGAIN = ["train", "reply", "judge hardened", "capability hardened", "evaluate", "report"]


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        # The dear steps stay: nothing that they read has changed.
        (
            {"judge": {"main": "keyword", "others": ["keyword"]}},
            ["judge", "judge hardened", "report"],
        ),
        ({"evaluate": {"confidence": 0.9}}, ["evaluate", "report"]),
        ({"evaluate": {"num_bootstrap": 200}}, ["evaluate", "report"]),
        ({"identify": {"num_bootstrap": 50}}, ["identify", "report"]),
        ({"identify": {"num_permutations": 50}}, ["identify", "report"]),
        ({"identify": {"min_stability": 0.9}}, ["identify", "report"]),
        ({"report": {"top_experts": 3}}, ["report"]),
        # Other items are asked of both models; of tools that are not named, nothing is.
        (
            {"evaluate": {"benchmark_limit": 5}},
            ["capability", "capability hardened", "evaluate", "report"],
        ),
        ({"evaluate": {"benchmarks": []}}, ["evaluate", "report"]),
        # These change what the dear steps read.
        ({"train": {"epochs": 9}}, TRAINED_AGAIN),
        ({"train": {"target_response": "No."}}, TRAINED_AGAIN),
        ({"evaluate": {"split": "dev"}}, ["reply", "judge hardened", "evaluate", "report"]),
        # How often it saves, whom it tells, and where it runs changes no result.
        ({"train": {"arguments": {"save_steps": 3}}}, ["report"]),
        # What transformers is handed does.
        ({"train": {"arguments": {"adam_beta2": 0.9}}}, TRAINED_AGAIN),
        ({"train": {"arguments": {"report_to": ["tensorboard"]}}}, ["report"]),
        ({"model": {"device": "cpu"}}, []),
        # Settings that no step of a run reads.
        ({"ablate": {"num_draws": 5}}, ["report"]),
    ],
    ids=str,
)
def test_a_changed_setting_does_again_what_reads_it(
    fakes: Fakes, config: Make, settings: dict[str, Any], again: list[str]
) -> None:
    run_pipeline(config())
    fakes.take()
    run_pipeline(config(**settings))
    assert fakes.take() == again
    run_pipeline(config(**settings))
    assert fakes.take() == []


def test_another_selection_trains_again_and_the_same_one_does_not(
    fakes: Fakes, config: Make
) -> None:
    run_pipeline(config())
    fakes.take()
    # The same experts by another threshold: their figures differ, and training does not read those.
    run_pipeline(config(identify={"threshold": 0.01}))
    assert fakes.take() == ["identify", "report"]
    fakes.selected = [Expert(0, 1), Expert(0, 2)]
    run_pipeline(config(identify={"threshold": 0.0}))
    assert fakes.take() == ["identify", *TRAINED_AGAIN]


def test_another_verdict_identifies_and_measures_again_and_generates_nothing(
    fakes: Fakes, config: Make
) -> None:
    run_pipeline(config())
    fakes.take()
    fakes.verdict = Verdict.ANSWERED
    run_pipeline(config(), only="judge", force=True)
    assert fakes.take() == ["judge", "judge hardened"]
    run_pipeline(config())
    # It trains on no plain goal, so no verdict is part of what it is trained on.
    assert fakes.take() == ["identify", "evaluate", "report"]


def test_what_changed_is_named(fakes: Fakes, config: Make) -> None:
    run_pipeline(config())
    listener = Listener()
    run_pipeline(config(train={"epochs": 9}), reporter=listener)
    assert "train: train.epochs was 4.0 and is 9.0, so it is done again" in listener.text
    assert "reply: model changed, so it is done again" in listener.text


def test_run_json_keeps_what_each_step_was_really_done_with(fakes: Fakes, config: Make) -> None:
    run_pipeline(config())
    listener = Listener()
    run = run_pipeline(config(train={"epochs": 9}), only="evaluate", reporter=listener)
    assert "evaluate does not read train.epochs: it stays 4.0, as the run has it" in listener.text
    record = run.state.stages["train"]
    assert run.config.train.epochs == 4 and record.settings["train.epochs"] == 4
    assert (
        "train.arguments.save_steps" not in record.settings
        and "collect.temperature" not in record.settings
    )
    assert record.inputs.keys() >= {"base model", "selected experts", RESPONSES}


@pytest.mark.parametrize("failing", ALL)
def test_a_run_that_stopped_goes_on_where_it_stopped(
    fakes: Fakes, config: Make, failing: str
) -> None:
    fakes.failing = {failing: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    assert load_run(config().run_dir).state.stages[failing].status == "running"
    assert fakes.take() == ALL[: ALL.index(failing) + 1]
    fakes.failing = {}
    run_pipeline(config())
    assert fakes.take() == ALL[ALL.index(failing) :]
    stages = load_run(config().run_dir).state.stages
    assert {name: stage.interrupted for name, stage in stages.items() if stage.interrupted} == {
        failing: 1
    }
    assert stages[failing].attempts == " (last of 2 attempts)"
    run_pipeline(config(), force=True)
    assert not any(s.attempts for s in load_run(config().run_dir).state.stages.values())


def test_what_an_interrupted_step_left_is_kept_for_the_same_settings_alone(
    fakes: Fakes, config: Make
) -> None:
    fakes.failing = {"collect": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    piece = config().run_dir / shard_of("responses", 7)
    piece.touch()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    assert piece.exists()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config(collect={"max_new_tokens": 3}))
    assert not piece.exists()


def test_a_command_does_its_own_steps_and_the_judging_that_it_needs(
    fakes: Fakes, config: Make
) -> None:
    run_pipeline(config(), only="collect")
    assert fakes.take() == ["collect", "judge"]
    run_pipeline(config(), only="identify")
    run_pipeline(config(identify={"threshold": 0.3}), only="identify")
    assert fakes.take() == ["identify", "identify"]
    run_pipeline(
        config(identify={"threshold": 0.3}, judge={"others": ["keyword"]}), only="identify"
    )
    assert fakes.take() == ["judge"]
    # Training reads the settings of training alone; what identify was told does not matter to it.
    run_pipeline(config(), only="train")
    fakes.take()
    listener = Listener()
    run_pipeline(config(), only="train", reporter=listener)
    assert fakes.take() == []
    assert listener.said == [
        "note: train does not read identify.threshold: it stays 0.3, as the run has it",
        "train: done already; --force does it again",
    ]
    run_pipeline(config(), only="train", force=True)
    assert fakes.take() == ["train"]
    run_pipeline(config(), only="evaluate")
    assert fakes.take() == [
        *("reply", "judge hardened", "capability", "capability hardened", "evaluate")
    ]


STEP_OF = {
    PROMPTS: "collect",
    RESPONSES: "collect",
    ROUTING: "collect",
    RISK: "identify",
    UNSAFE_EXPERTS: "identify",
    SFT_DATASET: "train",
    MODEL: "train",
    replies_of(HARDENED): "reply",
    EVALUATION: "evaluate",
}


@pytest.mark.parametrize("name", STEP_OF)
def test_a_result_that_was_deleted_is_made_again_with_all_that_reads_it(
    fakes: Fakes, config: Make, name: str
) -> None:
    run_pipeline(config())
    fakes.take()
    (config().run_dir / name).unlink()
    listener = Listener()
    run_pipeline(config(), reporter=listener)
    ran = fakes.take()
    assert ran[0] == STEP_OF[name] and ran[-1:] in (["report"], [STEP_OF[name]])
    assert f"{STEP_OF[name]}: {name} is gone" in listener.text
    assert (config().run_dir / name).exists()
    run_pipeline(config())
    assert fakes.take() == []


def test_verdicts_of_every_variant_are_made_again_when_their_file_is_gone(
    fakes: Fakes, config: Make
) -> None:
    run_pipeline(config())
    (config().run_dir / VERDICTS).unlink()
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == ["judge", "judge hardened"]


@pytest.mark.parametrize(
    ("name", "command"), [(RESPONSES, "identify"), (UNSAFE_EXPERTS, "train"), (MODEL, "evaluate")]
)
def test_a_result_that_was_changed_from_outside_is_noticed_before_it_is_read(
    fakes: Fakes, config: Make, name: str, command: str
) -> None:
    run_pipeline(config())
    path = config().run_dir / name
    whole = path.read_text()
    path.write_text(whole.replace("number", "numbre").replace("0.5", "0.6"))
    fakes.take()
    with pytest.raises(RunDirectoryError, match=r"is not what `steermoe .*` has written") as caught:
        run_pipeline(config(), only=command, force=True)
    assert "\n" not in str(caught.value) and command not in fakes.take()
    # A copy has another time of change and the same content.
    path.write_text(whole)
    run_pipeline(config(), only=command, force=True)


def test_a_change_that_hides_itself_is_found_when_results_are_verified(
    fakes: Fakes, config: Make
) -> None:
    import os

    run_pipeline(config())
    path = config().run_dir / RESPONSES
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"number", b"numbre"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run_pipeline(config(), only="identify", force=True)
    with pytest.raises(RunDirectoryError, match="changed or damaged"):
        run_pipeline(config(), only="identify", force=True, verify=True)


def test_what_reads_a_deleted_result_is_done_again_after_an_interruption_too(
    fakes: Fakes, config: Make
) -> None:
    run_pipeline(config())
    (config().run_dir / UNSAFE_EXPERTS).unlink()
    fakes.selected = [Expert(0, 5)]
    fakes.failing = {"train": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    fakes.failing = {}
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == TRAINED_AGAIN


def test_a_step_that_had_nothing_to_write_is_not_done_again_for_that(
    fakes: Fakes, config: Make
) -> None:
    fakes.left_out = [RISK_HELD_OUT]
    run_pipeline(config())
    assert not (config().run_dir / RISK_HELD_OUT).exists()
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == []


def test_a_step_that_gives_the_same_files_again_costs_those_after_it_nothing(
    fakes: Fakes, config: Make
) -> None:
    fakes.numbers = itertools.repeat(0)
    run_pipeline(config())
    for command in ("judge", "identify", "train", "evaluate"):
        run_pipeline(config(), only=command, force=True)
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == []
    run_pipeline(config(train={"epochs": 3}))
    assert fakes.take() == ["train", "report"]


def test_a_step_that_starts_over_keeps_what_another_goes_on_from(
    fakes: Fakes, config: Make
) -> None:
    run_pipeline(config())
    directory = RunDirectory(config().run_dir)
    mine, other = shard_of(HARDENED, 3), shard_of("responses", 3)
    directory.write_json(mine, {})
    directory.write_json(other, {})
    directory.write_json(f"{CHECKPOINTS}/state", {})
    run_pipeline(config(), only="report", force=True)
    assert directory.has(mine) and directory.has(other) and directory.has(CHECKPOINTS)
    run_pipeline(config(), only="evaluate", force=True)
    assert not directory.has(mine) and directory.has(other) and directory.has(CHECKPOINTS)
    run_pipeline(config(), only="train", force=True)
    assert directory.has(other) and not directory.has(CHECKPOINTS)
    run_pipeline(config(), only="collect")
    assert not directory.has(SHARDS), "a finished step has nothing to go on from"


def test_the_hash_of_every_result_is_kept(fakes: Fakes, config: Make) -> None:
    import hashlib

    run = run_pipeline(config())
    done = [step for step in RUN if step.name in ALL]
    left = {name for step in done for name in step.writes if "*" not in name}
    assert run.state.files.keys() == left
    for name, found in run.state.files.items():
        assert found.sha256 == hashlib.sha256((run.path / name).read_bytes()).hexdigest()
        assert found.stamp == {
            "": ((run.path / name).stat().st_size, (run.path / name).stat().st_mtime_ns)
        }


def test_a_step_gets_nothing_that_it_has_not_declared(
    fakes: Fakes, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from steermoe.pipeline import run as pipeline

    seen: list[str] = []

    def curious(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        for what, ask in {
            "setting": lambda: config.train.epochs,
            "section": lambda: config.collect,
            "reading": lambda: run.read_table(RISK),
            "writing": lambda: run.write_json(EVALUATION, {}),
        }.items():
            try:
                ask()
            except (AttributeError, AssertionError):
                seen.append(what)
        return {}

    run_pipeline(config())
    first, (report,) = pipeline.COMMANDS["judge"][0], pipeline.COMMANDS["judge"][1][:1]
    step = replace(report, function=curious)
    monkeypatch.setitem(pipeline.COMMANDS, "judge", (first, (step,)))
    run_pipeline(config(), only="judge", force=True)
    assert seen == ["setting", "section", "reading", "writing"]


def test_settings_and_files_of_a_finished_run_stay(fakes: Fakes, config: Make) -> None:
    run_pipeline(config())
    before = files_of(config().run_dir)
    state = json.loads((config().run_dir / RUN_JSON).read_text())
    run_pipeline(config())
    assert files_of(config().run_dir) == before
    assert json.loads((config().run_dir / RUN_JSON).read_text()) == state


def test_a_local_model_is_hashed_once_and_again_when_it_was_touched(
    fakes: Fakes, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steermoe.moe import stored

    hashed: list[Any] = []
    real = stored.hash_checkpoint
    monkeypatch.setattr(
        stored, "hash_checkpoint", lambda source: hashed.append(source) or real(source)
    )
    for _ in range(3):
        run_pipeline(config())
    assert len(hashed) == 1
    run_pipeline(config(), verify=True)
    assert len(hashed) == 2
    (Path(config().model.id) / "model.safetensors").touch()
    run_pipeline(config())
    assert len(hashed) == 3
