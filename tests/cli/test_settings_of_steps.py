"""A step refuses settings that it does not read, and run.json says what every step was really done with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import TinyCheckpoint
from tiny import CommandLine, copy_of


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return copy_of(finished, tmp_path / "run")


def settings_in(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "run.json").read_text())["config"])


@pytest.mark.parametrize(
    ("command", "setting", "reader"),
    [
        ("train", "identify.top_k=2", "steermoe identify or run"),
        ("report", "train.epochs=77", "steermoe train or run"),
        ("report", "train.target_response=Zzz", "steermoe train or run"),
        ("identify", "train.epochs=1", "steermoe train or run"),
        ("identify", "collect.max_new_tokens=9", "steermoe collect or run"),
        ("evaluate", "identify.threshold=0.3", "steermoe identify or run"),
        ("judge", "prompts.system_prompt=Hi.", "steermoe collect or run"),
    ],
)
def test_a_setting_of_another_step_is_refused_with_the_command_it_is_for(
    steermoe: CommandLine, run: Path, command: str, setting: str, reader: str
) -> None:
    before = (run / "run.json").read_bytes()
    message = steermoe.refusal(command, "--run", run, "--set", setting)
    name = setting.partition("=")[0]
    assert message.startswith(f"{name} = ") and f"not read by steermoe {command}" in message
    assert message.endswith(f"give it to {reader}")
    assert (run / "run.json").read_bytes() == before


def test_the_value_that_the_run_has_is_no_other_setting(steermoe: CommandLine, run: Path) -> None:
    assert steermoe("report", "--run", run, "--set", "train.epochs=2") == 0


def test_its_own_settings_are_taken_and_kept(steermoe: CommandLine, run: Path) -> None:
    assert steermoe("report", "--run", run, "--quiet", "--set", "report.top_experts=3") == 0
    assert settings_in(run)["report"] == {"show_harmful": False, "top_experts": 3}
    assert steermoe("identify", "--run", run, "--quiet", "--set", "identify.top_k=2") == 0
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert stages["identify"]["settings"]["identify.top_k"] == 2
    assert stages["train"]["settings"]["train.epochs"] == 2


def test_of_a_settings_file_a_step_takes_its_own_part_and_names_the_rest(
    steermoe: CommandLine, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[train]\nepochs = 77\n[report]\ntop_experts = 3\n")
    before = settings_in(run)
    assert steermoe("report", "--run", run, "--config", file) == 0
    assert "other.toml: train.epochs not read by steermoe report" in steermoe.err
    after = settings_in(run)
    assert after["train"] == before["train"]
    assert after["report"] == {"show_harmful": False, "top_experts": 3}


def test_the_model_by_another_spelling_is_no_other_setting(
    steermoe: CommandLine,
    run: Path,
    checkpoint: Path,
    tmp_path: Path,
    tiny_checkpoint: TinyCheckpoint,
) -> None:
    (tmp_path / "link").symlink_to(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert steermoe("identify", "--run", run, "--quiet", "--model", "link") == 0
    assert steermoe("identify", "--run", run, "--quiet", "--model", tmp_path / "copy") == 0
    said = steermoe.refusal("identify", "--run", run, "--model", tiny_checkpoint("olmoe"))
    assert "model" in said and "olmoe" in said
