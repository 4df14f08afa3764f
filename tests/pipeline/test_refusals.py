"""What a run directory refuses, and that what was refused leaves everything as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fake_steps import ALL, Fakes
from steermoe.config import Config
from steermoe.errors import (
    ConfigError,
    ModelError,
    PromptError,
    RunDirectoryError,
    SelectionError,
    SteerMoEError,
    TrainingError,
)
from steermoe.pipeline import run as pipeline
from steermoe.pipeline import run_pipeline
from steermoe.pipeline.steps import COLLECT
from steermoe.store.directory import RunDirectory
from steermoe.store.names import CHECKPOINTS, RESULTS, RISK, RUN_JSON, SHARDS, shard_of
from steermoe.store.run import load_run
from steermoe.store.state import ModelRecord, RunState
from tiny import files_of, tiny_config

Make = Callable[..., Config]


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def with_collect(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """Another function in the place of the collecting one."""
    commands = {
        name: tuple(
            tuple(replace(s, function=function) if s.name == COLLECT.name else s for s in steps)
            for steps in both
        )
        for name, both in pipeline.COMMANDS.items()
    }
    monkeypatch.setattr(pipeline, "COMMANDS", commands)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"collect": {"max_new_tokens": 9}}, "collect.max_new_tokens was 48 and is 9"),
        ({"collect": {"batch_size": 4}}, "collect.batch_size was 16 and is 4"),
        ({"prompts": {"include_failed": True}}, "prompts.include_failed was false and is true"),
        ({"model": {"dtype": "float32"}}, 'model.dtype was "auto" and is "float32"'),
    ],
    ids=str,
)
def test_other_generation_settings_are_refused_by_name_without_force(
    fakes: Fakes, config: Make, settings: dict[str, Any], named: str
) -> None:
    run_pipeline(config())
    before = contents_of(config().run_dir)
    fakes.take()
    with pytest.raises(RunDirectoryError, match=r"other prompts.*--run.*--force") as caught:
        run_pipeline(config(**settings))
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert fakes.take() == []
    assert contents_of(config().run_dir) == before
    run_pipeline(config(**settings), force=True)
    assert fakes.take() == ALL


def test_prompts_are_known_by_their_content_and_not_by_the_spelling_of_their_path(
    fakes: Fakes, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pipeline(config())
    fakes.take()
    moved = shutil.copy(config().prompts.sources[0], tmp_path / "same.csv")
    run_pipeline(config(prompts={"sources": [str(moved)]}))
    assert fakes.take() in ([], ["report"])  # the page names the file
    Path(moved).write_text("prompt,label\ny,safe\n")
    with pytest.raises(RunDirectoryError, match="prompt files changed"):
        run_pipeline(config(prompts={"sources": [str(moved)]}))


def test_another_model_is_refused_and_another_with_its_name_too(
    fakes: Fakes, config: Make, tmp_path: Path
) -> None:
    run_pipeline(config())
    same = shutil.copytree(config().model.id, tmp_path / "same")
    fakes.take()
    run_pipeline(config(model={"id": str(same)}))  # a checkpoint that was moved is the same one
    assert "train" not in fakes.take()
    other = shutil.copytree(config().model.id, tmp_path / "other")
    save_file({"w": load_file(other / "model.safetensors")["w"] + 1}, other / "model.safetensors")
    for force in (False, True):
        with pytest.raises(RunDirectoryError, match=r"belongs to model .*, not .*other"):
            run_pipeline(config(model={"id": str(other)}), force=force)
    weights = Path(config().model.id) / "model.safetensors"
    save_file({"w": load_file(weights)["w"] + 1}, weights)
    with pytest.raises(RunDirectoryError, match=r"other weights|belongs to model"):
        run_pipeline(config())


def test_a_hub_model_is_known_by_its_commit(
    fakes: Fakes, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["aaa", "aaa", "bbb"])
    monkeypatch.setattr("steermoe.loading.model_source", lambda settings, report: settings.id)
    monkeypatch.setattr("steermoe.loading.hub_commit", lambda settings, source: next(commits))
    hub = {"model": {"id": "owner/name"}}
    assert run_pipeline(config(**hub)).state.model.commit == "aaa"
    run_pipeline(config(**hub))
    with pytest.raises(RunDirectoryError, match="other weights of owner/name"):
        run_pipeline(config(**hub))


def test_a_newer_schema_version_is_refused_and_left_alone(fakes: Fakes, config: Make) -> None:
    run_pipeline(config())
    state = config().run_dir / RUN_JSON
    state.write_text(state.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(RunDirectoryError, match="schema version 99"):
        run_pipeline(config())
    assert '"schema_version": 99' in state.read_text()


def test_force_on_a_later_step_is_no_leave_to_mix_generation_settings(
    fakes: Fakes, config: Make
) -> None:
    run_pipeline(config())
    before = (config().run_dir / RUN_JSON).read_bytes()
    other = config(collect={"max_new_tokens": 4})
    for name in ("judge", "identify", "train", "evaluate", "report"):
        with pytest.raises(RunDirectoryError, match="generated with other settings"):
            run_pipeline(other, only=name, force=True)
        assert (config().run_dir / RUN_JSON).read_bytes() == before
    fakes.take()
    run_pipeline(other, only="collect", force=True)
    run_pipeline(other)
    # What the base model can do hangs on no setting of generation.
    assert fakes.take() == [name for name in ALL if name != "capability"]


@pytest.mark.parametrize("only", [None, "train"])
def test_a_setting_that_is_refused_is_not_kept(
    fakes: Fakes, config: Make, only: str | None
) -> None:
    run_pipeline(config())
    before = (config().run_dir / RUN_JSON).read_bytes()
    fakes.refused = ["train"]
    with pytest.raises(TrainingError):
        run_pipeline(config(train={"epochs": 100}, report={"top_experts": 3}), only=only)
    assert (config().run_dir / RUN_JSON).read_bytes() == before
    fakes.refused = []
    fakes.take()
    run_pipeline(config())
    assert fakes.take() == []


def test_settings_of_the_steps_before_the_refused_one_are_kept(fakes: Fakes, config: Make) -> None:
    run_pipeline(config())
    fakes.refused = ["train"]
    with pytest.raises(TrainingError):
        run_pipeline(config(identify={"top_k": 3}, train={"epochs": 100}))
    stored = load_run(config().run_dir)
    assert stored.config.identify.top_k == 3
    assert stored.config.train.epochs == 4
    assert stored.state.stages["train"].status == "done"


def test_a_step_that_wrote_before_it_failed_is_not_called_done(
    fakes: Fakes, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pipeline(config())

    def fail(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        run.write_json(RISK, {})
        raise PromptError("no")

    first, (_, step, _) = pipeline.COMMANDS["identify"]
    monkeypatch.setitem(pipeline.COMMANDS, "identify", (first, (replace(step, function=fail),)))
    with pytest.raises(PromptError):
        run_pipeline(config(), only="identify", force=True)
    assert load_run(config().run_dir).state.stages["identify"].status == "running"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"judge": {"main": "oracle"}}, ConfigError),
        ({"judge": {"others": ["no.such.module:judge"]}}, ConfigError),
        ({"prompts": {"sources": ["missing.csv"]}}, PromptError),
        ({"identify": {"rule": "nope"}}, SelectionError),
        ({"train": {"target_response": "no.such.module:function"}}, ConfigError),
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

    with_collect(monkeypatch, never)
    with pytest.raises(error):
        run_pipeline(tiny_config(checkpoint, tmp_path / "run", small_prompts, **settings))
    assert not (tmp_path / "run").exists()


def test_a_prompt_file_that_is_not_there_does_not_cost_the_replies_of_an_interrupted_run(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        run.write_json(shard_of("responses", 0), {})
        raise KeyboardInterrupt

    with_collect(monkeypatch, stop)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(tiny_config(checkpoint, run, small_prompts))
    before = contents_of(run)
    with pytest.raises(PromptError):
        run_pipeline(tiny_config(checkpoint, run, tmp_path / "missing.csv"))
    assert contents_of(run) == before and SHARDS in "".join(before)


# ---- files of the user's own ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RESULTS, SHARDS, CHECKPOINTS])
def test_a_directory_with_files_but_no_run_is_refused_and_keeps_them(
    fakes: Fakes, config: Make, name: str
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
    fakes: Fakes, config: Make, tmp_path: Path
) -> None:
    first = config(run=str(tmp_path))
    before = contents_of(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"holds model but no run"):
        run_pipeline(first)
    assert contents_of(tmp_path) == before
    # A run that died before it had anything to keep is no leave to overwrite it either.
    RunDirectory(tmp_path).write_state(
        RunState(
            config=first.model_dump(mode="json"),
            seed=0,
            packages={},
            model=ModelRecord(id=first.model.id),
        )
    )
    with pytest.raises(RunDirectoryError, match="keeps its hardened model"):
        run_pipeline(first)
    assert contents_of(tmp_path).keys() == before.keys() | {RUN_JSON}


def test_an_empty_directory_of_the_users_is_kept_when_a_run_is_refused(
    fakes: Fakes, config: Make
) -> None:
    config().run_dir.mkdir()
    with pytest.raises(ModelError):
        run_pipeline(config(model={"id": "./missing"}))
    assert list(config().run_dir.iterdir()) == []


def test_shards_without_a_run_are_never_taken_for_those_of_another(
    fakes: Fakes, config: Make
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


# ---- steps that build on what is there ------------------------------------------------------------------


def test_a_step_alone_needs_neither_the_prompt_file_nor_a_model_that_it_does_not_read(
    fakes: Fakes, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_relative_model_is_found_from_elsewhere_by_what_the_run_has_stored(
    fakes: Fakes, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_pipeline(config(model={"id": "./model"}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = load_run(run.path).config
    assert Path(stored.model.id).is_dir()
    fakes.take()
    run_pipeline(stored, only="evaluate", force=True)
    assert fakes.take() == ALL[ALL.index("reply") : ALL.index("report")]


@pytest.mark.parametrize("only", ["identify", "evaluate"])
def test_a_step_alone_refuses_settings_that_the_replies_were_not_made_with(
    fakes: Fakes, config: Make, only: str
) -> None:
    run_pipeline(config())
    before = (config().run_dir / RUN_JSON).read_bytes()
    with pytest.raises(RunDirectoryError, match="other prompts"):
        run_pipeline(config(collect={"max_new_tokens": 3}), only=only)
    assert (config().run_dir / RUN_JSON).read_bytes() == before


def test_the_starter_prompts_are_known_by_their_content(
    fakes: Fakes, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    builtin = config(prompts={"sources": ["builtin:starter"]})
    run_pipeline(builtin)
    monkeypatch.setattr("steermoe.pipeline.versions.version", lambda name: "99")
    fakes.take()
    run_pipeline(builtin)
    assert fakes.take() == []
    monkeypatch.setattr("steermoe.prompts.sources.builtin_bytes", lambda source: b"other")
    with pytest.raises(RunDirectoryError, match="prompt files changed"):
        run_pipeline(builtin)


def test_refused_input_leaves_nothing_behind(
    fakes: Fakes, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_early(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
        run.write_prompts([])
        raise PromptError("no")

    with monkeypatch.context() as patched:
        with_collect(patched, fail_early)
        with pytest.raises(PromptError):
            run_pipeline(config())
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
    fakes: Fakes, config: Make
) -> None:
    directory = RunDirectory(config().run_dir)
    directory.create()
    directory.write_json(RUN_JSON, {"schema_version": 1, "model": {"id": "gone"}, "stages": {}})
    run_pipeline(config())
    assert fakes.take() == ALL


def test_a_second_run_in_the_directory_is_refused_and_harms_nothing(
    fakes: Fakes, config: Make
) -> None:
    with RunDirectory(config().run_dir).locked():
        RunDirectory(config().run_dir).write_json(RUN_JSON, {"model": {}, "stages": {}})
        with pytest.raises(RunDirectoryError, match="in use by another steermoe"):
            run_pipeline(config())
        assert files_of(config().run_dir) == {RUN_JSON}
        assert (config().run_dir / ".lock").exists()
    assert fakes.take() == []


def test_errors_are_the_users_to_mend() -> None:
    for error in (ModelError, PromptError, RunDirectoryError):
        assert issubclass(error, SteerMoEError)
