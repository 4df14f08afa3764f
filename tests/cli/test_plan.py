"""`steermoe plan`: what it counts, and that it neither builds nor loads a model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tiny import CommandLine, arguments_of


@pytest.fixture
def steermoe(steermoe: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line of a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return steermoe


def test_a_plan_prints_costs_and_does_nothing(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    # From the config alone: there are no weights to load.
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    arguments = arguments_of(bare, tmp_path / "run", small_prompts)
    assert steermoe("plan", *arguments) == 0, steermoe.err
    assert not (tmp_path / "run").exists()
    for text in ("memory", "disk", "training steps", "3 of 8", "20 safe, 20 unsafe, 20 benign"):
        assert text in steermoe.out, text
    assert re.search(r"training steps\s+6\b", steermoe.out), "3 batches, 2 epochs"
    settings = [
        "--set",
        "train.batch_size=3",
        "--set",
        "train.arguments.gradient_accumulation_steps=2",
    ]
    first = steermoe.out
    assert steermoe("plan", *arguments, *settings) == 0, steermoe.err
    assert re.search(r"training steps\s+10\b", steermoe.out), "9 parts of at most 3 of 8, in twos"
    assert steermoe("plan", *arguments) == 0 and steermoe.out == first
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
    assert steermoe("plan", *arguments, *more) == 0, steermoe.err
    assert re.search(shown, steermoe.out), steermoe.out


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_first_layer_above_the_model_is_refused_before_anything_is_collected(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    command: str,
) -> None:
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    assert steermoe(command, *arguments, "--set", "identify.first_layer=2") == 1
    assert "identify.first_layer is 2, but the MoE layers are 0 .. 1; leave one" in steermoe.err
    assert not (tmp_path / "run" / "prompts.jsonl").exists()


def test_the_old_flag_prints_the_same(
    steermoe: CommandLine, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    assert steermoe("plan", *arguments) == 0
    printed = steermoe.out
    assert steermoe("run", "--plan", *arguments) == 0
    assert steermoe.out == printed


def test_a_plan_of_the_embedded_model_builds_none(
    steermoe: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STEERMOE_SMOLLM2_WHEEL", str(tmp_path / "no wheel"))
    assert steermoe("plan") == 0, steermoe.err
    assert "smollm2-moe (MixtralForCausalLM)" in steermoe.out
    assert re.search(r"disk, model\s+1\.29 GiB", steermoe.out), "692 M of 2 bytes"
    assert steermoe("models", "smollm2-moe") == 0
    assert re.search(r"MoE layers\s+30 \(decoder layers 0-29\)", steermoe.out)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "has_arithmetic", "weights", "disk"),
    [
        ((), True, "1.29", "1.29"),
        ((), False, "2.58", "1.29"),
        (("--devices=1",), False, "1.29", "1.29"),
        (("--set=model.dtype=bfloat16",), False, "1.29", "1.29"),
        (("--set=model.dtype=float32",), True, "2.58", "2.58"),
    ],
)
def test_a_plan_counts_weights_as_wide_as_the_machine_holds_them(
    steermoe: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    has_arithmetic: bool,
    weights: str,
    disk: str,
) -> None:
    monkeypatch.setattr("steermoe.devices.has_arithmetic", lambda *_: has_arithmetic)
    assert steermoe("plan", *options) == 0, steermoe.err
    assert re.search(rf"memory, weights\s+{re.escape(weights)} GiB", steermoe.out)
    assert re.search(rf"disk, model\s+{re.escape(disk)} GiB", steermoe.out)


def test_a_plan_fetches_no_weights_from_the_hub(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    arguments = ["--prompts", small_prompts, "--set", "collect.batch_size=8", "--model"]
    unknown = steermoe.refusal("plan", *arguments, "owner/other")
    assert "owner/other" in unknown and "its config.json is enough" in unknown
    model = tmp_path / "hub" / "models--owner--name"
    snapshot = model / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a" * 40)
    assert steermoe("plan", *arguments, "owner/name") == 0, steermoe.err
    assert "owner/name (MixtralForCausalLM)" in steermoe.out
    assert [path.name for path in snapshot.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--devices=4"], r"devices\s+1 process, the model over 4 devices"),
        (["--devices=4"], r"device, training\s+\S+ (GiB|0.01 GiB) on the fullest device"),
        (["--devices=4", "--processes=2"], r"devices\s+2 processes over 4 devices, ddp"),
        (["--device-memory=1"], r"device, replies\s.* of 1.00 GiB on the fullest device: fits"),
        (["--device-memory=.0001"], r"device, training\s.*: does not fit; lower train.batch_size"),
    ],
    ids=str,
)
def test_a_plan_says_what_fits_where(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    options: list[str],
    shown: str,
) -> None:
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    assert steermoe("plan", *arguments, *options) == 0, steermoe.err
    assert re.search(shown, steermoe.out), steermoe.out


def test_a_plan_knows_the_processes_of_torchrun(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    assert steermoe("plan", *arguments) == 0, steermoe.err
    assert "2 processes over 2 devices" in steermoe.out
    assert "--processes 2 cannot share --devices 3" in steermoe.refusal(
        "plan", *arguments, "--devices=3"
    )


def test_a_plan_for_vllm_counts_its_devices(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = arguments_of(checkpoint, tmp_path / "run", small_prompts)
    monkeypatch.setattr("steermoe.stages.opening.check_engine", lambda config: None, raising=False)
    vllm = ["--set", "collect.engine=vllm", "--set", "collect.engine_args.tensor_parallel_size=2"]
    assert steermoe("plan", *arguments, *vllm, "--device-memory=1") == 0, steermoe.err
    assert re.search(r"device, vllm\s.* on each of 2, and room for some", steermoe.out)
    assert steermoe("plan", *arguments, *vllm, "--device-memory=.00001") == 0, steermoe.err
    assert "does not fit in 0.9" in steermoe.out and "tensor_parallel_size to" in steermoe.out
