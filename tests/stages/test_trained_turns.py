"""The turns of a run that are trained: after the prompts that were replied to, and shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from conftest import TinyCheckpoint, byte_tokenizer
from ready_run import Ready, ready_run
from steermoe.stages.collect import collect
from steermoe.stages.judge import judge_base
from steermoe.stages.training_rows import training_rows
from steermoe.store.directory import RunDirectory
from tiny import Listener, tiny_config


@pytest.fixture
def ready(tmp_path: Path, tiny_checkpoint: TinyCheckpoint, small_prompts: Path) -> Ready:
    return ready_run(tiny_checkpoint("mixtral"), small_prompts, tmp_path / "run")


def test_a_trained_turn_is_shown_as_it_is_trained(ready: Ready) -> None:
    ready.train(epochs=0.3)
    (shown,) = [line for line in ready.listener.said if line.startswith("one trained turn: ")]
    after, turn = shown.removeprefix("one trained turn: after ").split(" comes ")
    assert after.startswith("'...") and after.endswith("<|im_start|>assistant\\n'")
    assert len(after) < 80
    assert turn == "'No.<|im_end|>'"


def test_a_refusal_is_trained_after_the_text_that_was_replied_to(
    tiny_checkpoint: TinyCheckpoint, small_prompts: Path, tmp_path: Path
) -> None:
    """The template writes the time, to the microsecond: rendered again, it would be another prompt."""
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("mixtral"), checkpoint)
    template = checkpoint / "chat_template.jinja"
    clock = "<|im_start|>system\n{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}<|im_end|>\n"
    template.write_text(clock + template.read_text("utf-8"), "utf-8")
    config = tiny_config(checkpoint, tmp_path / "run", small_prompts)
    run = RunDirectory(config.run_dir)
    run.create()
    collect(run, config, Listener())
    judge_base(run, config, Listener())
    rows, _, _ = training_rows(run, config, AutoTokenizer.from_pretrained(checkpoint))
    fed = {row["prompt_id"]: output.prompt_token_ids for row, output in run.iter_outputs()}
    assert len(set(fed.values())) == len(fed)
    assert {row.objective for row in rows} == {"refusal", "retention"}
    for row in rows:
        assert row.prompt_token_ids == fed[row.prompt_id] and row.is_own_turn
    refusals = [row for row in rows if row.objective == "refusal"]
    assert {row.completion_token_ids for row in refusals} == {ids_of("No.<|im_end|>")}


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(byte_tokenizer()(text)["input_ids"])
