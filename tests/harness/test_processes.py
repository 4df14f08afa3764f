"""Another tool in a process of its own: what it is told, what is said when it fails, and what is not run again."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from steermoe.errors import ConfigError, SteerMoEError
from steermoe.harness.inspect_runs import (
    check_inspect,
    inspect_command,
    model_arguments,
    run_inspect,
)
from steermoe.harness.lm_eval_runs import check_lm_eval, lm_eval_command, run_lm_eval
from steermoe.harness.processes import Target, missing_by, run_tool, tool_version

LOGS = Path(__file__).parent / "logs"


def options(command: list[str]) -> dict[str, str]:
    """What follows each option."""
    pairs = zip(command, [*command[1:], ""], strict=True)
    return {name: value for name, value in pairs if name.startswith("--")}


def test_a_tool_that_is_not_installed_is_said_with_what_to_install() -> None:
    assert tool_version(sys.executable, "pytest", "dev") == pytest.__version__
    with pytest.raises(ConfigError, match=r"no-such-tool is not installed .*steermoe\[extra\]"):
        tool_version(sys.executable, "no-such-tool", "extra")
    with pytest.raises(ConfigError, match="/no/python cannot be run: No such file"):
        tool_version("/no/python", "pytest", "dev")


def test_what_a_tool_prints_goes_to_a_file(tmp_path: Path) -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr)"
    run_tool([sys.executable, "-c", code], tmp_path / "made")
    lines = (tmp_path / "made" / "output.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == ["one", "two"]


def test_a_tool_that_fails_gives_its_last_line_and_where_the_others_are(tmp_path: Path) -> None:
    with pytest.raises(SteerMoEError) as failed:
        run_tool([sys.executable, "-c", "print('a'); raise SystemExit('no such task')"], tmp_path)
    said = str(failed.value)
    assert "ended with 1: no such task" in said and str(tmp_path / "output.txt") in said
    assert "\n" not in said
    with pytest.raises(SteerMoEError, match="ended with 3: it printed nothing"):
        run_tool([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


TARGET = Target(
    "/a, b/model",
    revision="abc",
    dtype="bfloat16",
    device="cpu",
    trust_remote_code=True,
    system_prompt="Be brief.",
    template_kwargs={"enable_thinking": False},
    batch_size=7,
    limit=9,
    python="python3",
)


def test_lm_eval_is_told_the_model_and_all_that_belongs_to_it(tmp_path: Path) -> None:
    command = lm_eval_command(TARGET, "quiz,words", tmp_path, tmp_path / "tasks")
    assert command[:4] == ["python3", "-m", "lm_eval", "run"]
    given = options(command)
    assert json.loads(given["--model_args"]) == {
        "pretrained": "/a, b/model",
        "dtype": "bfloat16",
        "revision": "abc",
        "trust_remote_code": True,
        "chat_template_args": {"enable_thinking": False},
    }
    assert given["--tasks"] == "quiz,words"
    assert given["--system_instruction"] == "Be brief."
    assert (given["--batch_size"], given["--limit"], given["--device"]) == ("7", "9", "cpu")
    assert given["--include_path"] == str(tmp_path / "tasks")
    assert "--log_samples" in given and "--apply_chat_template" in given
    plain = options(lm_eval_command(Target("m"), "quiz", tmp_path))
    assert json.loads(plain["--model_args"]) == {"pretrained": "m", "dtype": "auto"}
    assert not {"--limit", "--device", "--system_instruction", "--include_path"} & set(plain)


def test_inspect_is_told_the_model_and_to_reply_greedily(tmp_path: Path) -> None:
    given = options(inspect_command(TARGET, "file.py@task", tmp_path))
    assert given["--log-format"] == "json"
    assert (given["--temperature"], given["--system-message"]) == ("0", "Be brief.")
    assert (given["--max-connections"], given["--limit"]) == ("7", "9")
    assert model_arguments(TARGET) == {
        "model_path": "/a, b/model",
        "dtype": "bfloat16",
        "do_sample": False,
        "tokenizer_call_args": {"add_special_tokens": False},
        "enable_thinking": False,
        "device": "cpu",
        "revision": "abc",
        "trust_remote_code": True,
    }


def test_an_argument_that_inspect_cannot_pass_to_the_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot pass reasoning_effort to the chat template"):
        model_arguments(Target("m", template_kwargs={"reasoning_effort": "low"}))


def test_a_finished_folder_is_read_and_nothing_runs(tmp_path: Path) -> None:
    nowhere = Target("m", python="/no/python")
    lm_eval = Path(shutil.copytree(LOGS / "lm_eval_base", tmp_path / "lm_eval"))
    assert len(run_lm_eval(nowhere, "quiz", lm_eval)) == 7
    inspect = Path(shutil.copytree(LOGS / "inspect_letters_base", tmp_path / "inspect"))
    assert len(run_inspect(nowhere, "letters", inspect)) == 1
    for run in (run_lm_eval, run_inspect):
        with pytest.raises(ConfigError, match="/no/python cannot be run"):
            run(nowhere, "quiz", tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_what_a_tool_does_not_know_is_asked_in_its_interpreter() -> None:
    code = "import json, sys; print('loading'); print(json.dumps([n for n in sys.argv[1:] if n != 'quiz']))"
    assert missing_by(sys.executable, code, ["quiz", "words"]) == ["words"]
    # One that says nothing that can be read is left to say it when it runs.
    for silent in ("print('no list')", "raise SystemExit(1)", "print(3)"):
        assert missing_by(sys.executable, silent, ["quiz"]) == []


@pytest.mark.parametrize(
    ("check", "tool"), [(check_lm_eval, "lm_eval_runs"), (check_inspect, "inspect_runs")]
)
def test_a_task_that_the_tool_lacks_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, check: Any, tool: str
) -> None:
    monkeypatch.setattr(f"steermoe.harness.{tool}.tool_version", lambda *args: "1")
    monkeypatch.setattr(f"steermoe.harness.{tool}.missing_by", lambda python, code, names: ["quiz"])
    with pytest.raises(ConfigError, match="quiz"):
        check(Target("m"), "quiz")
    monkeypatch.setattr(f"steermoe.harness.{tool}.missing_by", lambda python, code, names: [])
    check(Target("m"), "quiz")


def test_a_file_of_tasks_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steermoe.harness.inspect_runs.tool_version", lambda *args: "1")
    with pytest.raises(ConfigError, match=r"there is no file nowhere\.py"):
        check_inspect(Target("m"), "nowhere.py@quiz")
