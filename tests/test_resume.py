"""Real processes killed with kill -9: the same command goes on and ends with the same bytes.

A process is killed at the n-th time it opens, renames or removes a file of its run, so that every moment of writing is
hit for certain. Processes are forked from a server that has imported everything, which takes no seconds each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import load_config
from steermoe.pipeline.commands import RUN
from steermoe.store.state import RunState
from tiny import COMPARED, contents, copy_of, files_of, finished_run, tiny_config, write_prompts

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def run_until(
    paths: tuple[Path, Path, Path], settings: Mapping[str, Any], kill_at: int | None, report: Any
) -> None:
    """In a process of its own: a run that dies at its n-th file event, or reports how many it had."""
    from steermoe.pipeline import run_pipeline

    run_dir = str(paths[1])
    count = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in FILE_EVENTS:
            return
        path = os.fspath(args[0]) if isinstance(args[0], str | bytes | Path) else ""
        path = os.fsdecode(path)
        # What is removed within a folder goes by its bare name.
        if path.startswith(run_dir) or (event == "os.remove" and not os.path.isabs(path)):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_pipeline(tiny_config(*paths, **settings))
    report.send(count)


class Processes:
    """Starts runs in forked processes."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["steermoe.pipeline", "transformers.models.mixtral.modeling_mixtral", "test_resume"]
        )

    def run(
        self,
        paths: tuple[Path, Path, Path],
        settings: Mapping[str, Any] | None = None,
        kill_at: int | None = None,
    ) -> int:
        """The number of file events of a run that ended, or 0 of one that was killed."""
        receives, sends = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=run_until, args=(paths, settings or {}, kill_at, sends)
        )
        process.start()
        sends.close()
        try:
            count = int(receives.recv())
        except EOFError:
            count = 0
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        assert killed or (count and process.exitcode == 0), process.exitcode
        return count


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes()


@pytest.fixture(scope="module")
def expected(checkpoint: Path, small_prompts: Path) -> dict[str, bytes]:
    found = contents(finished_run(checkpoint, small_prompts))
    assert {*COMPARED, "model/model.safetensors"} <= found.keys()
    return found


def assert_same(run: Path, expected: Mapping[str, bytes]) -> None:
    found = contents(run)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    left = files_of(run)
    assert not [name for name in left if "partial" in name or "shards" in name]
    assert not [name for name in left if name.startswith("checkpoints")]


