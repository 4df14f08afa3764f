"""The stages in order, what each depends on, and how an interrupted run goes on.

Every stage has a fingerprint: a hash of the settings it reads, and of the files that the stages before it left. A
finished stage whose fingerprint still holds is not done again; one that was interrupted goes on; one whose settings or
inputs changed, or whose files are gone, starts over, and says so. One that is refused before it wrote anything leaves
`run.json` as it was.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import re
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from steermoe.analysis.selection import resolve_rule
from steermoe.config import BUILTIN_PROMPTS, Config, validate
from steermoe.errors import ConfigError, RunDirectoryError, SteerMoEError
from steermoe.judges.keyword import judge_named
from steermoe.loading import describe_model, model_source
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.stored import hash_checkpoint
from steermoe.prompts.formats import builtin_bytes
from steermoe.report.page import report
from steermoe.reporter import Reporter, silent
from steermoe.stages.ablate import ablate
from steermoe.stages.collect import collect, plan_groups, prepare_prompts
from steermoe.stages.evaluate import evaluate
from steermoe.stages.identify import identify
from steermoe.stages.train import train
from steermoe.store.directory import MODEL, RunDirectory, files_left
from steermoe.store.run import Run
from steermoe.training.arguments import check_names
from steermoe.training.dataset import resolve_target

COLLECT = "collect"

StageFunction = Callable[[RunDirectory, Config, Reporter], dict[str, Any]]

PACKAGES = (
    "steermoe",
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
)


def _nothing_to_check(config: Config) -> None:
    """Of a stage whose settings name nothing."""


def _check_collect(config: Config) -> None:
    judge_named(config.collect.judge)
    plan_groups(prepare_prompts(config, silent()), config)


def _check_train(config: Config) -> None:
    if re.fullmatch(r"cuda:0*[1-9]\d*", config.model.device) and not config.model.device_map:
        raise ConfigError(
            f"model.device = {config.model.device!r}: training takes the first GPU that it sees; set "
            "model.device=cuda and CUDA_VISIBLE_DEVICES"
        )
    resolve_target(config.train.target_response)
    check_names(config.train)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: Its name on the command line.
        function: Run directory in, run directory out; returns figures for `run.json`.
        settings: The top-level settings it reads.
        built_on: The stages whose files it reads.
        check: Refuses what can be told to be wrong before any stage is run: names, prompt files.
        needs_model: Whether it reads the model, and so whether the model has to be there.
    """

    name: str
    function: StageFunction
    settings: tuple[str, ...]
    built_on: tuple[str, ...]
    check: Callable[[Config], object] = _nothing_to_check
    needs_model: bool = True


STAGES = (
    Stage(
        COLLECT,
        collect,
        settings=("seed", "model", "prompts", "collect"),
        built_on=(),
        check=_check_collect,
    ),
    Stage(
        "identify",
        identify,
        settings=("seed", "identify"),
        built_on=(COLLECT,),
        check=lambda config: resolve_rule(config.identify.rule),
        needs_model=False,
    ),
    Stage(
        "train",
        train,
        settings=("seed", "model", "train"),
        built_on=(COLLECT, "identify"),
        check=_check_train,
    ),
    Stage("evaluate", evaluate, settings=("seed", "evaluate"), built_on=(COLLECT, "train")),
    Stage(
        "report",
        report,
        settings=("report",),
        built_on=(COLLECT, "identify", "train", "evaluate"),
        needs_model=False,
    ),
)

STAGE_NAMES = tuple(stage.name for stage in STAGES)

ABLATE = Stage(
    "ablate",
    ablate,
    settings=("seed", "evaluate", "ablate"),
    built_on=(COLLECT, "identify", "train"),
)
"""Done only when it is asked for: nothing else is built on it."""


