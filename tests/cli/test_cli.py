"""The command line: exit codes, what it prints, and that help needs no torch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from steermoe.store.run import load_run
from tiny import (
    SETTINGS,
    CommandLine,
    arguments_of,
    contents,
    files_of,
    tiny_config,
)

ON_A_RUN = (
    *("run", "collect", "identify", "train", "evaluate", "ablate", "report"),
    *("plan", "power"),
)
COMMANDS = (*ON_A_RUN, "show", "export", "apply", "prompts", "models")


@pytest.fixture
def steermoe(steermoe: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line of a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return steermoe


# ---- help, usage, version -----------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    script = """
import sys
sys.argv = ["steermoe", "--help"]
from steermoe.cli.app import main
try:
    main()
except SystemExit as stopped:
    heavy = {"torch", "transformers", "pandas", "pyarrow", "scipy", "plotly", "pydantic"} & set(sys.modules)
    print("code", stopped.code, "heavy", sorted(heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "code 0 heavy []" in done.stdout
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(steermoe: CommandLine, command: str) -> None:
    assert steermoe(command, "--help") == 0
    assert "--debug" in steermoe.out
    assert "Usage: " in steermoe.out
    if command in ON_A_RUN:
        for option in ("--config", "--set", "--run", "--model", "--prompts", "--seed", "--quiet"):
            assert option in steermoe.out, option
    for old in ("--plan", "--power", "--apply"):  # which have commands of their own now
        assert old not in steermoe.out


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("run", ["runs/<model name>", "smollm2-moe", "0"]),
        ("train", ["runs/<model name>", "smollm2-moe", "0"]),
        ("show", ["runs/<model name>"]),
        ("export", ["<run>/export"]),
        ("apply", ["the one that the delta names", "the delta's"]),
        ("power", ["multiples of the threshold, or of the run's largest"]),
    ],
)
def test_help_says_the_defaults(steermoe: CommandLine, command: str, defaults: list[str]) -> None:
    assert steermoe(command, "--help") == 0
    for default in defaults:
        assert f"[default: ({default})]" in steermoe.out


def test_version(steermoe: CommandLine) -> None:
    from steermoe import __version__

    assert steermoe("--version") == 0
    assert steermoe.out.strip() == f"steermoe {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["run", "--no-such-option"],
        ["run", "--seed", "many"],
        ["run", "--seed", "-1"],
        ["run", "stray"],
        ["show", "--top", "0"],
    ],
)
def test_wrong_usage_exits_with_two(steermoe: CommandLine, arguments: list[str]) -> None:
    assert steermoe(*arguments) == 2
    assert "Usage" in steermoe.err and "Traceback" not in steermoe.err


# ---- errors and interruptions -------------------------------------------------------------------------


def test_a_users_error_is_one_line_and_with_debug_a_traceback(steermoe: CommandLine) -> None:
    message = steermoe.refusal("run", "--model", "/no/such/model")
    assert "/no/such/model" in message
    from steermoe.errors import ModelError

    with pytest.raises(ModelError):
        steermoe("run", "--model", "/no/such/model", "--debug")


