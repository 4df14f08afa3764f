"""Bad input through the command line: one clear line, exit 1, and nothing lost or half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from conftest import byte_tokenizer
from tiny import CommandLine, arguments_of, contents, copy_of, files_of, write_prompts

GOOD = [
    {"prompt": f"{label} {i}", "label": label}
    for i in range(9)
    for label in ("safe", "unsafe", "benign")
]


@pytest.fixture
def refusal(steermoe: CommandLine, checkpoint: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs `steermoe run` on bad input and returns its one line; nothing may be left of the run."""

    def run(prompts: Path, *more: str, model: Path = checkpoint) -> str:
        run_dir = tmp_path / "run"
        message = steermoe.refusal("run", *arguments_of(model, run_dir, prompts), *more)
        assert not run_dir.exists(), files_of(run_dir)
        return message

    return run


# ---- prompt files -------------------------------------------------------------------------------------


def as_json(rows: Any) -> bytes:
    return json.dumps(rows).encode("utf-8")


def as_lines(rows: list[Any]) -> bytes:
    return b"\n".join(as_json(row) for row in rows)


def conversation(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles], "label": "safe"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"  \n\n", ["empty"]),
        (b"[]", []),
        (as_json(GOOD)[:-100], []),
        (as_lines(GOOD)[:-10], ["27"]),
        (b"PAR1" + bytes(range(256)) * 4, []),
        (bytes(range(256)) * 8, []),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), []),
        ("prompt,label\ncaf\u00e9,safe\n".encode("latin-1"), ["UTF-8"]),
        (as_lines([*GOOD, {"label": "safe"}]), ["28", "prompt"]),
        (as_lines([*GOOD, {"prompt": "", "label": "safe"}]), ["28", "prompt"]),
        (as_lines([*GOOD, {"prompt": None, "label": "safe"}]), ["28", "prompt"]),
        (as_lines([*GOOD, {"prompt": 3, "label": "safe"}]), ["28", "prompt"]),
        (as_lines([*GOOD, {"prompt": "x", "label": "toxic"}]), ["28", "label", "toxic"]),
        (as_lines([*GOOD, {"prompt": "x", "label": ""}]), ["28", "label"]),
        (as_lines([*GOOD, {"prompt": "x", "label": "safe", "split": "eval"}]), ["28", "split"]),
        (as_lines([*GOOD, conversation("assistant", "user")]), ["28"]),
        (as_lines([*GOOD, conversation("user", "system")]), ["28"]),
        (as_lines([*GOOD, conversation("user", "user")]), ["28"]),
        (as_lines([*GOOD, conversation("user", "assistant", "assistant")]), ["28"]),
        (as_lines([*GOOD, conversation("robot")]), ["28", "robot"]),
        (as_lines([*GOOD, {"messages": [], "label": "safe"}]), ["28"]),
        (as_lines([{"question": "x"}]), []),
        (as_lines([row for row in GOOD if row["label"] != "unsafe"]), ["unsafe"]),
        (as_lines([row for row in GOOD if row["label"] != "safe"]), ["safe"]),
        (b'{"prompt": "lone \\ud800 surrogate", "label": "safe"}\n' + as_lines(GOOD), []),
        (
            as_lines(
                [
                    {"prompt": "x", "goal": "g", "label": "unsafe", "split": "train"},
                    {"prompt": "y", "goal": "g", "label": "unsafe", "split": "test"},
                    *GOOD,
                ]
            ),
            ["split"],
        ),
    ],
    ids=lambda value: repr(value[-40:]) if isinstance(value, bytes) else "",
)
def test_a_bad_prompt_file_is_refused_by_name_row_and_field(
    refusal: Callable[..., str], tmp_path: Path, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "prompts.data"
    path.write_bytes(content)
    message = refusal(path)
    assert "prompts.data" in message
    for word in words:
        assert word in message, message


def test_a_prompt_file_that_is_not_there_or_a_directory_is_refused(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert "missing.csv" in refusal(tmp_path / "missing.csv")
    (tmp_path / "folder").mkdir()
    assert "directory" in refusal(tmp_path / "folder")


def test_two_prompt_files_of_which_one_is_bad_are_refused_by_the_bad_ones_name(
    steermoe: CommandLine, checkpoint: Path, tmp_path: Path
) -> None:
    good = write_prompts(tmp_path / "good.csv", GOOD)
    (tmp_path / "bad.csv").write_text("prompt,label\nx,nonsense\n")
    arguments = arguments_of(checkpoint, tmp_path / "run", [good, tmp_path / "bad.csv"])
    assert "bad.csv" in steermoe.refusal("run", *arguments)
    assert not (tmp_path / "run").exists()


def test_fewer_prompts_than_a_batch_needs_are_refused_with_numbers(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    rows = [row | {"split": "train"} for row in GOOD if int(row["prompt"].split()[1]) < 3]
    message = refusal(write_prompts(tmp_path / "few.csv", rows))
    assert "needs 4 safe and 4 unsafe" in message and "3 safe and 3 unsafe" in message


def test_more_batches_than_can_be_filled_are_refused(
    refusal: Callable[..., str], small_prompts: Path
) -> None:
    assert "enough for 3" in refusal(small_prompts, "--set", "collect.num_batches=4")


def test_a_prompt_longer_than_the_context_is_refused_with_numbers(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    rows = [*GOOD, {"prompt": "long " * 300, "label": "benign"}]
    message = refusal(write_prompts(tmp_path / "long.csv", rows))
    assert "1024" in message and "tokens" in message


@pytest.mark.parametrize("ratio", ["0", "1", "1.5", "-0.5", "half"])
def test_a_ratio_that_mixes_nothing_is_refused(
    refusal: Callable[..., str], small_prompts: Path, ratio: str
) -> None:
    message = refusal(small_prompts, "--set", f"collect.safe_ratio={ratio}")
    assert "safe_ratio" in message and ratio.lstrip("-") in message


@pytest.mark.parametrize(
    "setting",
    [
        "prompts.format=xlsx",
        "collect.judge=oracle",
        "model.device=toaster",
        "model.experts_implementation=magic",
        "seed=99999999999999",
        "nonsense=1",
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    refusal: Callable[..., str], small_prompts: Path, setting: str
) -> None:
    assert setting.split("=")[0].split(".")[-1] in refusal(small_prompts, "--set", setting)


# ---- models -------------------------------------------------------------------------------------------


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "broken model"))


def test_a_model_that_does_not_exist_is_refused(
    refusal: Callable[..., str], small_prompts: Path, tmp_path: Path
) -> None:
    assert "does not exist" in refusal(small_prompts, model=tmp_path / "nowhere")
    assert "'some/model' is no directory here" in refusal(small_prompts, model=Path("some/model"))


def test_a_dense_model_is_refused_by_name(
    refusal: Callable[..., str], small_prompts: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=1
    )
    config.save_pretrained(tmp_path / "dense")
    message = refusal(small_prompts, model=tmp_path / "dense")
    assert "llama" in message


def test_a_refused_model_leaves_the_directory_to_the_right_one(
    refusal: Callable[..., str],
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    broken: Path,
) -> None:
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    assert "tokenizer" in refusal(small_prompts, model=broken)
    weights = broken / "model.safetensors"
    shutil.copy(checkpoint / "tokenizer.json", broken)
    shutil.copy(checkpoint / "tokenizer_config.json", broken)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert str(broken) in refusal(small_prompts, model=broken)
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    assert steermoe("collect", *arguments) == 0, steermoe.err


def test_a_tokenizer_without_chat_template_gets_a_plain_one_and_that_is_said(
    steermoe: CommandLine, small_prompts: Path, tmp_path: Path, broken: Path
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    (broken / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(broken)
    arguments = arguments_of(broken, tmp_path / "run", small_prompts)
    assert steermoe("run", *arguments) == 0, steermoe.err
    assert steermoe.err.count("no chat template: a plain one is used") >= 1
    # The hardened model carries the template that it was trained with.
    assert (tmp_path / "run" / "model" / "chat_template.jinja").exists()


# ---- run directories ----------------------------------------------------------------------------------


def unchanged(before: dict[str, bytes], names: set[str], run: Path) -> None:
    assert contents(run) == before
    assert files_of(run) == names


def test_a_run_of_another_model_is_refused_and_kept(
    steermoe: CommandLine, finished: Path, small_prompts: Path, broken: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    before, names = contents(run), files_of(run)
    arguments = arguments_of(broken, run, small_prompts)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert "belongs to model" in steermoe.refusal("run", *arguments)
    assert "belongs to model" in steermoe.refusal("run", *arguments, "--force")
    assert "belongs to model" in steermoe.refusal("train", "--run", run, "--model", broken)
    unchanged(before, names, run)


def test_a_run_of_other_weights_under_the_same_name_is_refused(
    steermoe: CommandLine, small_prompts: Path, broken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert steermoe("collect", *arguments_of(broken, run, small_prompts)) == 0
    before, names = contents(run), files_of(run)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    message = steermoe.refusal("run", *arguments_of(broken, run, small_prompts))
    assert "other weights" in message
    unchanged(before, names, run)


def test_a_run_of_another_schema_version_is_refused_and_kept(
    steermoe: CommandLine, finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    state = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps(state | {"schema_version": 7}), "utf-8")
    before, names = contents(run), files_of(run)
    for arguments in (
        ["run", *arguments_of(checkpoint, run, small_prompts)],
        ["run", *arguments_of(checkpoint, run, small_prompts), "--force"],
        ["train", "--run", str(run)],
        ["show", "--run", str(run)],
        ["export", "--run", str(run)],
    ):
        assert "schema version 7" in steermoe.refusal(*arguments)
    unchanged(before, names, run)


def test_other_prompts_are_refused_without_force_and_the_run_is_kept(
    steermoe: CommandLine, finished: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    before, names = contents(run), files_of(run)
    other = write_prompts(tmp_path / "other.csv", GOOD)
    message = steermoe.refusal("run", *arguments_of(checkpoint, run, other))
    assert "--force" in message and "--run" in message
    unchanged(before, names, run)


@pytest.mark.parametrize("name", ["responses.parquet", "tokens.parquet", "routing.safetensors"])
def test_a_damaged_file_of_a_run_is_told_by_name_and_can_be_made_again(
    steermoe: CommandLine,
    finished: Path,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    name: str,
) -> None:
    run = copy_of(finished, tmp_path / "run")
    (run / name).write_bytes((run / name).read_bytes()[:-50])
    stage = "identify" if name == "routing.safetensors" else "train"
    message = steermoe.refusal(stage, "--run", run, "--force")
    assert name in message and "damaged" in message and "delete it" in message
    (run / name).unlink()
    assert steermoe("run", *arguments_of(checkpoint, run, small_prompts)) == 0
    assert contents(run) == contents(finished)


def test_an_output_below_a_file_is_refused(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = arguments_of(checkpoint, tmp_path / "file" / "run", small_prompts)
    message = steermoe.refusal("run", *arguments)
    assert "cannot be written" in message and str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_output_is_refused(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    mounted: Callable[[str], Path],
) -> None:
    place = mounted("ro,size=1m")
    message = steermoe.refusal("run", *arguments_of(checkpoint, place / "run", small_prompts))
    assert "Read-only file system" in message and "--run" in message


@pytest.mark.parametrize("free", [8, 250, 500, 3000])
def test_a_disk_that_fills_up_is_refused_at_every_stage_and_loses_nothing(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    finished: Path,
    mounted: Callable[[str], Path],
    free: int,
) -> None:
    # So many kilobytes end the run while it collects, identifies, writes training checkpoints, saves the model.
    place = mounted(f"size={free}k")
    arguments = arguments_of(checkpoint, place / "run", small_prompts)
    message = steermoe.refusal("run", *arguments)
    assert "No space left" in message or "cannot be written" in message, message
    assert not [name for name in files_of(place) if "partial" in name]
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    assert steermoe("run", *arguments) == 0, steermoe.err
    mine, theirs = contents(place / "run"), contents(finished)
    assert [name for name in theirs if mine.get(name) != theirs[name]] == []


# ---- nothing selected ---------------------------------------------------------------------------------


def test_no_expert_above_the_threshold_is_said_and_nothing_is_trained(
    steermoe: CommandLine, finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    arguments = arguments_of(checkpoint, run, small_prompts)
    assert steermoe("run", *arguments, "--set", "identify.threshold=0.99") == 0, steermoe.err
    assert "no expert was selected" in steermoe.err
    assert "largest risk difference" in steermoe.err
    assert "nothing was trained" in steermoe.out
    assert not (run / "model").exists() and not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("damage", "lacks"),
    [
        (lambda state: {"schema_version": state["schema_version"]}, "config"),
        (lambda state: state | {"stages": []}, "stages"),
        (lambda state: {k: v for k, v in state.items() if k != "model"}, "model"),
        (
            lambda state: state | {"stages": {"collect": {"status": "done", "fingerprint": "0"}}},
            "collect.seconds",
        ),
        (lambda state: state | {"stages": {"collect": {}}}, "stages.collect.status"),
    ],
)
def test_a_run_json_that_lacks_something_is_refused_by_every_command(
    steermoe: CommandLine,
    finished: Path,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    damage: Callable[[dict[str, Any]], dict[str, Any]],
    lacks: str,
) -> None:
    run = copy_of(finished, tmp_path / "run")
    state = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps(damage(state)), "utf-8")
    before = contents(run)
    for arguments in (
        ["show", "--run", run],
        ["report", "--run", run],
        ["power", "--run", run],
        ["run", *arguments_of(checkpoint, run, small_prompts)],
    ):
        message = steermoe.refusal(*arguments)
        assert "run.json" in message and f"{lacks};" in message
    assert contents(run) == before
