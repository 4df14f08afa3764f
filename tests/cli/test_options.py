"""The options that commands share: how they are read, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from steermoe.cli.options import Options, as_command
from steermoe.errors import ModelError
from steermoe.store.run import load_run
from test_architecture import HEAVY, run_without
from tiny import CommandLine, arguments_of, copy_of

# ---- a function as a command --------------------------------------------------------------------------


def invoke(function: Any, *arguments: str) -> int:
    """The exit code of a command line that has one command."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(as_command(function))
    try:
        app(list(arguments), standalone_mode=True)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_options_come_as_one_record_beside_the_commands_own() -> None:
    seen: list[Any] = []

    def command(
        options: Options, top: Annotated[int, typer.Option("--top", help="How many.")] = 3
    ) -> None:
        """Do something."""
        seen.append((options, top))

    arguments = ["--seed", "4", "--set", "a.b=1", "--set", "c.d=2", "--top", "5", "-q"]
    assert invoke(command, *arguments) == 0
    assert seen == [(Options(seed=4, settings=["a.b=1", "c.d=2"], quiet=True), 5)]


def test_a_users_error_is_one_line_unless_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    def command(options: Options) -> None:
        """Fail."""
        raise ModelError("no such model")

    assert invoke(command) == 1
    assert capsys.readouterr().err == "error: no such model\n"
    with pytest.raises(ModelError, match="no such model"):
        invoke(command, "--debug")
    # A value that reads like the option is none.
    assert invoke(command, "--model=--debug") == 1


# ---- paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "identify", "show", "export", "plan"])
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_run_directory_is_refused(
    steermoe: CommandLine, tmp_path: Path, command: str, name: str
) -> None:
    before = sorted(tmp_path.iterdir())
    assert "names no directory" in steermoe.refusal(command, "--run", name)
    assert sorted(tmp_path.iterdir()) == before


def test_the_home_directory_is_understood_in_every_path(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(checkpoint, home / "model")
    (home / "prompts.csv").write_bytes(small_prompts.read_bytes())
    (home / "mine.toml").write_text("[collect]\nmax_new_tokens = 2\nbatch_size = 8\n")
    arguments = ["--config", "~/mine.toml", "--model", "~/model", "--prompts", "~/prompts.csv"]
    assert steermoe("collect", *arguments, "--set", "run=~/a run", "-q") == 0, steermoe.err
    config = load_run(home / "a run").config
    assert config.model.id == str(home / "model") and config.run == str(home / "a run")
    assert config.prompts.sources == (str(home / "prompts.csv"),)
    assert steermoe("export", "--run", "~/a run", "-o", "~/tables") == 0, steermoe.err
    assert (home / "tables" / "responses.csv").exists()
    assert not list(tmp_path.glob("~*")), "no directory of that name is made"
    assert "no-such-user" in steermoe.refusal("show", "--run", "~no-such-user/run")


# ---- settings -----------------------------------------------------------------------------------------


def test_a_setting_that_changes_nothing_is_said(
    steermoe: CommandLine, finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    void = ["--set", "identify.max_q_value=0.01"]
    said = "note: identify.max_q_value = 0.01 has no part in the selection"
    assert steermoe("identify", "--run", run, *void, "--quiet") == 0
    assert said in steermoe.err
    void += ["--set", "train.mask=batch"]
    assert "train.mask = 'batch' is not read" in steermoe.refusal("identify", "--run", run, *void)
    assert steermoe("plan", *arguments_of(checkpoint, run, small_prompts), *void) == 0
    assert said in steermoe.err
    assert "note: train.mask = 'batch' has no effect: train.mask_scope is off" in steermoe.err
    assert steermoe("plan", *arguments_of(checkpoint, run, small_prompts)) == 0
    assert "no effect" not in steermoe.err and "no part" not in steermoe.err


# ---- what is imported ---------------------------------------------------------------------------------


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line where torch and transformers cannot be imported."""
    given = ["steermoe", *map(str, arguments)]
    return run_without(HEAVY, f"from steermoe.cli.app import main\nsys.argv = {given!r}\nmain()")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show"],
        ["show", "--batches"],
        ["show", "--batch", "0"],
        ["show", "--layer", "0"],
        ["export", "--format", "csv", "--format", "jsonl"],
        ["power", "--risk-diff", "0.3"],
        ["report"],
        ["report", "--force", "--set", "report.top_experts=3"],
    ],
    ids=" ".join,
)
def test_a_run_is_read_without_torch(finished: Path, tmp_path: Path, arguments: list[str]) -> None:
    run = copy_of(finished, tmp_path / "run")
    done = without_torch(*arguments, "--run", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout or arguments[0] == "report"


def test_show_imports_no_statistics(finished: Path) -> None:
    code = "from steermoe.cli.app import main\n"
    code += f"sys.argv = ['steermoe', 'show', '--run', {str(finished)!r}]\nmain()"
    done = run_without((*HEAVY, "scipy", "plotly", "jinja2"), code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", ["report.page", "stages.evaluate", "stages.ablation", "stages.judge"]
)
def test_what_reads_results_alone_needs_no_torch(module: str) -> None:
    done = run_without(HEAVY, f"import steermoe.{module}")
    assert done.returncode == 0, done.stderr
