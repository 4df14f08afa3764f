"""Whole runs on a tiny checkpoint: what they leave, and what is done again of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import TinyCheckpoint
from steermoe.config import validate
from steermoe.errors import TrainingError
from steermoe.pipeline import run_pipeline
from steermoe.store.names import HARDENED, RUN_JSON, SHARDS, replies_of
from steermoe.store.run import load_run
from tiny import (
    Listener,
    contents,
    copy_of,
    files_of,
    finished_run,
    tiny_config,
    write_prompts,
)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def test_a_whole_run_leaves_every_file_of_the_specification(finished: Path) -> None:
    expected = {
        "run.json",
        "prompts.jsonl",
        "responses.parquet",
        "routing.safetensors",
        "risk_diff_per_batch.parquet",
        "risk_diff.parquet",
        "scores.parquet",
        "score_sums/gradient.safetensors",
        "unsafe_experts.json",
        "forecast.json",
        "sft_dataset.jsonl",
        "verdicts.parquet",
        "replies/hardened.parquet",
        "measures.parquet",
        "evaluation.json",
        "report.html",
        "model/README.md",
        "model/config.json",
        "model/model.safetensors",
    }
    found = files_of(finished)
    assert expected <= found
    assert not [name for name in found if "partial" in name or name.endswith((".pkl", ".pt"))]
    assert not (finished / SHARDS).exists() and not (finished / "checkpoints").exists()


def test_run_json_lets_someone_else_repeat_the_run(finished: Path, checkpoint: Path) -> None:
    run = json.loads((finished / RUN_JSON).read_text("utf-8"))
    assert run["schema_version"] == 2 and run["seed"] == 0
    assert validate(run["config"]).model.id == str(checkpoint)
    assert run["model"]["id"] == str(checkpoint) and len(run["model"]["hash"]) == 64
    for name in ("python", "steermoe", "torch", "transformers"):
        assert run["packages"][name]
    for stage in run["stages"].values():
        assert stage["status"] == "done"
        assert stage["seconds"] >= 0 and stage["peak_memory_bytes"] > 10_000_000


def test_the_same_seed_gives_the_same_bytes_and_another_another_run(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    again = tmp_path / "a run with spaces \u00fc"
    run_pipeline(tiny_config(checkpoint, again, small_prompts))
    first, second = contents(finished), contents(again)
    assert first.keys() == second.keys() and len(first) >= 12
    assert [name for name in first if first[name] != second[name]] == []
    other = tmp_path / "other"
    run_pipeline(tiny_config(checkpoint, other, small_prompts, seed=1))
    third = contents(other)
    assert third["risk_diff.parquet"] != first["risk_diff.parquet"]


def test_a_finished_run_is_left_as_it_is(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    before = {name: (run / name).stat().st_mtime_ns for name in files_of(run) - {RUN_JSON}}
    run_pipeline(tiny_config(checkpoint, run, small_prompts))
    assert before == {name: (run / name).stat().st_mtime_ns for name in files_of(run) - {RUN_JSON}}


def test_a_warm_up_that_training_refuses_leaves_a_finished_run_as_it_was(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    # Once for the path of the copy in run.json.
    run_pipeline(tiny_config(checkpoint, run, small_prompts))
    before = contents_of(run)
    other = {"arguments": {"warmup_steps": 100}, "learning_rate": 1e-3}
    for only in ("train", None):
        with pytest.raises(TrainingError, match="warm-up of 100 steps"):
            run_pipeline(tiny_config(checkpoint, run, small_prompts, train=other), only=only)
        assert contents_of(run) == before


def test_changed_training_keeps_the_replies_and_changes_the_model(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    run_pipeline(tiny_config(checkpoint, run, small_prompts, train={"epochs": 1}))
    before, after = contents(finished), contents(run)
    changed = {name for name in before if before[name] != after[name]}
    assert "model/model.safetensors" in changed and "evaluation.json" in changed
    assert changed <= {
        "model/model.safetensors",
        "model/README.md",
        "replies/hardened.parquet",
        "scored/hardened.parquet",
        "capability/hardened.parquet",
        "verdicts.parquet",
        "measures.parquet",
        "evaluation.json",
    }


def test_nothing_selected_trains_nothing_and_the_run_ends_well(
    finished: Path, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    from steermoe.cli.display import summary
    from steermoe.reporter import plain_stdout

    run = copy_of(finished, tmp_path / "run")
    listener = Listener()
    state = run_pipeline(
        tiny_config(checkpoint, run, small_prompts, identify={"threshold": 1.0}),
        reporter=listener,
    )
    assert "no expert was selected" in listener.text
    assert f"{state.risk_diff.iloc[0]['Layer_Expert']}" in listener.text
    assert "nothing is trained" in listener.text and "nothing to evaluate" in listener.text
    assert state.unsafe_experts == []
    left = files_of(run)
    assert not [name for name in left if name.startswith("model/")]
    assert not left & {"evaluation.json", replies_of(HARDENED), "sft_dataset.jsonl"}
    assert "report.html" in left
    with plain_stdout().capture() as captured:
        plain_stdout().print(summary(state))
    assert captured.get() == ""


def test_prompts_without_held_out_goals_evaluate_nothing_and_say_so(
    checkpoint: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{x} {i}", "label": x} for i in range(2) for x in ("safe", "unsafe")]
    rows.append({"prompt": "benign", "label": "benign"})
    for row in rows:
        row["split"] = "train"
    prompts = write_prompts(tmp_path / "four.csv", rows)
    listener = Listener()
    run = run_pipeline(
        tiny_config(checkpoint, tmp_path / "run", prompts, collect={"batch_size": 4}),
        reporter=listener,
    )
    assert "no test prompts, so nothing is evaluated" in listener.text
    assert not run.directory.file("evaluation.json").exists()
    assert run.directory.file("report.html").exists()


@pytest.mark.parametrize("architecture", ["olmoe", "qwen3_moe"])
def test_other_architectures_run_through(
    tiny_checkpoint: TinyCheckpoint, small_prompts: Path, architecture: str
) -> None:
    run = load_run(finished_run(tiny_checkpoint(architecture), small_prompts))
    metric = run.evaluation["hardened"]["refusal_rate"]
    assert metric["n"] + metric["num_unscored"] == 4
    assert len(run.unsafe_experts) == 4
