"""A whole run on tokenizers that cannot pad: whatever pads a batch asks for a token that the model has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import TinyCheckpoint, byte_tokenizer
from steermoe.pipeline import run_pipeline
from steermoe.store.names import SCORES
from tiny import Listener, tiny_config


def pad_beyond_the_embedding(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})


def neither_pad_nor_end(tokenizer: Any) -> None:
    tokenizer.eos_token = tokenizer.pad_token = None


@pytest.mark.parametrize("change", [pad_beyond_the_embedding, neither_pad_nor_end])
def test_every_step_and_every_pass_for_scores_pads(
    change: Callable[[Any], None],
    tiny_checkpoint: TinyCheckpoint,
    small_prompts: Path,
    tmp_path: Path,
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint("mixtral"), tmp_path / "model"))
    tokenizer = byte_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(model)
    passes = ["taylor", "selectivity", "selective_gain", "projection"]
    settings = {"scores": passes, "score_prompts": 4, "num_subsamples": 2}
    config = tiny_config(model, tmp_path / "run", small_prompts, identify=settings)
    run = run_pipeline(config, reporter=Listener())
    assert {*passes} <= {*run.directory.read_table(SCORES)["score"]}
    assert run.evaluation["hardened"]["refusal_rate"]["n"] == 4
