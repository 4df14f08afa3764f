"""Runs of the layout before this one: everything dear is kept, and nothing dear is done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steermoe.pipeline import run_pipeline
from steermoe.store.directory import RunDirectory
from steermoe.store.names import EVALUATION, HARDENED_RESPONSES, MEASURES, RUN_JSON, VERDICTS
from steermoe.store.run import load_run
from tiny import Listener, copy_of, files_of, tiny_config


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    """A finished run, with its files as the layout before this one had them."""
    run = copy_of(finished, tmp_path / "run")
    directory = RunDirectory(run)
    for variant, name in (("base", "responses.parquet"), ("hardened", HARDENED_RESPONSES)):
        directory.read_judged(variant, "keyword").to_parquet(run / name)
    lines = [json.loads(line) for line in (run / "prompts.jsonl").read_text().splitlines()]
    for line in lines:
        del line["rendered"]
    (run / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = json.loads((run / RUN_JSON).read_text())
    config = state["config"]
    config["collect"]["judge"] = config.pop("judge")["main"]
    arguments = config["train"].pop("arguments")
    arguments["lr_scheduler"] = "linear"
    config["train"] |= {"adam_epsilon": 1e-8, "weight_decay": 0.0, **arguments}
    stages: dict[str, Any] = {
        name: {
            "status": "done",
            "fingerprint": "0123456789abcdef",
            "seconds": 1.5,
            "peak_memory_bytes": 10,
            "files": {},
            "figures": state["stages"][name]["figures"],
        }
        for name in ("collect", "identify", "train", "evaluate", "report")
    }
    (run / RUN_JSON).write_text(
        json.dumps(
            {
                "schema_version": 1,
                "config": config,
                "seed": 0,
                "packages": state["packages"],
                "model": {k: state["model"][k] for k in ("id", "revision", "hash")},
                "stages": stages,
            }
        )
    )
    for name in (VERDICTS, MEASURES, "replies/hardened.parquet", "scored/hardened.parquet"):
        (run / name).unlink()
    return run


def test_opening_it_moves_it_up_and_loses_nothing(finished: Path, old: Path) -> None:
    before, now = load_run(finished), load_run(old)
    pd.testing.assert_frame_equal(now.responses, before.responses)
    # Of the hardened model's tokens only the text was kept.
    replies = before.replies("hardened").drop(columns="generated_token_ids")
    pd.testing.assert_frame_equal(now.replies("hardened"), replies)
    assert now.prompts == before.prompts
    assert now.evaluation == before.evaluation
    assert now.trained_experts == before.trained_experts
    assert now.config.judge.main == "keyword"
    assert not (old / HARDENED_RESPONSES).exists()
    assert json.loads((old / RUN_JSON).read_text())["schema_version"] == 2


def test_it_goes_on_without_collecting_or_training_again(
    old: Path, checkpoint: Path, small_prompts: Path, finished: Path
) -> None:
    dear = ("model/model.safetensors", "tokens.parquet", "routing.safetensors")
    before = {name: (old / name).stat().st_mtime_ns for name in dear}
    listener = Listener()
    run_pipeline(tiny_config(checkpoint, old, small_prompts), reporter=listener)
    for name in ("collect", "judge", "identify", "train"):
        assert f"{name}: done already" in listener.text
    assert {name: (old / name).stat().st_mtime_ns for name in dear} == before
    # What is made anew says the same.
    assert (old / EVALUATION).read_bytes() == (finished / EVALUATION).read_bytes()
    assert files_of(old) == files_of(finished)


def test_one_that_dies_while_it_is_moved_is_moved_again(
    old: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "write_state", lambda self, state: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load_run(old)
    pd.testing.assert_frame_equal(load_run(old).responses, load_run(finished).responses)
    assert load_run(old).replies("hardened")["verdict"].notna().all()


def test_a_damaged_one_is_refused_in_one_line(old: Path) -> None:
    from steermoe.errors import RunDirectoryError

    (old / "responses.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunDirectoryError, match=r"responses\.parquet is damaged") as caught:
        load_run(old)
    assert "\n" not in str(caught.value)
