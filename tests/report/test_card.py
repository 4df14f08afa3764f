"""The figures in the model card: of both models, written anew, and no reason to do anything else again."""

from __future__ import annotations

from pathlib import Path

import pytest

from steermoe.measures import BY_NAME
from steermoe.pipeline import run_pipeline
from steermoe.report.card import BEGIN, END, write_card_figures
from steermoe.report.numbers import percent
from steermoe.store.directory import RunDirectory
from steermoe.store.names import EVALUATION, MODEL_CARD, REPORT
from tiny import Listener, copy_of, finished_run, tiny_config


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, small_prompts: Path) -> RunDirectory:
    return RunDirectory(copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run"))


def test_the_card_has_every_measure_of_both_models(run: RunDirectory) -> None:
    card = run.file(MODEL_CARD).read_text(encoding="utf-8")
    evaluation = run.read_evaluation()
    before, after = (evaluation[side]["refusal_rate"] for side in ("base", "hardened"))
    (line,) = [x for x in card.splitlines() if x.startswith(f"| {BY_NAME['refusal_rate'].title} ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1].startswith(percent(before["value"]))
    assert cells[2].startswith(percent(after["value"]))
    assert BY_NAME["capability"].title in card and "capability/facts" in card
    assert card.startswith("---\nbase_model:")


def test_figures_are_written_anew_and_what_a_user_adds_stays(run: RunDirectory) -> None:
    path = run.file(MODEL_CARD)
    path.write_text(path.read_text("utf-8") + "\nUse it with care.\n", "utf-8")
    write_card_figures(run, 0.9)
    once = path.read_text("utf-8")
    write_card_figures(run, 0.9)
    assert path.read_text("utf-8") == once
    assert once.count(BEGIN) == once.count(END) == once.count("Use it with care.") == 1
    assert "with 90% intervals" in once and "with 95% intervals" not in once
    run.remove(EVALUATION)
    write_card_figures(run, 0.9)
    without = path.read_text("utf-8")
    assert BEGIN not in without and "Use it with care." in without


def test_a_card_with_other_figures_is_the_same_model(
    run: RunDirectory, checkpoint: Path, small_prompts: Path
) -> None:
    config = tiny_config(checkpoint, run.path, small_prompts, evaluate={"confidence": 0.9})
    run_pipeline(config)
    listener = Listener()
    run_pipeline(config, verify=True, reporter=listener)
    assert all("done already" in line for line in listener.said), listener.text
    # The page that is made again reads the model's folder, and finds it whole.
    run.remove(REPORT)
    run_pipeline(config, only="report")
    run_pipeline(config, only="evaluate", force=True)
