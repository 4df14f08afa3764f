"""Controls on a tiny run: trained alike, evaluated alike, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ready_run import changed_experts
from steermoe.analysis.matched_sets import MatchedSets
from steermoe.analysis.selection import activation_frequencies
from steermoe.errors import ConfigError
from steermoe.moe.delta import apply_delta, read_delta_header
from steermoe.pipeline import run_pipeline
from steermoe.stages.controls import check_controls, trained_controls
from steermoe.store.names import CONTROLS, RISK, replies_of
from steermoe.store.run import Run
from tiny import CommandLine, Listener, copy_of, finished_run, tiny_config

NAMES = ["control-lowest", "control-random-00", "control-random-01"]


@pytest.fixture(scope="module")
def controlled(
    checkpoint: Path, small_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Path, str]:
    """A run with two random controls and the lowest, what it said, and its base model."""
    folder = copy_of(
        finished_run(checkpoint, small_prompts), tmp_path_factory.mktemp("controls") / "run"
    )
    listener = Listener()
    config = tiny_config(checkpoint, folder, small_prompts, train={"controls": 2})
    run_pipeline(config, only="train", reporter=listener)
    run_pipeline(config, only="evaluate", reporter=listener)
    run = run_pipeline(config, only="report", reporter=listener)
    return run, checkpoint, listener.text


def test_controls_are_matched_sets_and_the_lowest(controlled: tuple[Run, Path, str]) -> None:
    run = controlled[0]
    assert trained_controls(run.directory) == NAMES
    risk = run.directory.read_table(RISK)
    selected = run.trained_experts
    draws = MatchedSets(activation_frequencies(risk), selected).draw(2, 0)
    for draw, name in zip(draws, NAMES[1:], strict=True):
        header = read_delta_header(run.directory.file(f"{CONTROLS}/{name}.safetensors"))
        assert header.experts == tuple(sorted(draw))
    lowest = read_delta_header(run.directory.file(f"{CONTROLS}/{NAMES[0]}.safetensors")).experts
    ordered = risk.sort_values(["risk_diff", "layer", "expert"])[["layer", "expert"]]
    expected = [tuple(row) for row in ordered.head(len(selected)).to_numpy().tolist()]
    assert set(lowest) == set(expected)


def test_a_control_changes_its_own_experts_and_nothing_else(
    controlled: tuple[Run, Path, str], tmp_path: Path
) -> None:
    run, base, _ = controlled
    for name in NAMES[:2]:
        delta = run.directory.file(f"{CONTROLS}/{name}.safetensors")
        made = apply_delta(base, delta, tmp_path / name)
        assert changed_experts(base, made) == set(read_delta_header(delta).experts)


def test_training_the_controls_leaves_the_hardened_model_as_it_was(
    controlled: tuple[Run, Path, str], finished: Path
) -> None:
    run, _, said = controlled
    own, before = run.directory.file("model"), finished / "model"
    for path in before.glob("*.safetensors"):
        assert (own / path.name).read_bytes() == path.read_bytes()
    assert "train: done already" in said
    leftovers = [p.name for p in run.directory.path.iterdir() if p.name.startswith(".control")]
    assert not leftovers and not run.directory.has("checkpoints-controls")


def test_controls_are_evaluated_alike(controlled: tuple[Run, Path, str]) -> None:
    run = controlled[0]
    hardened = run.directory.read_replies("hardened")
    for name in NAMES:
        replies = run.directory.read_replies(name)
        assert replies["prompt_id"].tolist() == hardened["prompt_id"].tolist()
        assert set(run.directory.read_verdicts(name, "keyword")) == set(hardened["prompt_id"])
        assert set(run.directory.read_scored(name)["quantity"]) == {"kl"}
    found = run.directory.read_controls()
    assert [one.variant for one in found.sets] == NAMES
    assert found.num_selected == len(run.trained_experts)
    rate = found.measures["refusal_rate"]
    own = run.evaluation["hardened"]["refusal_rate"]["value"]
    assert rate.selected == pytest.approx(own) and len(rate.random) == 2
    kl = found.measures["kl_per_token"]
    assert kl.selected == pytest.approx(run.evaluation["paired"]["kl_per_token"]["value"])
    assert kl.beyond_random.value == pytest.approx(kl.selected - sum(kl.random) / 2)


def test_page_and_terminal_ask_whether_the_selection_mattered(
    controlled: tuple[Run, Path, str], steermoe: CommandLine
) -> None:
    run = controlled[0]
    page = (run.directory.path / "report.html").read_text(encoding="utf-8")
    assert "Did the selection matter?" in page and "2 random sets" in page
    assert steermoe("show", "--run", run.directory.path) == 0
    assert "did the selection matter?" in steermoe.out


def test_an_interrupted_control_is_the_only_one_made_again(
    checkpoint: Path, small_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steermoe.stages import controls

    folder = copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run")
    config = tiny_config(checkpoint, folder, small_prompts, train={"controls": 2})
    made: list[str] = []
    save = controls._save

    def dying(run: Any, config: Any, loaded: Any, variant: str, experts: Any) -> None:
        if made:
            raise KeyboardInterrupt
        made.append(variant)
        save(run, config, loaded, variant, experts)

    monkeypatch.setattr(controls, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(config, only="train", reporter=Listener())
    again: list[str] = []

    def counting(run: Any, config: Any, loaded: Any, variant: str, experts: Any) -> None:
        again.append(variant)
        save(run, config, loaded, variant, experts)

    monkeypatch.setattr(controls, "_save", counting)
    run = run_pipeline(config, only="train", reporter=Listener())
    assert made == ["control-random-00"] and sorted(again) == [
        "control-lowest",
        "control-random-01",
    ]
    assert trained_controls(run.directory) == NAMES


def test_without_the_flag_there_are_no_controls(finished: Path) -> None:
    assert not (finished / CONTROLS).exists()
    assert not (finished / replies_of("control-lowest")).exists()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"parameters": "experts+routers"}, "only experts have random counterparts"),
        ({"mask_scope": "all", "mask": "batch"}, "batches have no selection"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    train: dict[str, Any], message: str, checkpoint: Path, small_prompts: Path, tmp_path: Path
) -> None:
    settings = {"controls": 1, **train}
    config = tiny_config(checkpoint, tmp_path, small_prompts, train=settings)
    with pytest.raises(ConfigError, match=message):
        check_controls(config)


def test_the_flag_is_the_setting(
    steermoe: CommandLine, monkeypatch: pytest.MonkeyPatch, finished: Path, tmp_path: Path
) -> None:
    from steermoe.cli import train

    asked: list[Any] = []
    monkeypatch.setattr(
        train, "run_step", lambda step, options, *_: asked.append(options.stored_config())
    )
    run = copy_of(finished, tmp_path / "run")
    assert steermoe("train", "--run", run, "--controls", "3") == 0
    assert asked[0].train.controls == 3
