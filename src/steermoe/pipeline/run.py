"""Running a command: which of its steps are due, how an interrupted one goes on, and what is refused.

A step has a fingerprint: a hash of the settings that shape it and of what it reads. A finished step whose fingerprint
still holds is not done again; one that was interrupted goes on; one whose settings or inputs changed, or whose files
are gone, starts over, and says so. One that is refused before it wrote anything leaves `run.json` as it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from steermoe.config import Config, validate
from steermoe.errors import RunDirectoryError, SteerMoEError
from steermoe.pipeline.commands import COMMANDS, settings_of
from steermoe.pipeline.fingerprints import difference, fingerprint_of, inputs_of
from steermoe.pipeline.inputs import Ledger, check_undamaged, record_of
from steermoe.pipeline.leading import begin, do_step, end, follow
from steermoe.pipeline.memory import PeakMemory, release_memory
from steermoe.pipeline.model import check_layers, check_same_model, identify_model
from steermoe.pipeline.own_steps import with_own_steps
from steermoe.pipeline.settings import keeping, not_read, values_of
from steermoe.pipeline.step import Step
from steermoe.pipeline.steps import COLLECT, TRAIN
from steermoe.pipeline.versions import package_versions
from steermoe.processes import Processes, joined
from steermoe.reporter import Reporter, silent
from steermoe.store.directory import RunDirectory
from steermoe.store.names import MODEL
from steermoe.store.old_layout import MOVED_UP, open_state
from steermoe.store.run import Run
from steermoe.store.state import RunState, StepRecord


def run_pipeline(
    config: Config,
    *,
    only: str | None = None,
    force: bool = False,
    verify: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Do the steps of a command that are not done yet.

    Args:
        config: All settings; `config.run_dir` is where the run is kept.
        only: The command whose steps are done: `collect`, `judge`, `identify`, `train`, `evaluate`, `ablate` or
            `report`; by default all that `steermoe run` does.
        force: Do finished steps again, and replace a run of other prompts or generation settings.
        verify: Hash the model and every result whole, instead of trusting those whose size and time of change are as
            they were.
        reporter: Where to print; nowhere by default.

    Returns:
        The run, to read its tables and figures from.

    Under torchrun, every process calls this; rank 0 does the steps, and the others what they can do of them.

    Raises:
        SteerMoEError: Whatever the user can mend.

    Example:
        >>> from steermoe import load_config, run_pipeline
        >>> run = run_pipeline(load_config())  # doctest: +SKIP
        >>> run.evaluation["hardened"]["refusal_rate"]["value"]  # doctest: +SKIP
    """
    command = only or "run"
    reporter = reporter if reporter is not None else silent()
    with joined() as processes:
        if not processes.is_first:
            return follow(processes, config, command)
        run = _lead(processes, config, command, force, verify, reporter)
        end(processes)
    return run


def _lead(
    processes: Processes,
    config: Config,
    command: str,
    force: bool,
    verify: bool,
    reporter: Reporter,
) -> Run:
    """Do the steps, with the help of the other processes."""
    directory = RunDirectory(config.run_dir)
    with directory.locked():
        is_new = not directory.exists
        try:
            begin(processes, directory, config, command)
            directory.check_not_foreign()
            request = _open(directory, config, command, force, verify, reporter, processes)
            _do_steps(request)
        except SteerMoEError:
            # Input that was refused must not leave a run behind that belongs to it.
            if is_new and not directory.has_results:
                directory.discard()
            raise
    return Run(directory)


@dataclass(slots=True)
class _Request:
    """What was asked for, and the run as it is while that is done.

    Attributes:
        ledger: The run: its files, the settings that were asked for, and what goes into `run.json`.
        before: `run.json` as it was; None for a new run.
        command: What was asked for.
        force: Whether its steps are done again.
        verify: Whether results are hashed whole before they are read.
        reporter: Where to print.
        processes: Those that do it.
    """

    ledger: Ledger
    before: RunState | None
    command: str
    force: bool
    verify: bool
    reporter: Reporter
    processes: Processes

    @property
    def directory(self) -> RunDirectory:
        """The run's files."""
        return self.ledger.directory

    @property
    def state(self) -> RunState:
        """What goes into `run.json`."""
        return self.ledger.state

    def record_of(self, step: Step) -> StepRecord | None:
        """What is known of a step; None of one that was never begun."""
        return self.state.stages.get(step.name)

    def missing_files(self, step: Step) -> list[str]:
        """Files that a step left when it was done and that are gone."""
        record = self.record_of(step)
        if record is None or record.status != "done":
            return []
        return [name for name in record.files if not self.directory.has(name)]

    def is_finished(self, step: Step, fingerprint: str, is_forced: bool) -> bool:
        """Whether a step is done with these settings and inputs, and its files are there."""
        record = self.record_of(step)
        return (
            not is_forced
            and record is not None
            and record.status == "done"
            and record.fingerprint == fingerprint
            and not self.missing_files(step)
            and step.is_there(self.directory, self.ledger.config)
        )


