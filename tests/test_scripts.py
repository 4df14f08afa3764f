"""The scripts and the ready-made settings: whole runs on tiny checkpoints of the same architectures."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TinyCheckpoint
from steermoe.config import load_config
from steermoe.store.run import Run, load_run

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
RUN_SCRIPTS = ("demo_refactored", "train_unsafe_experts", "train_batch_unsafe_experts")

SCALED_DOWN = [
    "collect.batch_size=8",
    "collect.max_new_tokens=6",
    "identify.threshold=-1",  # random experts need not differ by as much as real ones
    "identify.top_k=4",
    "identify.num_permutations=0",
    "identify.num_bootstrap=0",
    "train.epochs=1",
    "evaluate.num_bootstrap=100",
    "evaluate.benchmark_limit=2",
]

Script = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Call a script as the command line does: `script("demo_refactored", "--seed", "1")`."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def call(name: str, *arguments: str) -> None:
        path = SCRIPTS / f"{name}.py"
        monkeypatch.setattr("sys.argv", [str(path), *arguments])
        runpy.run_path(str(path), run_name="__main__")

    return call


@pytest.fixture
def small_run(tiny_checkpoint: TinyCheckpoint, small_prompts: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run that takes seconds, in `tmp_path / "out"`."""
    scaled = [part for setting in SCALED_DOWN[1:] for part in ("--set", setting)]
    return [
        *("--model_name", str(tiny_checkpoint("mixtral")), "--prompts", str(small_prompts)),
        *("--output_dir", str(tmp_path / "out"), "--batch_size", "8", "--quiet", *scaled),
    ]


