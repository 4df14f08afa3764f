"""Capability as a step: asked of both models, paired, resumed group by group, asked again only where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from steermoe.capability import asking
from steermoe.capability.items import BUILTIN_CAPABILITY, builtin_items, chosen_items
from steermoe.config import Config
from steermoe.engines.transformers import TransformersEngine
from steermoe.pipeline import run_pipeline
from steermoe.stages.evaluate import evaluate
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED, MODEL, SHARDS, capability_of
from steermoe.store.run import load_run
from tiny import Listener, copy_of, tiny_config

NUM_ITEMS = 14
"""Some of every category."""


@pytest.fixture(scope="module")
def finished(
    checkpoint: Path, small_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("capability") / "run"
    return run_pipeline(config_of(checkpoint, run, small_prompts), reporter=Listener()).path


def config_of(checkpoint: Path, run: Path, prompts: Path, **evaluate: Any) -> Config:
    return tiny_config(
        checkpoint, run, prompts, evaluate={"benchmark_limit": NUM_ITEMS, **evaluate}
    )


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> RunDirectory:
    return RunDirectory(copy_of(finished, tmp_path / "run"))


@pytest.mark.parametrize("variant", [BASE, HARDENED])
def test_each_model_is_asked_the_same_items_and_answers_as_it_would_by_itself(
    finished: Path, checkpoint: Path, variant: str
) -> None:
    path = checkpoint if variant == BASE else finished / MODEL
    engine = TransformersEngine(
        AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    )
    items = chosen_items(builtin_items(), NUM_ITEMS)
    by_itself = asking.measure_capability(
        engine, engine.tokenizer, items, group_size=1, answer_of=lambda output: output.answer
    )
    stored = pd.read_parquet(finished / capability_of(variant))
    assert len(stored) == NUM_ITEMS
    assert list(stored["item_id"]) == [item.item_id for item in items]
    assert list(stored["correct"]) == list(by_itself["correct"])
    assert list(stored["given"]) == list(by_itself["given"])


def test_the_figures_are_shares_of_the_items_and_their_change_is_paired(run: RunDirectory) -> None:
    # Five items lost and one won of fourteen; the random model's own answers say little.
    tables = {v: pd.read_parquet(run.file(capability_of(v))) for v in (BASE, HARDENED)}
    tables[BASE]["correct"] = [True] * 8 + [False] * 6
    tables[HARDENED]["correct"] = [True] * 3 + [False] * 10 + [True]
    for variant, table in tables.items():
        table.to_parquet(run.file(capability_of(variant)))
    evaluate(run, load_run(run.path).config, Listener())
    found = run.read_evaluation()
    before, after, change = (found[side]["capability"] for side in (BASE, HARDENED, "paired"))
    assert (before["value"], before["n"], before["num_unscored"]) == (8 / 14, 14, 0)
    assert (after["value"], change["value"]) == (4 / 14, pytest.approx(-4 / 14))
    assert (change["only_before"], change["only_after"]) == (5, 1)
    assert change["p_value"] == pytest.approx(binomtest(5, 6).pvalue)
    assert before["ci_low"] < 8 / 14 < before["ci_high"]
    sets = {row.set for row in run.read_measures() if row.measure == "capability"}
    categories = {item.category for item in chosen_items(builtin_items(), NUM_ITEMS)}
    assert sets == {BUILTIN_CAPABILITY} | {f"{BUILTIN_CAPABILITY}/{name}" for name in categories}


def test_an_interrupted_measurement_goes_on_with_the_next_group(
    run: RunDirectory, checkpoint: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pd.read_parquet(run.file(capability_of(HARDENED)))
    run.remove(capability_of(HARDENED))
    asked: list[list[str]] = []
    ask_group = asking.ask_group

    def dies_later(engine: Any, tokenizer: Any, group: Any, *others: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append([item.item_id for item in group])
        return ask_group(engine, tokenizer, group, *others)

    config = config_of(checkpoint, run.path, small_prompts)
    with monkeypatch.context() as patch:
        patch.setattr(asking, "ask_group", dies_later)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(config, only="evaluate")
    first = [item for group in asked for item in group]

    def count(engine: Any, tokenizer: Any, group: Any, *others: Any) -> Any:
        asked.append([item.item_id for item in group])
        return ask_group(engine, tokenizer, group, *others)

    asked.clear()
    monkeypatch.setattr(asking, "ask_group", count)
    run_pipeline(config, only="evaluate")
    again = [item for group in asked for item in group]
    assert first and again and not set(first) & set(again)
    assert set(first) | set(again) == set(whole["item_id"])
    pd.testing.assert_frame_equal(pd.read_parquet(run.file(capability_of(HARDENED))), whole)
    assert not run.has(SHARDS)


def test_what_is_not_asked_for_is_neither_asked_nor_told(
    run: RunDirectory, checkpoint: Path, small_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(asking, "ask_group", never)
    config = config_of(checkpoint, run.path, small_prompts, benchmarks=[])
    found = run_pipeline(config, only="evaluate").evaluation
    assert "capability" not in found[BASE] and "capability" not in found["paired"]
    # The answers stay for who asks for them again, and are not asked twice.
    config = config_of(checkpoint, run.path, small_prompts)
    assert run_pipeline(config, only="evaluate").evaluation[BASE]["capability"]["n"] == NUM_ITEMS