def _open(
    directory: RunDirectory,
    config: Config,
    command: str,
    force: bool,
    verify: bool,
    reporter: Reporter,
    processes: Processes,
) -> _Request:
    """Read `run.json`, or begin it, with the config as it is now.

    Raises:
        SteerMoEError: The run belongs to another model, or its replies to other settings; or the model cannot be used.
    """
    # One that died before it had anything to keep begins anew.
    before = open_state(directory) if directory.exists and directory.has_results else None
    steps = [step for part in COMMANDS[command] for step in with_own_steps(part, config)]
    if before is None or any(step.needs_model and step.is_asked_for(config) for step in steps):
        from steermoe.loading import model_source

        source = model_source(config.model, reporter.line)
        if Path(source).resolve() == directory.file(MODEL).resolve():
            raise RunDirectoryError(
                f"model {config.model.name} lies where run directory {directory.path} keeps its hardened model, which "
                "would replace it; choose another --run"
            )
        model = identify_model(config.model, source, before.model if before else None, verify)
        if COLLECT in steps:
            check_layers(config.model, source, config.identify)
    else:
        model = before.model
    if before is not None:
        check_same_model(directory.path, config.model.id, before.model, model)
    asked = config
    if before is not None:
        # What no step of this command reads was not applied, and is not said to have been.
        stored, keys = validate(before.config), settings_of(command)
        config = keeping(stored, asked, keys)
        left = not_read(stored, asked, keys)
        has_kept = values_of(stored, tuple(left))
        for name in sorted(left.keys() - {"model.id"}):  # another one was refused above
            reporter.note(
                f"{command} does not read {name}: it stays {has_kept.get(name)!r}, as the run has it"
            )
    state = RunState(
        config=config.with_model_id(model.id).model_dump(mode="json"),
        seed=config.seed,
        packages=package_versions(),
        model=model,
        stages=before.model_copy(deep=True).stages if before is not None else {},
        files=before.model_copy(deep=True).files if before is not None else {},
    )
    request = _Request(
        Ledger(directory, config, state), before, command, force, verify, reporter, processes
    )
    if before is not None:
        _give_fingerprints(request, before)
        _check_same_replies(request, steps, asked)
    return request


def _give_fingerprints(request: _Request, before: RunState) -> None:
    """Let the steps of a run that was moved up to this layout count as done with the settings that are stored."""
    stored = Ledger(request.directory, validate(before.config), request.state)
    steps = {step.name: step for both in COMMANDS.values() for part in both for step in part}
    for name, record in request.state.stages.items():
        if record.fingerprint == MOVED_UP:
            step = steps[name]
            record.fingerprint = fingerprint_of(stored, step)
            record.settings = values_of(stored.config, step.settings, step.aside)
            record.inputs = inputs_of(stored, step)


def _check_same_replies(request: _Request, steps: list[Step], asked: Config) -> None:
    """Check that finished replies are not mixed with, or replaced by, those to other prompts or of other settings.

    A step that only builds on the replies needs the settings that they were made with, and no prompt file any more.

    Raises:
        RunDirectoryError: They would be; the message names what differs.
    """
    record = request.record_of(COLLECT)
    if record is None or record.status != "done":
        return
    collects = COLLECT in steps
    if collects and request.force:
        return
    settings = values_of(asked, COLLECT.settings, COLLECT.aside)
    inputs = inputs_of(request.ledger, COLLECT) if collects else {}
    if found := difference(record, settings, inputs):
        raise RunDirectoryError(
            f"run directory {request.directory.path} holds replies to other prompts, or generated with other "
            f"settings: {found}; choose another with --run, or replace them with steermoe collect --force"
        )


def _do_steps(request: _Request) -> None:
    config = request.ledger.config
    first, wanted = (with_own_steps(part, config) for part in COMMANDS[request.command])
    chosen = [
        step
        for step in (*first, *wanted)
        if step.is_asked_for(request.ledger.config)
        and (not step.only_where or step in wanted or _has(request, step))
    ]
    is_due = collects = False
    for step in chosen:
        is_forced = request.force and step in wanted
        fingerprint = fingerprint_of(request.ledger, step)
        is_due = is_due or not request.is_finished(step, fingerprint, is_forced)
        if is_due:
            step.check(request.ledger.config)
            collects = collects or step == COLLECT
            if not collects:
                step.check_run(request.ledger.config, request.directory)
            for doubt in step.doubts(request.ledger.config):
                request.reporter.note(doubt)
    if request.command == "ablate":
        _note_older_model(request)
    for step in chosen:
        if not step.only_where or _has(request, step):
            _do_step(request, step, is_wanted=step in wanted)


