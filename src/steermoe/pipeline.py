"""The stages in order, what each depends on, and how an interrupted run goes on.

Every stage has a fingerprint: a hash of the settings it reads, of its inputs, and of the fingerprint of the stage
before it. A finished stage whose fingerprint still holds is not done again; one that was interrupted goes on; one
whose settings changed starts over, and says so.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from steermoe.config import BUILTIN_PROMPTS, Config
from steermoe.errors import RunDirectoryError, SteerMoEError
from steermoe.loading import describe_model, model_source
from steermoe.moe.stored import hash_checkpoint
from steermoe.reporter import Reporter, silent
from steermoe.run import Run
from steermoe.rundir import CHECKPOINTS, SHARDS, RunDirectory
from steermoe.stages.ablate import ablate, built_on
from steermoe.stages.collect import collect
from steermoe.stages.evaluate import evaluate
from steermoe.stages.identify import identify
from steermoe.stages.report import report
from steermoe.stages.train import train

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


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: Its name on the command line.
        function: Run directory in, run directory out; returns figures for `run.json`.
        settings: The top-level settings it reads.
    """

    name: str
    function: StageFunction
    settings: tuple[str, ...]


STAGES = (
    Stage("collect", collect, ("seed", "model", "prompts", "collect")),
    Stage("identify", identify, ("seed", "identify")),
    Stage("train", train, ("seed", "model", "train")),
    Stage("evaluate", evaluate, ("seed", "evaluate")),
    Stage("report", report, ("report",)),
)

STAGE_NAMES = tuple(stage.name for stage in STAGES)

ABLATE = Stage("ablate", ablate, ("seed", "evaluate", "ablate"))
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
    reporter = reporter if reporter is not None else silent()
    directory = RunDirectory(config.run_dir)
    with directory.locked():
        is_new = not directory.exists
        try:
            state = _open(directory, config, force, reporter)
            _run_stages(directory, config, state, only, force, reporter)
        except SteerMoEError:
            # Input that was refused must not leave a run behind that belongs to it.
            if is_new and not directory.holds_work:
                directory.discard()
            raise
    return Run(directory)


def _run_stages(
    directory: RunDirectory,
    config: Config,
    state: dict[str, Any],
    only: str | None,
    force: bool,
    reporter: Reporter,
) -> None:
    upstream = ""
    for stage in STAGES:
        fingerprint = _fingerprint(stage, config, upstream)
        if only in (None, stage.name):
            _run_stage(
                directory, stage, config, state, fingerprint, force, only is not None, reporter
            )
        # A stage run alone builds on what is there, whatever it was made with.
        stored = state["stages"].get(stage.name, {}).get("fingerprint", fingerprint)
        if only == ABLATE.name and stage.name == "train" and stored != fingerprint:
            reporter.note(
                "the hardened model was trained on another selection or with other settings than the run has now; "
                "steermoe train makes it again"
            )
        upstream = stored
    if only == ABLATE.name:
        upstream = json.dumps(built_on(state["stages"]))
        fingerprint = _fingerprint(ABLATE, config, upstream)
        _run_stage(directory, ABLATE, config, state, fingerprint, force, True, reporter)


def _open(
    directory: RunDirectory, config: Config, force: bool, reporter: Reporter
) -> dict[str, Any]:
    """`run.json` of this run, made if there is none, with the config as it is now."""
    model = {"id": config.model.id, "revision": config.model.revision}
    stored = directory.read_run() if directory.exists else None
    if stored is not None and not directory.holds_work:
        stored = None  # it died before it had anything to keep
    if stored is not None:
        before = {key: stored["model"].get(key) for key in model}
        if before != model:
            raise RunDirectoryError(
                f"run directory {directory.path} belongs to model {before['id']}"
                f"{' @ ' + before['revision'] if before['revision'] else ''}, not {model['id']}; "
                "choose another with --run"
            )
    source = model_source(config.model, reporter.line)
    if stored is None:
        describe_model(
            config.model, source
        )  # what cannot be used is refused before its weights are read
    # Content hash of a local model; a hub model is known by its revision.
    model["hash"] = hash_checkpoint(source) if Path(source).is_dir() else ""
    if stored is not None and stored["model"].get("hash") != model["hash"]:
        raise RunDirectoryError(
            f"run directory {directory.path} was made with other weights of {model['id']}; choose another with --run"
        )
    stages = stored["stages"] if stored is not None else {}
    collected = stages.get("collect", {})
    changed = collected and collected["fingerprint"] != _fingerprint(STAGES[0], config, "")
    if changed and collected["status"] == "done" and not force:
        raise RunDirectoryError(
            f"run directory {directory.path} holds replies to other prompts, or generated with other settings; "
            "choose another with --run, or replace it with --force"
        )
    return {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "packages": _package_versions(),
        "model": model,
        "stages": stages,
    }


def _run_stage(
    directory: RunDirectory,
    stage: Stage,
    config: Config,
    state: dict[str, Any],
    fingerprint: str,
    force: bool,
    alone: bool,
    reporter: Reporter,
) -> None:
    before = state["stages"].get(stage.name, {})
    same = before.get("fingerprint") == fingerprint
    is_done = before.get("status") == "done"
    lacking = directory.lacks(stage.name) if is_done else []
    if same and is_done and not force and not lacking:
        hint = "; --force does it again" if alone else ""
        reporter.line(f"{stage.name}: done already{hint}")
        directory.write_run(state)
        return
    if lacking:
        reporter.note(f"{stage.name}: {', '.join(lacking)} is gone, so it is done again")
    if before and (not same or force):
        if not same:
            reporter.note(f"{stage.name}: settings or inputs changed, so it is done again")
        # What an interrupted attempt left behind belongs to other settings.
        directory.remove(SHARDS)
        directory.remove(CHECKPOINTS)
    state["stages"][stage.name] = {"status": "running", "fingerprint": fingerprint}
    directory.write_run(state)
    peak = _PeakMemory()
    started = time.monotonic()
    figures = stage.function(directory, config, reporter)
    _release_memory()
    state["stages"][stage.name] = {
        "status": "done",
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_bytes": peak.read(),
        "figures": figures,
    }
    directory.write_run(state)


def _fingerprint(stage: Stage, config: Config, upstream: str) -> str:
    values = config.model_dump(mode="json")
    inputs: dict[str, Any] = {name: values[name] for name in stage.settings}
    if stage.name == "collect":
        inputs["prompt_files"] = [_file_hash(source) for source in config.prompts.sources]
    if stage.name == "train":
        # How often it saves and whom it tells does not change what is trained.
        inputs["train"] = {
            k: v for k, v in values["train"].items() if k not in ("save_steps", "report_to")
        }
    if stage.name == ABLATE.name:
        inputs["train"] = {k: values["train"][k] for k in ("experts", "target_response")}
    text = json.dumps([upstream, inputs], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _file_hash(source: str) -> str:
    if source == BUILTIN_PROMPTS:
        return version("steermoe")
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
    """Give memory back to the system: models sit in reference cycles, and glibc keeps what is freed."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


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