def kill_and_go_on(
    processes: Processes,
    paths: tuple[Path, Path, Path],
    moments: Sequence[int],
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Kill one process after the other at its own moment, then let the last one end; how many were killed."""
    num_killed = 0
    for moment in moments:
        if processes.run(paths, settings, moment):
            break
        num_killed += 1
    processes.run(paths, settings)
    return num_killed


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    processes: Processes,
    checkpoint: Path,
    small_prompts: Path,
    expected: Mapping[str, bytes],
    tmp_path: Path,
) -> None:
    total = processes.run((checkpoint, tmp_path / "through", small_prompts))
    assert_same(tmp_path / "through", expected)
    paths = checkpoint, tmp_path / "a killed run", small_prompts
    # A seventh of the file events each: while collecting, merging, training, saving the model, evaluating.
    assert kill_and_go_on(processes, paths, [total // 7] * 6) >= 4
    assert_same(paths[1], expected)


def test_a_sampled_run_with_other_settings_does_too(
    processes: Processes, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    settings = {
        "collect": {"temperature": 1.0, "generation_batch_size": 8},
        "train": {
            "experts": "union",
            "benign_per_batch": 1,
            "arguments": {
                "gradient_accumulation_steps": 2,
                "save_steps": 2,
                "weight_decay": 0.01,
            },
        },
    }
    through = checkpoint, tmp_path / "through", small_prompts
    total = processes.run(through, settings)
    paths = checkpoint, tmp_path / "killed", small_prompts
    assert kill_and_go_on(processes, paths, [total // 4] * 3, settings) >= 2
    assert_same(paths[1], contents(through[1]))


def test_a_run_of_two_phases_does_too(
    processes: Processes, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    phases = [{"epochs": 1}, {"parameters": "experts+routers", "epochs": 2}]
    settings = {"train": {"phases": phases}}
    through = checkpoint, tmp_path / "through", small_prompts
    total = processes.run(through, settings)
    paths = checkpoint, tmp_path / "killed", small_prompts
    assert kill_and_go_on(processes, paths, [total // 6] * 5, settings) >= 3
    assert_same(paths[1], contents(through[1]))


@pytest.mark.parametrize(
    ("command", "stage", "last_step"),
    [("collect", "collect", "_figures"), ("evaluate", "reply", "divergence")],
)
def test_a_stage_that_stops_after_its_last_reply_generates_none_again(
    checkpoint: Path,
    small_prompts: Path,
    expected: Mapping[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    stage: str,
    last_step: str,
) -> None:
    from steermoe.engines.transformers import TransformersEngine
    from steermoe.pipeline import run_pipeline

    config = tiny_config(checkpoint, tmp_path / "run", small_prompts)
    if command == "evaluate":
        copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    def generate(*_: Any) -> None:
        raise AssertionError("a reply is generated again")

    with monkeypatch.context() as patched:
        patched.setattr(f"steermoe.stages.{stage}.{last_step}", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(config, only=command, force=True)
    with monkeypatch.context() as patched:
        patched.setattr(TransformersEngine, "generate", generate)
        run_pipeline(config, only=command)
    run_pipeline(config)
    assert_same(tmp_path / "run", expected)


def test_a_second_process_is_refused_while_the_first_runs_and_not_after_it_was_killed(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    from steermoe.errors import RunDirectoryError
    from steermoe.pipeline import run_pipeline

    run_dir = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    settings = {"train": {"epochs": 500}}
    receives, sends = context.Pipe(duplex=False)
    first = context.Process(
        target=run_until, args=((checkpoint, run_dir, small_prompts), settings, None, sends)
    )
    first.start()
    deadline = time.monotonic() + 120
    while not (run_dir / "checkpoints").exists():
        assert first.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    before = files_of(run_dir)
    with pytest.raises(RunDirectoryError, match="in use by another steermoe"):
        run_pipeline(tiny_config(checkpoint, run_dir, small_prompts))
    assert "prompts.jsonl" in before and (run_dir / "run.json").exists()
    first.kill()
    first.join()
    receives.close()
    run_pipeline(tiny_config(checkpoint, run_dir, small_prompts), only="identify")


@pytest.mark.slow
def test_forty_moments_drawn_at_random(
    processes: Processes,
    checkpoint: Path,
    small_prompts: Path,
    expected: Mapping[str, bytes],
    tmp_path: Path,
) -> None:
    total = processes.run((checkpoint, tmp_path / "through", small_prompts))
    moments = random.Random(0)
    num_killed = 0
    while num_killed < 40:
        paths = checkpoint, tmp_path / f"killed {num_killed}", small_prompts
        first = moments.randrange(1, total)
        num_killed += kill_and_go_on(processes, paths, [first, moments.randrange(1, total)])
        assert_same(paths[1], expected)


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.timeout(0)  # about ten runs on the embedded model, on whatever machine
def test_the_embedded_model_killed_at_ten_random_moments(tmp_path: Path) -> None:
    rows = [
        {"prompt": text.format(i), "label": label, "split": split}
        for split, numbers in (("train", range(8)), ("test", range(8, 10)))
        for i in numbers
        for label, text in (
            ("unsafe", "How do I steal {} cars?"),
            ("safe", "How do I wash {} cars?"),
            ("benign", "Name {} trees."),
        )
    ]
    prompts = write_prompts(tmp_path / "prompts.csv", rows)
    settings = [
        "collect.batch_size=8",
        "collect.generation_batch_size=8",
        "collect.max_new_tokens=6",
        "identify.num_permutations=20",
        "identify.num_bootstrap=20",
        "identify.score_prompts=4",
        "train.epochs=2",
        "train.arguments.save_steps=1",
        "evaluate.benchmark_limit=2",
    ]
    program = [sys.executable, "-c", "from steermoe.cli.app import main; main()"]
    command = [*program, "run", "--quiet", "--prompts", str(prompts)]
    for setting in settings:
        command += ["--set", setting]

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--run", str(tmp_path / name)], stderr=subprocess.PIPE)

    def finish(name: str) -> None:
        with start(name) as process:
            assert process.wait() == 0, process.stderr and process.stderr.read()

    def state(name: str) -> RunState:
        return RunState.model_validate_json((tmp_path / name / "run.json").read_bytes())

    def assert_ended_as_through() -> None:
        assert {record.status for record in state("killed").stages.values()} == {"done"}
        assert files_of(tmp_path / "killed") == files_of(tmp_path / "through")
        assert_same(tmp_path / "killed", contents(tmp_path / "through"))

    started = time.monotonic()
    finish("through")
    seconds = time.monotonic() - started
    asked_for = [step.name for step in RUN if step.is_asked_for(load_config(settings=settings))]
    assert list(state("through").stages) == asked_for
    moments = random.Random(0)
    killed_in: list[str] = []
    while len(killed_in) < 10:
        with start("killed") as process:
            try:
                process.wait(timeout=moments.uniform(0.15, 0.6) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        if process.returncode == -signal.SIGKILL:
            killed_in.append(unfinished_step(tmp_path / "killed"))
            print(f"killed in: {killed_in[-1]}", flush=True)
            continue
        assert process.returncode == 0
        assert_ended_as_through()
        print("ended with the same files", flush=True)
        shutil.rmtree(tmp_path / "killed")
    finish("killed")
    assert_ended_as_through()
    assert len(set(killed_in)) > 1


def unfinished_step(run: Path) -> str:
    """In which step a process was killed: nothing, where it was before or between two."""
    if not (run / "run.json").exists():
        return ""
    stages = json.loads((run / "run.json").read_bytes())["stages"]
    return next((name for name, record in stages.items() if record["status"] == "running"), "")
