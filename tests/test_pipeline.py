"""The stages in order: what is done again when something changes, and what a run directory refuses."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from conftest import TinyCheckpoint
from steermoe import pipeline
from steermoe.config import Config, validate
from steermoe.errors import (
    ConfigError,
    ModelError,
    PromptError,
    RunDirectoryError,
    SelectionError,
    SteerMoEError,
    TrainingError,
)
from steermoe.pipeline import STAGE_NAMES, Stage, run_pipeline
from steermoe.store.directory import (
    CHECKPOINTS,
    RISK,
    RISK_HELD_OUT,
    RUN_JSON,
    SHARDS,
    WRITTEN_BY,
    RunDirectory,
)
from steermoe.store.run import load_run
from tiny import (
    Listener,
    contents,
    copy_of,
    files_of,
    finished_run,
    tiny_config,
    write_prompts,
)

ALL = list(STAGE_NAMES)


# ---- orders and fingerprints, on stages that only write down that they ran -----------------------------


class Fakes:
    """Stages that leave the files of the real ones, can be told to fail, or to refuse before they write."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: dict[str, BaseException] = {}
        self.refused: list[str] = []
        self.left_out: list[str] = []
        self.numbers: Iterator[int] = itertools.count()

    def stage(self, real: Stage) -> Stage:
        def function(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
            self.ran.append(real.name)
            if real.name in self.refused:
                raise TrainingError("no")
            if real.name == "collect":
                run.write_json(run.shard_name(0), {})
            if real.name in self.failing:
                raise self.failing[real.name]
            for name, writer in WRITTEN_BY.items():
                if writer == real.name and name not in self.left_out:
                    run.write_json(name, {"number": next(self.numbers)})
            return {"ran": len(self.ran)}

        return replace(real, function=function, check=lambda config: None)

    def take(self) -> list[str]:
        """What ran since it was asked last."""
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes()
    monkeypatch.setattr(pipeline, "STAGES", tuple(made.stage(s) for s in pipeline.STAGES))
    monkeypatch.setattr(pipeline, "_release_memory", lambda: None)  # nothing to release, and slow
    monkeypatch.setattr(
        pipeline, "describe_model", lambda settings, source: None
    )  # no model either
    return made


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"w": load_zeros()}, model / "model.safetensors")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,label\nx,safe\n")

    def make(**settings: Any) -> Config:
        own = {
            "run": str(tmp_path / "run"),
            "model": {"id": str(model)} | settings.pop("model", {}),
            "prompts": {"sources": [str(prompts)]} | settings.pop("prompts", {}),
        }
        return validate(own | settings)

    return make


def load_zeros() -> Any:
    import torch

    return torch.zeros(3)


def test_stages_run_once_in_order(fakes: Fakes, config: Callable[..., Config]) -> None:
    listener = Listener()
    run = run_pipeline(config(), reporter=listener)
    assert fakes.take() == ALL == ["collect", "identify", "train", "evaluate", "report"]
    assert {name: s["status"] for name, s in run.state["stages"].items()} == dict.fromkeys(
        ALL, "done"
    )
    run_pipeline(config(), reporter=listener)
    assert fakes.take() == []
    assert all(f"{name}: done already" in listener.text for name in ALL)
    run_pipeline(config(), force=True)
    assert fakes.take() == ALL


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        ({"identify": {"threshold": 0.01}}, ALL[1:]),
        ({"identify": {"top_k": 3}}, ALL[1:]),
        ({"train": {"epochs": 9}}, ALL[2:]),
        ({"train": {"target_response": "No."}}, ALL[2:]),
        ({"evaluate": {"split": "dev"}}, ALL[3:]),
        ({"report": {"top_experts": 3}}, ALL[4:]),
        # How often it saves and whom it tells changes no result.
        ({"train": {"save_steps": 3}}, []),
        ({"train": {"report_to": ["tensorboard"]}}, []),
    ],
    ids=str,
)
def test_a_changed_setting_does_again_what_depends_on_it(
    fakes: Fakes, config: Callable[..., Config], settings: dict[str, Any], again: list[str]
) -> None:
    run_pipeline(config())
    fakes.take()
    listener = Listener()
    run_pipeline(config(**settings), reporter=listener)
    assert fakes.take() == again
    assert all(f"{name}: settings or inputs changed" in listener.text for name in again)
    # And back: everything that was done again is done once more.
    run_pipeline(config())
    assert fakes.take() == again


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"collect": {"max_new_tokens": 9}},
        {"collect": {"batch_size": 4}},
        {"prompts": {"include_failed": True}},
        {"model": {"dtype": "float32"}},
    ],
    ids=str,
)
def test_other_prompts_or_generation_settings_are_refused_without_force(
    fakes: Fakes, config: Callable[..., Config], settings: dict[str, Any]
) -> None:
    run_pipeline(config())
    before = files_of(config().run_dir), (config().run_dir / RUN_JSON).read_bytes()
    fakes.take()
    with pytest.raises(RunDirectoryError, match=r"other prompts.*--run.*--force") as caught:
        run_pipeline(config(**settings))
    assert "\n" not in str(caught.value)
    assert fakes.take() == []
    assert (files_of(config().run_dir), (config().run_dir / RUN_JSON).read_bytes()) == before
    run_pipeline(config(**settings), force=True)
    assert fakes.take() == ALL