def _has(request: _Request, step: Step) -> bool:
    return request.directory.has(step.only_where)


def _note_older_model(request: _Request) -> None:
    """Say that what is measured of the hardened model is not of what the run has now."""
    record = request.record_of(TRAIN)
    if (
        record is not None
        and record.status == "done"
        and record.fingerprint != fingerprint_of(request.ledger, TRAIN)
    ):
        request.reporter.note(
            "the hardened model was trained on another selection or with other settings than the run has now; "
            "steermoe train makes it again"
        )


def _do_step(request: _Request, step: Step, is_wanted: bool) -> None:
    """Do a step that is not done yet."""
    directory, state, reporter = request.directory, request.state, request.reporter
    fingerprint = fingerprint_of(request.ledger, step)
    is_forced = request.force and is_wanted
    if request.is_finished(step, fingerprint, is_forced):
        if is_wanted:
            hint = "; --force does it again" if request.command != "run" else ""
            reporter.line(f"{step.name}: done already{hint}")
        directory.write_state(state)
        _remove_unfinished(directory, step)
        return
    stages_before = dict(state.stages)
    _say_why(request, step, fingerprint)
    record = stages_before.get(step.name)
    if record is not None and (record.fingerprint != fingerprint or record.status == "done"):
        record = None
    if record is None:
        # What an interrupted attempt left behind belongs to other settings.
        for pattern in step.goes_on_from:
            directory.remove_unfinished(pattern)
    for name in {name for found in step.reads for name in found.files}:
        if "*" not in name:
            check_undamaged(request.ledger, name, request.verify)
    new = StepRecord(
        status="running",
        fingerprint=fingerprint,
        settings=values_of(request.ledger.config, step.settings, step.aside),
        inputs=inputs_of(request.ledger, step),
        interrupted=0 if record is None else record.interrupted + 1,
    )
    state.stages[step.name] = new
    directory.write_state(state)
    num_changes = directory.num_changes
    peak = PeakMemory()
    started = time.monotonic()
    try:
        figures = do_step(request.processes, directory, step, request.ledger.config, reporter)
    except SteerMoEError:
        unfinished = any(directory.has_unfinished(pattern) for pattern in step.goes_on_from)
        if directory.num_changes == num_changes and not unfinished:
            _restore(request, step, stages_before)
        raise
    release_memory()
    new.status = "done"
    new.seconds = round(time.monotonic() - started, 2)
    new.peak_memory_bytes = peak.read()
    new.figures = figures
    new.files = directory.matching(step.writes)
    state.files = {k: v for k, v in state.files.items() if directory.has(k)}
    state.files |= {name: record_of(directory, name, step.name) for name in new.files}
    directory.write_state(state)
    # Not before: a process that dies in between would have to make them again.
    _remove_unfinished(directory, step)


def _say_why(request: _Request, step: Step, fingerprint: str) -> None:
    """Say why a step that was begun before is done again."""
    record = request.record_of(step)
    missing = request.missing_files(step)
    if missing:
        request.reporter.note(f"{step.name}: {', '.join(missing)} is gone, so it is done again")
    elif record is not None and record.fingerprint != fingerprint:
        settings = values_of(request.ledger.config, step.settings, step.aside)
        found = difference(record, settings, inputs_of(request.ledger, step))
        request.reporter.note(f"{step.name}: {found}, so it is done again")


def _remove_unfinished(directory: RunDirectory, step: Step) -> None:
    for pattern in step.goes_on_from:
        if pattern not in step.writes:
            directory.remove_unfinished(pattern)


def _restore(request: _Request, step: Step, stages_before: dict[str, StepRecord]) -> None:
    """Write into `run.json` what it said before a step that was refused: its record, and the settings not applied."""
    state, before = request.state, request.before
    state.stages = stages_before
    if before is not None:
        done: tuple[Step, ...] = ()
        if request.command == "run":
            steps = with_own_steps(COMMANDS["run"][1], request.ledger.config)
            done = steps[: [other.name for other in steps].index(step.name)]
        asked = state.config
        state.config = {**before.config, "run": asked["run"]}
        for key in (key for other in done for key in other.settings):
            section, _, name = key.partition(".")
            if not name:
                state.config[section] = asked[section]
            else:  # what else is in that section belongs to later steps
                state.config[section] = {**state.config[section], name: asked[section][name]}
        state.seed = int(state.config["seed"])
    request.directory.write_state(state)