def run_pipeline(
    config: Config,
    *,
    only: str | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Run the stages that are not done yet.

    Args:
        config: All settings; `config.run_dir` is where the run is kept.
        only: One stage's name, to run that alone. Its inputs must be there. `ablate` is done in no other way.
        force: Do finished stages again, and replace a run of other prompts or generation settings.
        reporter: Where to print; nowhere by default.

    Returns:
        The run, to read its tables and figures from.

    Raises:
        SteerMoEError: Whatever the user can mend.

    Example:
        >>> from steermoe import load_config, run_pipeline
        >>> run = run_pipeline(load_config())  # doctest: +SKIP
        >>> run.evaluation["hardened"]["refusal_rate"]["value"]  # doctest: +SKIP
    """
    directory = RunDirectory(config.run_dir)
    request = _Request(
        directory, config, only, force, reporter if reporter is not None else silent()
    )
    with directory.locked():
        is_new = not directory.exists
        try:
            directory.refuse_strangers()
            _open(request)
            _run_stages(request)
        except SteerMoEError:
            # Input that was refused must not leave a run behind that belongs to it.
            if is_new and not directory.holds_work:
                directory.discard()
            raise
    return Run(directory)


@dataclass(slots=True)
class _Request:
    """What was asked for, and the run as it is while that is done.

    Attributes:
        directory: The run directory.
        config: All settings, as they were asked for.
        only: The one stage to run; None for all.
        force: Whether finished stages are done again.
        reporter: Where to print.
        stored_config: The settings in `run.json` before; None for a new run.
        state: What goes into `run.json`.
    """

    directory: RunDirectory
    config: Config
    only: str | None
    force: bool
    reporter: Reporter
    stored_config: dict[str, Any] | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def asked_for(self) -> tuple[str, ...]:
        """The stages to run."""
        return STAGE_NAMES if self.only is None else (self.only,)

    @property
    def stages(self) -> dict[str, Any]:
        """Status, fingerprint and figures of each stage that was begun."""
        found: dict[str, Any] = self.state["stages"]
        return found

    def is_finished(self, stage: Stage, fingerprint: str) -> bool:
        """Whether a stage is done with these settings, and its files are there."""
        entry = self.stages.get(stage.name, {})
        return (
            not self.force
            and entry.get("status") == "done"
            and entry["fingerprint"] == fingerprint
            and not self.lacks(stage)
        )

    def lacks(self, stage: Stage) -> list[str]:
        """Files that a stage left when it was done and that are gone."""
        entry = self.stages.get(stage.name, {})
        if entry.get("status") != "done":
            return []
        return self.directory.lacks(stage.name, entry.get("files", ()))


def _run_stages(request: _Request) -> None:
    chosen = [stage for stage in (*STAGES, ABLATE) if stage.name in request.asked_for]
    is_due = False
    for stage in chosen:
        is_due = is_due or not request.is_finished(stage, _fingerprint(request, stage))
        if is_due:
            stage.check(request.config)
    if ABLATE in chosen:
        _note_older_model(request)
    for stage in chosen:
        _run_stage(request, stage)


def _note_older_model(request: _Request) -> None:
    """Say that what is measured of the hardened model is not of what the run has now."""
    train = next(stage for stage in STAGES if stage.name == "train")
    stored = request.stages.get(train.name, {})
    if stored.get("status") == "done" and stored["fingerprint"] != _fingerprint(request, train):
        request.reporter.note(
            "the hardened model was trained on another selection or with other settings than the run has now; "
            "steermoe train makes it again"
        )


def _open(request: _Request) -> None:
    """Read `run.json` into the request, or begin it, with the config as it is now.

    Raises:
        SteerMoEError: The run belongs to another model, or its replies to other settings; or the model cannot be used.
    """
    directory, config = request.directory, request.config
    model: dict[str, Any] = {"id": config.model.id, "revision": config.model.revision}
    # One that died before it had anything to keep begins anew.
    stored = Run(directory).state if directory.exists and directory.holds_work else None
    if stored is not None:
        before = {key: stored["model"].get(key) for key in model}
        if before != model:
            raise RunDirectoryError(
                f"run directory {directory.path} belongs to model {before['id']}"
                f"{' @ ' + before['revision'] if before['revision'] else ''}, not {model['id']}; "
                "choose another with --run"
            )
    needs_model = {stage.name: stage.needs_model for stage in STAGES}.get(request.only or "", True)
    if stored is None or needs_model:
        model["hash"] = _model_hash(request, is_new=stored is None)
    else:
        model = stored["model"]
    if stored is not None and stored["model"].get("hash") != model["hash"]:
        raise RunDirectoryError(
            f"run directory {directory.path} was made with other weights of {model['id']}; choose another with --run"
        )
    if stored is not None:
        _refuse_other_replies(request, stored)
        request.stored_config = stored["config"]
    request.state = {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "packages": _package_versions(),
        "model": model,
        "stages": stored["stages"] if stored is not None else {},
    }


def _model_hash(request: _Request, is_new: bool) -> str:
    """Content hash of a local model; a hub model is known by its revision and has none.

    Raises:
        ModelError: The model is not there, or, for a new run, cannot be used.
        RunDirectoryError: It lies where the hardened model would be written.
    """
    settings = request.config.model
    source = model_source(settings, request.reporter.line)
    if Path(source).resolve() == request.directory.file(MODEL).resolve():
        raise RunDirectoryError(
            f"model {settings.id} lies where run directory {request.directory.path} keeps its hardened model, which "
            "would replace it; choose another --run"
        )
    if is_new:
        describe_model(
            settings, source
        )  # what cannot be used is refused before its weights are read
    return hash_checkpoint(source) if Path(source).is_dir() else ""


def _refuse_other_replies(request: _Request, stored: Mapping[str, Any]) -> None:
    """Check that finished replies are not mixed with, or replaced by, those to other prompts or of other settings.

    A stage that only builds on the replies needs the settings that they were made with, and no prompt file any more.

    Raises:
        RunDirectoryError: They would be.
    """
    collecting = STAGES[0]
    collected = stored["stages"].get(collecting.name, {})
    if collected.get("status") != "done":
        return
    if collecting.name in request.asked_for:
        if request.force:
            return
        changed = collected["fingerprint"] != _fingerprint(request, collecting)
    else:
        before = validate(stored["config"])
        changed = any(
            getattr(before, name) != getattr(request.config, name) for name in collecting.settings
        )
    if changed:
        raise RunDirectoryError(
            f"run directory {request.directory.path} holds replies to other prompts, or generated with other "
            "settings; choose another with --run, or replace them with steermoe collect --force"
        )


def _run_stage(request: _Request, stage: Stage) -> None:
    """Do a stage that is not done yet."""
    directory, state, reporter = request.directory, request.state, request.reporter
    fingerprint = _fingerprint(request, stage)
    if request.is_finished(stage, fingerprint):
        hint = "; --force does it again" if request.only is not None else ""
        reporter.line(f"{stage.name}: done already{hint}")
        directory.write_run(state)
        directory.remove_unfinished(stage.name)
        return
    stages_before = dict(request.stages)
    before = stages_before.get(stage.name, {})
    same = before.get("fingerprint") == fingerprint
    lacking = request.lacks(stage)
    if lacking:
        reporter.note(f"{stage.name}: {', '.join(lacking)} is gone, so it is done again")
    if before and not same:
        reporter.note(f"{stage.name}: settings or inputs changed, so it is done again")
    if not same or before["status"] == "done" or request.force:
        # What an interrupted attempt left behind belongs to other settings.
        directory.remove_unfinished(stage.name)
    state["stages"][stage.name] = {"status": "running", "fingerprint": fingerprint}
    directory.write_run(state)
    num_changes = directory.num_changes
    peak = _PeakMemory()
    started = time.monotonic()
    try:
        figures = stage.function(directory, request.config, reporter)
    except SteerMoEError:
        if directory.num_changes == num_changes and not directory.holds_unfinished(stage.name):
            _take_back(request, stage, stages_before)
        raise
    _release_memory()
    state["stages"][stage.name] = {
        "status": "done",
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_bytes": peak.read(),
        "files": directory.left_by(stage.name),
        "figures": figures,
    }
    directory.write_run(state)
    # Not before: a process that dies in between would have to make them again.
    directory.remove_unfinished(stage.name)


def _take_back(request: _Request, stage: Stage, stages_before: dict[str, Any]) -> None:
    """Write into `run.json` what it said before a stage that was refused: its status, and the settings not applied."""
    request.state["stages"] = stages_before
    if request.stored_config is not None:
        earlier = STAGES[: STAGE_NAMES.index(stage.name)] if request.only is None else ()
        asked = request.state["config"]
        applied = {name: asked[name] for other in earlier for name in other.settings}
        request.state["config"] = {**request.stored_config, **applied, "run": asked["run"]}
        request.state["seed"] = request.state["config"]["seed"]
    request.directory.write_run(request.state)


def _fingerprint(request: _Request, stage: Stage) -> str:
    """Hash of what a stage is built on: its settings, and the files that the stages before it left."""
    config = request.config
    values = config.model_dump(mode="json")
    inputs: dict[str, Any] = {name: values[name] for name in stage.settings}
    inputs["files"] = {name: files_left(request.stages, name) for name in stage.built_on}
    if stage.name == COLLECT:
        inputs["prompt_files"] = [_file_hash(source) for source in config.prompts.sources]
    if stage.name == "train":
        # How often it saves and whom it tells does not change what is trained.
        inputs["train"] = {
            k: v for k, v in values["train"].items() if k not in ("save_steps", "report_to")
        }
    if stage.name == ABLATE.name:
        inputs["train"] = {k: values["train"][k] for k in ("experts", "target_response")}
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _file_hash(source: str) -> str:
    if source == BUILTIN_PROMPTS:
        return hashlib.sha256(builtin_bytes(source)).hexdigest()
    try:
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except OSError:
        return "unreadable"  # reading it as prompts says why


def _package_versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _release_memory() -> None:
    """Give memory back to the system: models sit in reference cycles, and the allocator keeps what is freed."""
    gc.collect()
    give_back_freed_memory()


class _PeakMemory:
    """Peak resident memory since it was made, where the system can tell; else of the whole process."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.resettable = True
        except OSError:
            self.resettable = False

    def read(self) -> int:
        """Bytes."""
        if self.resettable:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes if platform.system() == "Darwin" else kilobytes * 1024


__all__ = ["STAGES", "STAGE_NAMES", "SteerMoEError", "run_pipeline"]