def test_a_prompt_file_that_changed_is_other_prompts(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    run_pipeline(config())
    Path(config().prompts.sources[0]).write_text("prompt,label\ny,safe\n")
    with pytest.raises(RunDirectoryError, match="other prompts"):
        run_pipeline(config())


def test_another_model_is_refused_and_another_with_its_name_too(
    fakes: Fakes, config: Callable[..., Config], tmp_path: Path
) -> None:
    run_pipeline(config())
    other = shutil.copytree(config().model.id, tmp_path / "other")
    for force in (False, True):
        with pytest.raises(RunDirectoryError, match=r"belongs to model .*, not .*other"):
            run_pipeline(config(model={"id": str(other)}), force=force)
        with pytest.raises(RunDirectoryError, match="belongs to model"):
            run_pipeline(config(model={"revision": "main"}), force=force)
    weights = Path(config().model.id) / "model.safetensors"
    save_file({"w": load_file(weights)["w"] + 1}, weights)
    with pytest.raises(RunDirectoryError, match="other weights"):
        run_pipeline(config())


def test_another_schema_version_is_refused_and_left_alone(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    run_pipeline(config())
    state = config().run_dir / RUN_JSON
    state.write_text(json.dumps(json.loads(state.read_text()) | {"schema_version": 99}))
    with pytest.raises(RunDirectoryError, match="schema version 99"):
        run_pipeline(config())
    assert json.loads(state.read_text())["schema_version"] == 99


@pytest.mark.parametrize("failing", ALL)
def test_a_run_that_stopped_goes_on_where_it_stopped(
    fakes: Fakes, config: Callable[..., Config], failing: str
) -> None:
    fakes.failing = {failing: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    assert load_run(config().run_dir).state["stages"][failing]["status"] == "running"
    assert fakes.take() == ALL[: ALL.index(failing) + 1]
    fakes.failing = {}
    run_pipeline(config())
    assert fakes.take() == ALL[ALL.index(failing) :]


def test_what_an_interrupted_stage_left_is_kept_for_the_same_settings_alone(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    fakes.failing = {"collect": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    shard = config().run_dir / RunDirectory("").shard_name(7)
    shard.touch()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    assert shard.exists()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config(collect={"max_new_tokens": 3}))
    assert not shard.exists()


def test_a_stage_can_run_alone_and_builds_on_what_is_there(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    for name in ALL[:2]:
        run_pipeline(config(), only=name)
    run_pipeline(config(identify={"threshold": 0.3}), only="identify")
    assert fakes.take() == ["collect", "identify", "identify"]
    # Training reads the settings of training alone; what identify was told does not matter to it.
    run_pipeline(config(), only="train")
    listener = Listener()
    run_pipeline(config(), only="train", reporter=listener)
    assert fakes.take() == ["train"]
    assert "train: done already; --force does it again" in listener.text
    run_pipeline(config(), only="train", force=True)
    assert fakes.take() == ["train"]


@pytest.mark.parametrize("name", sorted(WRITTEN_BY.keys() - {"ablation.json", "ablation.parquet"}))
def test_a_result_that_was_deleted_is_made_again_with_all_that_is_built_on_it(
    fakes: Fakes, config: Callable[..., Config], name: str
) -> None:
    run_pipeline(config())
    fakes.take()
    (config().run_dir / name).unlink()
    listener = Listener()
    run_pipeline(config(), reporter=listener)
    assert fakes.take() == ALL[ALL.index(WRITTEN_BY[name]) :]
    assert f"{WRITTEN_BY[name]}: {name} is gone" in listener.text
    assert (config().run_dir / name).exists()
    run_pipeline(config())
    assert fakes.take() == []


def test_what_is_built_on_a_deleted_result_is_done_again_after_an_interruption_too(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    run_pipeline(config())
    (config().run_dir / RISK).unlink()
    fakes.failing = {"train": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    fakes.failing = {}
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == ALL[2:]


def test_a_stage_that_had_nothing_to_write_is_not_done_again_for_that(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    fakes.left_out = [RISK_HELD_OUT]
    run_pipeline(config())
    assert not (config().run_dir / RISK_HELD_OUT).exists()
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == []


@pytest.mark.parametrize(
    ("before", "then", "again"),
    [
        # Evaluated before there was a model; and while the old one was being replaced.
        (["collect", "identify", "evaluate"], ["train", None], ["train", "evaluate", "report"]),
        ([None, "train!", "evaluate"], ["train", None], ["train", "evaluate", "report"]),
        # Reported before there was anything else to report.
        (["collect", "identify", "report"], ["train", "report"], ["train", "report"]),
        ([None], ["identify", "report"], ["identify", "report"]),
        ([None], ["identify", None], ALL[1:]),
    ],
    ids=str,
)
def test_stages_run_alone_are_done_again_when_their_inputs_have_changed(
    fakes: Fakes,
    config: Callable[..., Config],
    before: list[str | None],
    then: list[str | None],
    again: list[str],
) -> None:
    for name in before:
        if name == "train!":
            fakes.failing = {"train": KeyboardInterrupt()}
            with pytest.raises(KeyboardInterrupt):
                run_pipeline(config(), only="train", force=True)
            fakes.failing = {}
        else:
            run_pipeline(config(), only=name)
    fakes.take()
    for name in then:
        run_pipeline(config(), only=name, force=name == "identify")
    assert fakes.take() == again
    run_pipeline(config())
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == []


def test_a_stage_that_gives_the_same_files_again_costs_those_after_it_nothing(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    fakes.numbers = itertools.repeat(0)
    run_pipeline(config())
    run_pipeline(config(), only="identify", force=True)
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == []
    run_pipeline(config(identify={"top_k": 3}))
    assert fakes.take() == ["identify"]


def test_the_hash_of_every_result_is_kept(fakes: Fakes, config: Callable[..., Config]) -> None:
    run = run_pipeline(config())
    files = run.state["stages"]["identify"]["files"]
    assert sorted(files) == sorted(n for n, writer in WRITTEN_BY.items() if writer == "identify")
    for name, found in files.items():
        assert found == hashlib.sha256((config().run_dir / name).read_bytes()).hexdigest()


def test_the_hash_of_a_folder_is_that_of_names_and_contents(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)

    def found(**files: str) -> str:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        (tmp_path / "model" / "inner").mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / "model" / name.replace("_", "/")).write_text(text)
        return directory.left_by("train")["model"]

    first = found(a="1", inner_b="2")
    assert first == found(inner_b="2", a="1")
    others = [found(a="1"), found(a="1", inner_b="3"), found(a="1", inner_c="2"), found(a="12")]
    assert len({first, *others}) == 5


def test_force_on_a_later_stage_is_no_leave_to_mix_generation_settings(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    run_pipeline(config())
    before = (config().run_dir / RUN_JSON).read_bytes()
    other = config(collect={"max_new_tokens": 4})
    for name in ALL[1:]:
        with pytest.raises(RunDirectoryError, match="generated with other settings"):
            run_pipeline(other, only=name, force=True)
        assert (config().run_dir / RUN_JSON).read_bytes() == before
    fakes.take()
    run_pipeline(other, only="collect", force=True)
    run_pipeline(other)
    assert fakes.take() == ALL


# ---- what is refused leaves the run as it was ----------------------------------------------------------


@pytest.mark.parametrize("only", [None, "train"])
def test_a_setting_that_is_refused_is_not_kept(
    fakes: Fakes, config: Callable[..., Config], only: str | None
) -> None:
    run_pipeline(config())
    before = (config().run_dir / RUN_JSON).read_bytes()
    fakes.refused = ["train"]
    with pytest.raises(TrainingError):
        run_pipeline(config(train={"warmup_steps": 100}, report={"top_experts": 3}), only=only)
    assert (config().run_dir / RUN_JSON).read_bytes() == before
    fakes.refused = []
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == []


def test_settings_of_the_stages_before_the_refused_one_are_kept(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    run_pipeline(config())
    fakes.refused = ["train"]
    with pytest.raises(TrainingError):
        run_pipeline(config(identify={"top_k": 3}, train={"warmup_steps": 100}))
    stored = load_run(config().run_dir).state
    assert stored["config"]["identify"]["top_k"] == 3
    assert stored["config"]["train"]["warmup_steps"] is None
    assert stored["stages"]["train"]["status"] == "done"
    fakes.refused, fakes.ran = [], []
    run_pipeline(config(identify={"top_k": 3}))
    assert fakes.take() == ALL[2:]


def test_a_stage_that_wrote_before_it_failed_is_not_called_done(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    run_pipeline(config())

    def fail(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        run.write_json(RISK, {})
        raise PromptError("no")

    stages = pipeline.STAGES
    pipeline.STAGES = tuple(
        replace(stage, function=fail) if stage.name == "identify" else stage for stage in stages
    )
    try:
        with pytest.raises(PromptError):
            run_pipeline(config(), only="identify", force=True)
    finally:
        pipeline.STAGES = stages
    assert load_run(config().run_dir).state["stages"]["identify"]["status"] == "running"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"collect": {"judge": "oracle"}}, ConfigError),
        ({"prompts": {"sources": ["missing.csv"]}}, PromptError),
        ({"identify": {"rule": "nope"}}, SelectionError),
        ({"train": {"target_response": "no.such.module:function"}}, ConfigError),
        ({"train": {"lr_scheduler": "nope"}}, ConfigError),
        ({"model": {"device": "cuda:1"}}, ConfigError),
    ],
    ids=str,
)
def test_what_names_nothing_is_refused_before_anything_is_collected(
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    error: type[SteerMoEError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        raise AssertionError("collected")

    first, *others = pipeline.STAGES
    monkeypatch.setattr(pipeline, "STAGES", (replace(first, function=never), *others))
    with pytest.raises(error):
        run_pipeline(tiny_config(checkpoint, tmp_path / "run", small_prompts, **settings))
    assert not (tmp_path / "run").exists()


def test_a_prompt_file_that_is_not_there_does_not_cost_the_replies_of_an_interrupted_run(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        run.write_json(run.shard_name(0), {})
        raise KeyboardInterrupt

    first, *others = pipeline.STAGES
    monkeypatch.setattr(pipeline, "STAGES", (replace(first, function=stop), *others))
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(tiny_config(checkpoint, run, small_prompts))
    before = contents_of(run)
    with pytest.raises(PromptError):
        run_pipeline(tiny_config(checkpoint, run, tmp_path / "missing.csv"))
    assert contents_of(run) == before and SHARDS in "".join(before)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


# ---- files of the user's own ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WRITTEN_BY, SHARDS, CHECKPOINTS])
def test_a_directory_with_files_but_no_run_is_refused_and_keeps_them(
    fakes: Fakes, config: Callable[..., Config], name: str
) -> None:
    folder = config().run_dir
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    with pytest.raises(RunDirectoryError, match=f"{name}.*no run.*--run") as caught:
        run_pipeline(config())
    assert "\n" not in str(caught.value)
    # A model that is not there is refused too, and must not take the file with it.
    with pytest.raises(SteerMoEError):
        run_pipeline(config(model={"id": "./missing"}), force=True)
    assert contents_of(folder) == {name: b"mine"}
    assert fakes.take() == []


def test_a_base_model_where_the_hardened_one_would_go_is_refused(
    fakes: Fakes, config: Callable[..., Config], tmp_path: Path
) -> None:
    first = config(run=str(tmp_path))
    before = contents_of(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"holds model but no run"):
        run_pipeline(first)
    assert contents_of(tmp_path) == before
    # A run that died before it had anything to keep is no leave to overwrite it either.
    state = first.model_dump(mode="json")
    RunDirectory(tmp_path).write_run(
        {"config": state, "model": {"id": first.model.id, "revision": None}, "stages": {}}
    )
    with pytest.raises(RunDirectoryError, match="keeps its hardened model"):
        run_pipeline(first)
    assert contents_of(tmp_path).keys() == before.keys() | {RUN_JSON}


def test_an_empty_directory_of_the_users_is_kept_when_a_run_is_refused(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    config().run_dir.mkdir()
    with pytest.raises(ModelError):
        run_pipeline(config(model={"id": "./missing"}))
    assert list(config().run_dir.iterdir()) == []


def test_shards_without_a_run_are_never_taken_for_those_of_another(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    fakes.failing = {"collect": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config())
    (config().run_dir / RUN_JSON).unlink()
    before = contents_of(config().run_dir)
    with pytest.raises(
        RunDirectoryError, match=r"holds shards but no run \(run\.json is missing\)"
    ):
        run_pipeline(config(collect={"max_new_tokens": 3}))
    assert contents_of(config().run_dir) == before


def test_a_stage_that_starts_over_keeps_what_another_goes_on_from(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    run_pipeline(config())
    directory = RunDirectory(config().run_dir)
    directory.write_json(directory.shard_name(3, "hardened"), {})
    directory.write_json(directory.shard_name(3), {})
    run_pipeline(config(), only="report", force=True)
    assert directory.holds_unfinished("evaluate") and directory.holds_unfinished("collect")
    run_pipeline(config(), only="evaluate", force=True)
    assert not directory.holds_unfinished("evaluate") and directory.holds_unfinished("collect")
    run_pipeline(config(), only="collect")
    assert not directory.file(SHARDS).exists(), "a finished stage has nothing to go on from"


# ---- stages that build on what is there ----------------------------------------------------------------


def test_a_stage_alone_needs_neither_the_prompt_file_nor_a_model_that_it_does_not_read(
    fakes: Fakes, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = {"model": {"id": "./model"}, "prompts": {"sources": ["prompts.csv"]}}
    run_pipeline(config(**relative))
    fakes.take()
    (tmp_path / "prompts.csv").rename(tmp_path / "renamed.csv")
    run_pipeline(config(**relative, train={"epochs": 9}), only="train")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("identify", "report"):
        run_pipeline(config(**relative), only=name, force=True)
    assert fakes.take() == ["train", "identify", "report"]
    with pytest.raises(ModelError, match="does not exist"):
        run_pipeline(config(**relative), only="evaluate", force=True)
    assert "hash" in load_run(config().run_dir).state["model"]


@pytest.mark.parametrize("only", ["identify", "evaluate"])
def test_a_stage_alone_refuses_settings_that_the_replies_were_not_made_with(
    fakes: Fakes, config: Callable[..., Config], only: str
) -> None:
    run_pipeline(config())
    before = (config().run_dir / RUN_JSON).read_bytes()
    for settings in ({"collect": {"max_new_tokens": 3}}, {"prompts": {"sources": ["b.csv"]}}):
        with pytest.raises(RunDirectoryError, match="other prompts"):
            run_pipeline(config(**settings), only=only)
    assert (config().run_dir / RUN_JSON).read_bytes() == before


def test_the_starter_prompts_are_known_by_their_content(
    fakes: Fakes, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    builtin = config(prompts={"sources": ["builtin:starter"]})
    run_pipeline(builtin)
    monkeypatch.setattr(pipeline, "version", lambda name: "99")
    fakes.take()
    run_pipeline(builtin)
    assert fakes.take() == []
    monkeypatch.setattr(pipeline, "builtin_bytes", lambda source: b"other")
    with pytest.raises(RunDirectoryError, match="other prompts"):
        run_pipeline(builtin)


def test_refused_input_leaves_nothing_behind(
    fakes: Fakes, config: Callable[..., Config], tmp_path: Path
) -> None:
    fakes.failing = {"collect": PromptError("no")}

    def fail_early(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        run.write_prompts([])
        raise PromptError("no")

    stages = pipeline.STAGES
    pipeline.STAGES = (replace(stages[0], function=fail_early), *stages[1:])
    try:
        with pytest.raises(PromptError):
            run_pipeline(config())
    finally:
        pipeline.STAGES = stages
    assert not config().run_dir.exists()
    with pytest.raises(ModelError):
        run_pipeline(config(model={"id": str(tmp_path / "missing")}))
    assert not config().run_dir.exists()
    # Files that were there before are not ours to remove.
    config().run_dir.mkdir()
    (config().run_dir / "notes.txt").write_text("mine")
    with pytest.raises(ModelError):
        run_pipeline(config(model={"id": str(tmp_path / "missing")}))
    assert files_of(config().run_dir) == {"notes.txt"}


def test_a_run_that_died_before_it_had_anything_may_become_another_models(
    fakes: Fakes, config: Callable[..., Config], tmp_path: Path
) -> None:
    directory = RunDirectory(config().run_dir)
    directory.create()
    state = {"model": {"id": "gone"}, "stages": {"collect": {"status": "running"}}}
    directory.write_run(state)
    run_pipeline(config())
    assert fakes.take() == ALL


def test_a_second_run_in_the_directory_is_refused_and_harms_nothing(
    fakes: Fakes, config: Callable[..., Config]
) -> None:
    with RunDirectory(config().run_dir).locked():
        RunDirectory(config().run_dir).write_run({"model": {}, "stages": {}})
        with pytest.raises(RunDirectoryError, match="in use by another steermoe"):
            run_pipeline(config())
        assert files_of(config().run_dir) == {RUN_JSON}
        assert (config().run_dir / ".lock").exists()
    assert fakes.take() == []


# ---- whole runs on a tiny checkpoint -------------------------------------------------------------------


def test_a_whole_run_leaves_every_file_of_the_specification(finished: Path) -> None:
    expected = {
        "run.json",
        "prompts.jsonl",
        "responses.parquet",
        "routing.safetensors",
        "risk_diff_per_batch.parquet",
        "risk_diff.parquet",
        "unsafe_experts.json",
        "sft_dataset.jsonl",
        "evaluation.json",
        "report.html",
        "model/README.md",
        "model/config.json",
        "model/model.safetensors",
    }
    found = files_of(finished)
    assert expected <= found
    assert not [name for name in found if "partial" in name or name.endswith((".pkl", ".pt"))]
    assert not (finished / SHARDS).exists() and not (finished / "checkpoints").exists()


def test_run_json_lets_someone_else_repeat_the_run(finished: Path, checkpoint: Path) -> None:
    run = json.loads((finished / RUN_JSON).read_text("utf-8"))
    assert run["schema_version"] == 1 and run["seed"] == 0
    assert validate(run["config"]).model.id == str(checkpoint)
    assert run["model"]["id"] == str(checkpoint) and len(run["model"]["hash"]) == 64
    for name in ("python", "steermoe", "torch", "transformers"):
        assert run["packages"][name]
    for stage in run["stages"].values():
        assert stage["status"] == "done"
        assert stage["seconds"] >= 0 and stage["peak_memory_bytes"] > 10_000_000


def test_the_same_seed_gives_the_same_bytes_and_another_another_run(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    again = tmp_path / "a run with spaces \u00fc"
    run_pipeline(tiny_config(checkpoint, again, small_prompts))
    first, second = contents(finished), contents(again)
    assert first.keys() == second.keys() and len(first) >= 12
    assert [name for name in first if first[name] != second[name]] == []
    other = tmp_path / "other"
    run_pipeline(tiny_config(checkpoint, other, small_prompts, seed=1))
    third = contents(other)
    assert third["risk_diff.parquet"] != first["risk_diff.parquet"]


def test_a_finished_run_is_left_as_it_is(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    before = {name: (run / name).stat().st_mtime_ns for name in files_of(run) - {RUN_JSON}}
    run_pipeline(tiny_config(checkpoint, run, small_prompts))
    assert before == {name: (run / name).stat().st_mtime_ns for name in files_of(run) - {RUN_JSON}}


def test_a_warm_up_that_training_refuses_leaves_a_finished_run_as_it_was(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    # Once for the path of the copy in run.json.
    run_pipeline(tiny_config(checkpoint, run, small_prompts))
    before = contents_of(run)
    other = {"warmup_steps": 100, "target_response": "Never."}
    for only in ("train", None):
        with pytest.raises(TrainingError, match="warm-up of 100 steps"):
            run_pipeline(tiny_config(checkpoint, run, small_prompts, train=other), only=only)
        assert contents_of(run) == before


def test_changed_training_keeps_the_replies_and_changes_the_model(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    run_pipeline(tiny_config(checkpoint, run, small_prompts, train={"epochs": 1}))
    before, after = contents(finished), contents(run)
    changed = {name for name in before if before[name] != after[name]}
    assert "model/model.safetensors" in changed and "evaluation.json" in changed
    assert changed <= {"model/model.safetensors", "evaluation.json", "hardened_responses.parquet"}


def test_nothing_selected_trains_nothing_and_the_run_ends_well(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    from steermoe.cli.display import summary
    from steermoe.reporter import plain_stdout

    run = copy_of(finished, tmp_path / "run")
    listener = Listener()
    state = run_pipeline(
        tiny_config(checkpoint, run, small_prompts, identify={"threshold": 1.0}),
        reporter=listener,
    )
    assert "no expert was selected" in listener.text
    assert f"{state.risk_diff.iloc[0]['Layer_Expert']}" in listener.text
    assert "nothing is trained" in listener.text and "nothing to evaluate" in listener.text
    assert state.unsafe_experts == []
    left = files_of(run)
    assert not [name for name in left if name.startswith("model/")]
    assert not left & {"evaluation.json", "hardened_responses.parquet", "sft_dataset.jsonl"}
    assert "report.html" in left
    with plain_stdout().capture() as captured:
        plain_stdout().print(summary(state))
    assert captured.get() == ""


def test_prompts_without_held_out_goals_evaluate_nothing_and_say_so(
    checkpoint: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{x} {i}", "label": x} for i in range(2) for x in ("safe", "unsafe")]
    rows.append({"prompt": "benign", "label": "benign"})
    for row in rows:
        row["split"] = "train"
    prompts = write_prompts(tmp_path / "four.csv", rows)
    listener = Listener()
    run = run_pipeline(
        tiny_config(checkpoint, tmp_path / "run", prompts, collect={"batch_size": 4}),
        reporter=listener,
    )
    assert "no test prompts, so nothing is evaluated" in listener.text
    assert not run.directory.file("evaluation.json").exists()
    assert run.directory.file("report.html").exists()


@pytest.mark.parametrize("architecture", ["olmoe", "qwen3_moe"])
def test_other_architectures_run_through(
    tiny_checkpoint: TinyCheckpoint, small_prompts: Path, architecture: str
) -> None:
    run = load_run(finished_run(tiny_checkpoint(architecture), small_prompts))
    metric = run.evaluation["hardened"]["refusal_rate"]
    assert metric["n"] + metric["num_unscored"] == 4
    assert len(run.unsafe_experts) == 4


def test_errors_are_the_users_to_mend() -> None:
    for error in (ModelError, PromptError, RunDirectoryError):
        assert issubclass(error, SteerMoEError)