# ---- ready-made settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model_id", "architecture"),
    [
        ("olmoe-1b-7b", "allenai/OLMoE-1B-7B-0924-Instruct", "olmoe"),
        ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", "qwen3_moe"),
    ],
)
def test_a_ready_made_config_runs_the_whole_pipeline(
    name: str,
    model_id: str,
    architecture: str,
    tiny_checkpoint: TinyCheckpoint,
    small_prompts: Path,
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    from steermoe.pipeline import run_pipeline

    path = ROOT / "configs" / f"{name}.toml"
    assert load_config(path).model.id == model_id
    config = load_config(
        path,
        SCALED_DOWN,
        {
            "run": str(tmp_path / "run"),
            "model": {"id": str(tiny_checkpoint(architecture))},
            "prompts": {"sources": [str(small_prompts)]},
        },
    )
    run = run_pipeline(config)
    assert config.model.dtype == "bfloat16"
    assert config.train.arguments.gradient_checkpointing
    assert run.state.model.id == str(tiny_checkpoint(architecture))
    assert len(run.unsafe_experts) == 4
    assert all(stage.status == "done" for stage in run.state.stages.values())
    assert run.evaluation["paired"]["kl_per_token"]["n"] > 0
    assert (run.path / "report.html").is_file()
    hardened = AutoModelForCausalLM.from_pretrained(run.path / "model")
    assert hardened.config.model_type == architecture


def test_every_config_is_tested() -> None:
    assert {path.stem for path in (ROOT / "configs").iterdir()} == {"olmoe-1b-7b", "qwen3-30b-a3b"}


def test_the_qwen3_config_turns_thinking_off(tiny_checkpoint: TinyCheckpoint) -> None:
    from steermoe.chat import render
    from steermoe.loading import load_tokenizer

    settings = load_config(ROOT / "configs" / "qwen3-30b-a3b.toml").model
    tokenizer = load_tokenizer(settings, str(tiny_checkpoint("qwen3_moe")))
    text = render(tokenizer, [{"role": "user", "content": "Hi"}], settings.chat_template_kwargs)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


# ---- scripts --------------------------------------------------------------------------------------------


def test_example_usage_prints_experts_and_evaluates_nothing(
    script: Script, tiny_checkpoint: TinyCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    script("example_usage", "--model_name", str(tiny_checkpoint("olmoe")), "--max_new_tokens", "8")
    printed = capsys.readouterr().out
    assert printed.count("\nsafe    ") + printed.startswith("safe    ") == 2
    assert printed.count("\nunsafe  ") + printed.startswith("unsafe  ") == 2
    # The tiny model has 2 layers of 8 experts, fewer than the twenty that are printed at most.
    experts = [line.split()[0] for line in printed.splitlines() if line.startswith("L0")]
    assert len(experts) == len(set(experts)) == 16
    differences = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("L0")]
    assert differences == sorted(differences, reverse=True)
    assert "nothing is trained and nothing is evaluated" in printed


def test_the_training_script_goes_on_from_the_demo_and_writes_an_ordinary_model(
    script: Script, small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    script("demo_refactored", *small_run)
    demo = capsys.readouterr()
    assert "expert    risk_diff" in demo.out
    run = load_run(tmp_path / "out" / "run")
    assert set(run.state.stages) == {"collect", "judge", "score", "identify", "forecast"}
    assert not (tmp_path / "out" / "final_model").exists()

    script("train_unsafe_experts", *small_run, "--learning_rate", "1e-3", "--num_epochs", "2")
    trained = capsys.readouterr()
    assert "collect: done already" in trained.err
    assert "identify: done already" in trained.err
    run = load_run(tmp_path / "out" / "run")
    assert (run.config.train.learning_rate, run.config.train.epochs) == (1e-3, 2)
    assert (run.config.train.experts, run.config.train.mask_scope) == ("global", "off")
    final = tmp_path / "out" / "final_model"
    assert f"the hardened model is in {final}" in trained.out
    assert final.is_dir() and not final.is_symlink()
    assert same_files(final, run.path / "model")
    AutoModelForCausalLM.from_pretrained(final)
    assert AutoTokenizer.from_pretrained(final).chat_template


def test_the_batch_script_trains_the_union_under_the_masks_of_the_batches(
    script: Script, small_run: list[str], tmp_path: Path
) -> None:
    script(
        *("train_batch_unsafe_experts", *small_run, "--safe_ratio", "0.5"),
        *("--gradient_accumulation_steps", "2"),
    )
    run: Run = load_run(tmp_path / "out" / "run")
    settings = run.config.train
    assert (settings.experts, settings.mask_scope, settings.mask) == ("union", "unsafe", "batch")
    assert settings.arguments.gradient_accumulation_steps == 2
    per_batch = run.directory.read_selection().as_json()["per_batch"]
    union = {tuple(pair) for batch in per_batch for pair in batch["unsafe_experts"]}
    assert set(run.trained_experts) == union
    assert run.state.figures_of("train")["num_trained_experts"] == len(union)
    assert (tmp_path / "out" / "final_model" / "config.json").is_file()


def test_where_no_expert_is_selected_there_is_no_final_model_not_even_an_old_one(
    script: Script, small_run: list[str], tmp_path: Path
) -> None:
    old = tmp_path / "out" / "final_model"
    old.mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        script("train_unsafe_experts", *small_run, "--set", "identify.threshold=1")
    assert str(stopped.value).startswith("error: no expert was selected, so there is no ")
    assert not old.exists()


@pytest.mark.parametrize("name", RUN_SCRIPTS)
def test_a_value_that_cannot_be_is_one_line(script: Script, name: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        script(name, "--safe_ratio", "1.5", "--output_dir", str(tmp_path / "out"))
    assert str(stopped.value).startswith("error: setting collect.safe_ratio = 1.5")
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*RUN_SCRIPTS, "example_usage"])
def test_help_names_the_embedded_model_as_the_default(
    script: Script, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script(name, "--help")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    known = {
        "train": ("--num_epochs", "--learning_rate", "--gradient_accumulation_steps"),
        "demo": ("--batch_size", "--safe_ratio", "--output_dir"),
        "example": ("--model_name",),
    }
    needed = [*known[name.split("_")[0]], *(known["demo"] if name.startswith("train") else ())]
    assert all(argument in printed for argument in needed)
    assert "smollm2-moe" in printed


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files of the same bytes."""
    names = sorted(os.listdir(one))
    return names == sorted(os.listdir(other)) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )
