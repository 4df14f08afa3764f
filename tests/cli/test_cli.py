"""The command line: exit codes, what it prints, and that help needs no torch."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steermoe.store.run import load_run
from tiny import (
    SETTINGS,
    CommandLine,
    arguments_of,
    contents,
    copy_of,
    files_of,
    tiny_config,
)

COMMANDS = (
    *("run", "collect", "identify", "train", "evaluate", "report"),
    *("ablate", "show", "export", "models"),
)


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
    if command not in ("show", "export", "models"):
        for option in ("--config", "--set", "--run", "--model", "--seed", "--quiet"):
            assert option in steermoe.out, option


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("run", ["runs/<model name>", "smollm2-moe", "0"]),
        ("train", ["runs/<model name>", "smollm2-moe", "0"]),
        ("show", ["runs/<model name>"]),
        ("export", ["<run>/export", "the one that the delta names", "the delta's"]),
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
        while not any((run_dir / "checkpoints").glob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted: the same command goes on where it stopped"
    assert "Traceback" not in err
    assert load_run(run_dir).state["stages"]["train"]["status"] == "running"


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
    for name in ("refusal of harmful requests", "over-refusal, benign", "KL per token"):
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


@pytest.mark.parametrize("command", ["identify", "train", "evaluate", "report", "show", "export"])
def test_a_stage_without_a_run_is_refused_and_creates_none(
    steermoe: CommandLine, tmp_path: Path, command: str
) -> None:
    message = steermoe.refusal(command, "--run", tmp_path / "none")
    assert "no run in" in message and "steermoe run" in message
    assert not (tmp_path / "none").exists()


def test_a_plan_prints_costs_and_does_nothing(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    # From the config alone: there are no weights to load.
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    arguments = arguments_of(bare, tmp_path / "run", small_prompts)
    assert steermoe("run", *arguments, "--plan") == 0, steermoe.err
    assert not (tmp_path / "run").exists()
    for text in ("memory", "disk", "training steps", "3 of 8", "20 safe, 20 unsafe, 20 benign"):
        assert text in steermoe.out, text
    assert re.search(r"training steps\s+6\b", steermoe.out), "3 batches, 2 epochs"
    settings = ["--set", "train.batch_size=3", "--set", "train.gradient_accumulation_steps=2"]
    first = steermoe.out
    assert steermoe("run", *arguments, "--plan", *settings) == 0, steermoe.err
    assert re.search(r"training steps\s+10\b", steermoe.out), "9 parts of at most 3 of 8, in twos"
    assert steermoe("run", *arguments, "--plan") == 0 and steermoe.out == first
    assert re.search(r"trained experts\s+at most 4 of 16", steermoe.out)
    # 60 replies and 12 held-out ones again, of at most 6 tokens.
    assert "432" in steermoe.out


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        # Of 16 experts, each of three batches may choose four others; a rule of one's own, all.
        (["train.experts=union"], r"trained experts\s+at most 12 of 16"),
        (["identify.rule=json:dumps"], r"trained experts\s+at most 16 of 16"),
        # Eight of the 16 are in the upper of the two layers.
        (["train.experts=union", "identify.first_layer=1"], r"trained experts\s+at most 8 of 16"),
        (
            ["identify.rule=json:dumps", "identify.last_layer=0"],
            r"trained experts\s+at most 8 of 16",
        ),
        (["train.parameters=routers"], r"trained\s+routers, a baseline"),
        (["train.parameters=everything"], r"trained\s+everything, a baseline"),
    ],
    ids=str,
)
def test_a_plan_knows_what_is_trained(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    settings: list[str],
    shown: str,
) -> None:
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    more = [text for setting in settings for text in ("--set", setting)]
    assert steermoe("run", *arguments, "--plan", *more) == 0, steermoe.err
    assert re.search(shown, steermoe.out), steermoe.out


@pytest.mark.parametrize("plan", [["--plan"], []], ids=["plan", "run"])
def test_a_first_layer_above_the_model_is_refused_before_anything_is_collected(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    plan: list[str],
) -> None:
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    assert steermoe("run", *arguments, "--set", "identify.first_layer=2", *plan) == 1
    assert "identify.first_layer is 2, but the MoE layers are 0 .. 1; leave one" in steermoe.err
    assert not (tmp_path / "run" / "prompts.jsonl").exists()


# ---- show ---------------------------------------------------------------------------------------------


def test_show_prints_the_experts_with_their_frequencies(
    steermoe: CommandLine, finished: Path
) -> None:
    assert steermoe("show", "--run", finished, "--top", "5") == 0
    lines = [line for line in steermoe.out.splitlines() if re.match(r"L\d\d_E\d\d ", line)]
    table = load_run(finished).risk_diff.head(5)
    assert len(lines) == 5
    for line, row in zip(lines, table.to_dict("records"), strict=True):
        label, risk_diff, a_safe, a_unsafe = line.split()[:4]
        assert label == row["Layer_Expert"]
        assert float(risk_diff) == pytest.approx(row["risk_diff"], abs=1e-4)
        assert float(a_safe) == pytest.approx(row["a_safe_n"], abs=1e-4)
        assert float(a_unsafe) == pytest.approx(row["a_unsafe_n"], abs=1e-4)
    starred = [line.split()[0] for line in lines if " *" in line]
    selected = {(x, e) for x, e in load_run(finished).unsafe_experts}
    expected = table[
        [(x, e) in selected for x, e in zip(table["layer"], table["expert"], strict=True)]
    ]
    assert starred == expected["Layer_Expert"].tolist()


def test_show_prints_any_layer(steermoe: CommandLine, finished: Path) -> None:
    assert steermoe("show", "--run", finished, "--layer", "1") == 0
    labels = re.findall(r"^L\d\d_E\d\d", steermoe.out, re.MULTILINE)
    assert labels == [f"L01_E{e:02d}" for e in range(8)]
    assert "0-1" in steermoe.refusal("show", "--run", finished, "--layer", "9")


def test_show_prints_batches_and_the_counts_of_one(steermoe: CommandLine, finished: Path) -> None:
    assert steermoe("show", "--run", finished, "--batches") == 0
    rows = [line.split() for line in steermoe.out.splitlines()[1:] if line.strip()]
    assert [row[:3] for row in rows] == [[str(i), "4", "4"] for i in range(3)]
    assert steermoe("show", "--run", finished, "--batch", "1", "--top", "3") == 0
    run = load_run(finished)
    table = run.risk_diff_per_batch
    first = table[table["batch_idx"] == 1].nlargest(1, "risk_diff").to_dict("records")[0]
    assert f"safe {first['a_safe']} of {first['n_safe']}" in steermoe.out
    assert f"unsafe {first['a_unsafe']} of {first['n_unsafe']}" in steermoe.out
    prompts = run.responses[run.responses["batch_idx"] == 1]
    for messages in prompts["messages"]:
        assert messages[-1]["content"] in steermoe.out
    for absent in ("7", "-1"):  # -1 marks what is in no batch
        assert "batches 0 to 2" in steermoe.refusal("show", "--run", finished, "--batch", absent)


@pytest.mark.parametrize("missing", ["risk_diff.parquet", "unsafe_experts.json"])
def test_show_tells_what_a_run_does_not_have_yet(
    steermoe: CommandLine, finished: Path, tmp_path: Path, missing: str
) -> None:
    run = copy_of(finished, tmp_path / "run")
    (run / missing).unlink()
    assert missing in steermoe.refusal("show", "--run", run, "--layer", "0")


def test_show_leaves_markup_in_prompts_alone(
    steermoe: CommandLine, finished: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    table = pd.read_parquet(run / "responses.parquet")
    at = table.index[table["batch_idx"] == 0][0]
    table.at[at, "messages"] = [{"role": "user", "content": "[red]x[/red] [/] \\[b]"}]
    load_run(run).directory.write_table("responses.parquet", table)
    assert steermoe("show", "--run", run, "--batch", "0") == 0
    assert "[red]x[/red] [/]" in steermoe.out


# ---- export and models --------------------------------------------------------------------------------


def test_export_writes_the_tables(steermoe: CommandLine, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        steermoe("export", "--run", finished, "--format", "csv", "--format", "jsonl", "-o", out)
        == 0
    )
    written = [Path(line) for line in steermoe.out.split()]
    assert {path.name for path in written} == {path.name for path in out.iterdir()}
    table = load_run(finished).risk_diff
    with (out / "risk_diff.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["Layer_Expert"] for row in rows] == table["Layer_Expert"].tolist()
    assert [float(row["risk_diff"]) for row in rows] == pytest.approx(table["risk_diff"].tolist())
    lines = (out / "responses.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    response = load_run(finished).responses.iloc[0]
    assert first["generated_text"] == response["generated_text"]
    assert first["messages"] == [dict(m) for m in response["messages"]]
    with (out / "responses.csv").open(newline="", encoding="utf-8") as file:
        cell = next(csv.DictReader(file))["messages"]
    assert json.loads(cell) == first["messages"], "messages can be read back from the CSV too"


def test_export_and_apply_a_delta(
    steermoe: CommandLine, finished: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert steermoe("export", "--run", finished, "--format", "delta", "-o", tmp_path / "d") == 0
    (delta,) = (tmp_path / "d").iterdir()
    assert delta.stat().st_size < (finished / "model" / "model.safetensors").stat().st_size / 2
    hardened = tmp_path / "hardened"
    arguments = ["--apply", delta, "--model", checkpoint, "-o", hardened]
    assert steermoe("export", *arguments) == 0, steermoe.err
    from safetensors.torch import load_file

    mine, theirs = (load_file(p / "model.safetensors") for p in (hardened, finished / "model"))
    assert mine.keys() == theirs.keys()
    assert all(bool((mine[name] == tensor).all()) for name, tensor in theirs.items())
    assert "not empty" in steermoe.refusal("export", *arguments)
    assert "--output" in steermoe.refusal("export", "--apply", delta)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--format", "xlsx"], "xlsx"),
        (["--apply", "missing.safetensors", "-o", "out"], "missing.safetensors"),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    steermoe: CommandLine, finished: Path, arguments: list[str], word: str
) -> None:
    assert word in steermoe.refusal("export", "--run", finished, *arguments)


def test_export_without_a_hardened_model_names_the_stage(
    steermoe: CommandLine, finished: Path, tmp_path: Path
) -> None:
    import shutil

    run = copy_of(finished, tmp_path / "run")
    shutil.rmtree(run / "model")
    assert "steermoe train" in steermoe.refusal("export", "--run", run, "--format", "delta")
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in steermoe.refusal(
        "export", "--run", run, "-o", tmp_path / "file" / "below"
    )


def test_models_lists_architectures_and_describes_one(
    steermoe: CommandLine, checkpoint: Path
) -> None:
    assert steermoe("models") == 0
    for name in ("olmoe", "mixtral", "qwen3_moe", "gpt_oss", "llama4"):
        assert re.search(rf"\b{name}\b", steermoe.out), name
    assert int(re.search(r"(\d+) supported architectures", steermoe.out)[1]) >= 40
    assert steermoe("models", str(checkpoint)) == 0
    assert re.search(r"experts of a layer\s+8, of which 2", steermoe.out)
    assert "MixtralForCausalLM" in steermoe.out
    assert "1,536" in steermoe.out, "3 matrices of 32 x 16"
    assert "/no/model" in steermoe.refusal("models", "/no/model")


def test_the_settings_used_here_are_all_known(tmp_path: Path, checkpoint: Path) -> None:
    config = tiny_config(checkpoint, tmp_path, tmp_path)
    assert config.train.epochs == SETTINGS["train"]["epochs"]
    assert files_of(tmp_path) == set()