@pytest.mark.parametrize(
    ("setting", "hint"),
    [("train.epoch=1", "train.epochs"), ("collct.batch_size=8", "did you mean collect?")],
)
def test_an_unknown_key_is_refused_with_a_suggestion(
    steermoe: CommandLine, tmp_path: Path, setting: str, hint: str
) -> None:
    assert hint in steermoe.refusal("run", "--set", setting)
    key, _, value = setting.partition("=")
    section, _, name = key.partition(".")
    (tmp_path / "c.toml").write_text(f"[{section}]\n{name} = {value}\n")
    message = steermoe.refusal("run", "--config", "c.toml")
    assert section in message
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_is_130_and_says_how_to_go_on(
    checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", "from steermoe.cli.app import main; main()", "run"]
    arguments = [*arguments_of(checkpoint, run_dir, small_prompts), "--set", "train.epochs=2000"]
    with subprocess.Popen(
        [*command, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # A shell starts what it puts into the background deaf to Ctrl-C, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 240
        while not any((run_dir / "checkpoints").glob("phase-*/checkpoint-*/trainer_state.json")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted: the same command goes on where it stopped"
    assert "Traceback" not in err
    assert load_run(run_dir).state.stages["train"].status == "running"


def test_an_interruption_in_any_command_is_130(
    steermoe: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("steermoe.store.run.load_run", interrupted)
    assert steermoe("show") == 130
    assert steermoe.err.strip() == "interrupted: the same command goes on where it stopped"


# ---- runs ---------------------------------------------------------------------------------------------


def test_run_prints_a_summary_and_where_the_files_are(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "a run"
    assert steermoe("run", *arguments_of(checkpoint, run_dir, small_prompts)) == 0
    for text in ("report.html", "evaluation.json", str(run_dir / "model")):
        assert text in steermoe.out
    assert "4 of 16" in steermoe.out, "experts trained"
    for name in ("Harmful requests refused", "Benign requests refused", "Change on harmless text"):
        assert name in steermoe.out
    assert "60 prompts" in steermoe.out and "seconds" in steermoe.out
    assert "n=4" in steermoe.out
    # The same run by the Python interface: the same bytes.
    mine, theirs = contents(run_dir), contents(finished)
    assert [name for name in mine if mine[name] != theirs[name]] == []
    # The progress goes to standard error, so that standard output can be piped.
    assert "collected" in steermoe.err and "collected" not in steermoe.out


def test_the_stages_one_by_one_give_the_same_run(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert steermoe("collect", *arguments_of(checkpoint, run_dir, small_prompts)) == 0
    # The other stages take the settings of the run.
    for command in ("identify", "train", "evaluate", "report"):
        assert steermoe(command, "--run", run_dir, "--quiet") == 0, steermoe.err
    mine, theirs = contents(run_dir), contents(finished)
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert steermoe("train", "--run", run_dir) == 0
    assert "done already; --force does it again" in steermoe.err


def test_a_config_file_its_settings_and_the_options_are_layered(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(
        f"seed = 5\nrun = '{tmp_path / 'by file'}'\n[model]\nid = '{checkpoint}'\n"
        f"[prompts]\nsources = ['{small_prompts}']\n"
        "[collect]\nbatch_size = 8\nmax_new_tokens = 2\n"
    )
    arguments = ["--config", "c.toml", "--set", "collect.max_new_tokens=3", "--seed", "7"]
    assert steermoe("collect", *arguments, "-q") == 0
    config = load_run(tmp_path / "by file").config
    assert (config.seed, config.collect.max_new_tokens, config.collect.batch_size) == (7, 3, 8)
    assert not (tmp_path / "runs").exists()


def test_the_default_directory_is_named_after_the_model(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    arguments = arguments_of(checkpoint, Path("unused"), small_prompts)
    at = arguments.index("--run")
    del arguments[at : at + 2]
    assert steermoe("collect", *arguments) == 0
    assert (tmp_path / "runs" / checkpoint.name / "responses.parquet").exists()


@pytest.mark.parametrize(
    "command", ["identify", "train", "evaluate", "ablate", "report", "power", "show", "export"]
)
def test_a_stage_without_a_run_is_refused_and_creates_none(
    steermoe: CommandLine, tmp_path: Path, command: str
) -> None:
    message = steermoe.refusal(command, "--run", tmp_path / "none")
    assert "no run in" in message and "steermoe run" in message
    assert not (tmp_path / "none").exists()


def test_the_settings_used_here_are_all_known(tmp_path: Path, checkpoint: Path) -> None:
    config = tiny_config(checkpoint, tmp_path, tmp_path)
    assert config.train.epochs == SETTINGS["train"]["epochs"]
    assert files_of(tmp_path) == set()
