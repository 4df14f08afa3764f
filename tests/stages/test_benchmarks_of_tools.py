"""Benchmarks of other tools as a step: stored with their samples, paired, read again where nothing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steermoe.config import Config
from steermoe.errors import ConfigError
from steermoe.harness.benchmarks import Benchmark
from steermoe.harness.figures import Figure
from steermoe.harness.processes import Target
from steermoe.pipeline import run_pipeline
from steermoe.stages import benchmarks as stage
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, BENCHMARKS, HARDENED, MODEL, benchmarks_of
from steermoe.store.run import load_run
from tiny import CommandLine, Listener, copy_of, finished_run, tiny_config

QUIZ = "lm_eval:quiz"
ANSWERS = {
    BASE: {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0, "f": None},
    HARDENED: {"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0, "e": 1.0, "f": 1.0},
}
"""Of each sample; five are scored on both sides, of which three are lost and one is won."""


class Tool:
    """A tool that answers at once, and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Target, Path]] = []
        self.checked: list[Target] = []
        self.fault = ""

    def named(self, name: str) -> Benchmark:
        return Benchmark(name, lambda target: "lm_eval 0.0", self.check, self.run)

    def check(self, target: Target) -> None:
        self.checked.append(target)
        if self.fault:
            raise ConfigError(self.fault)

    def run(self, target: Target, folder: Path) -> list[Figure]:
        if not folder.is_dir():
            self.asked.append((target, folder))
            folder.mkdir(parents=True)
        values = ANSWERS[HARDENED if Path(target.checkpoint).name == MODEL else BASE]
        scored = [value for value in values.values() if value is not None]
        mean = sum(scored) / len(scored)
        num_unscored = len(values) - len(scored)
        return [
            Figure("quiz", "acc", mean, 0.2, len(scored), num_unscored, values),
            Figure("quiz", "bleu", 20.0 + mean, 3.0, 6),
        ]

    def take(self) -> list[tuple[Target, Path]]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    made = Tool()
    monkeypatch.setattr(stage, "benchmark_named", made.named)
    return made


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, small_prompts: Path) -> RunDirectory:
    return RunDirectory(copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run"))


@pytest.fixture
def config(run: RunDirectory, checkpoint: Path, small_prompts: Path) -> Config:
    return tiny_config(checkpoint, run.path, small_prompts, evaluate={"benchmarks": [QUIZ]})


def test_both_models_are_run_and_the_changes_are_paired_by_their_samples(
    run: RunDirectory, config: Config, checkpoint: Path, tool: Tool
) -> None:
    found = run_pipeline(config, only="evaluate").evaluation["benchmarks"]["lm_eval:quiz"]
    (base, _), (hardened, folder) = tool.take()
    assert base.checkpoint == str(checkpoint) and Path(hardened.checkpoint) == run.file(MODEL)
    assert base.limit == config.evaluate.benchmark_limit
    assert folder.parent == run.file(f"{BENCHMARKS}/{HARDENED}")
    before, after, change = (found["acc"][side] for side in (BASE, HARDENED, "paired"))
    assert (before["value"], before["n"], before["num_unscored"]) == (0.8, 5, 1)
    assert (after["value"], after["n"]) == (0.5, 6)
    assert (before["stderr"], before["source"]) == (0.2, "lm_eval 0.0")
    assert change["value"] == pytest.approx(-0.4)
    assert (change["n"], change["only_before"], change["only_after"]) == (5, 3, 1)
    # Two-sided binomial: 2 (C(4,0) + C(4,1)) / 2^4 = 10 / 16.
    assert change["p_value"] == pytest.approx(0.625)
    assert found["bleu"]["paired"]["paired"] == 0
    rows = [row for row in run.read_measures() if row.set == "lm_eval:quiz"]
    assert len(rows) == 6 and {row.source for row in rows} == {"lm_eval 0.0"}


def test_the_embedded_model_is_checked_where_it_is_built(
    config: Config, checkpoint: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steermoe.loading.embedded_model_path", lambda **_: checkpoint)
    embedded = config.model.model_copy(update={"id": "smollm2-moe"})
    stage.check_benchmarks(config.model_copy(update={"model": embedded}))
    assert [target.checkpoint for target in tool.checked] == [str(checkpoint)]


def test_a_benchmark_that_has_run_is_read_and_one_more_runs_beside_it(
    run: RunDirectory, config: Config, checkpoint: Path, small_prompts: Path, tool: Tool
) -> None:
    run_pipeline(config, only="evaluate")
    assert len(tool.take()) == 2
    run_pipeline(config, only="evaluate")
    assert tool.take() == []
    more = tiny_config(
        checkpoint, run.path, small_prompts, evaluate={"benchmarks": [QUIZ, "inspect:other"]}
    )
    run_pipeline(more, only="evaluate")
    assert {folder.name.rpartition("-")[0] for _, folder in tool.take()} == {"inspect-other"}
    # Fewer samples are another figure; so is another system turn.
    fewer = tiny_config(
        checkpoint, run.path, small_prompts, evaluate={"benchmarks": [QUIZ], "benchmark_limit": 3}
    )
    run_pipeline(fewer, only="evaluate")
    assert [target.limit for target, _ in tool.take()] == [3, 3]


def test_another_hardened_model_runs_again_and_the_base_model_does_not(
    run: RunDirectory, config: Config, checkpoint: Path, small_prompts: Path, tool: Tool
) -> None:
    run_pipeline(config, only="evaluate")
    tool.take()
    values = config.model_dump(mode="json")
    values["train"]["epochs"] = 1
    trained = type(config).model_validate(values)
    run_pipeline(trained, only="train")
    run_pipeline(trained, only="evaluate")
    ((target, _),) = tool.take()
    assert Path(target.checkpoint).name == MODEL


def test_what_cannot_run_is_refused_before_anything_is_generated(
    run: RunDirectory, config: Config, tool: Tool
) -> None:
    tool.fault = "there is no task quiz"
    with pytest.raises(ConfigError, match="there is no task quiz"):
        run_pipeline(config, force=True)
    assert run.read_state().stages["collect"].status == "done"
    assert not run.has(benchmarks_of(BASE))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("helm:mmlu", "benchmark 'helm:mmlu' is not known: use lm_eval:TASKS"),
        ("builtin:skills", "benchmark 'builtin:skills' is not known"),
        ("lm_eval:a@nowhere", "nowhere is not a folder of tasks"),
    ],
)
def test_a_name_that_says_nothing_is_one_line_before_anything_is_generated(
    steermoe: CommandLine,
    checkpoint: Path,
    small_prompts: Path,
    tmp_path: Path,
    name: str,
    message: str,
) -> None:
    from tiny import arguments_of

    arguments = arguments_of(checkpoint, tmp_path / "new", small_prompts)
    said = steermoe.refusal("run", *arguments, "--set", f"evaluate.benchmarks=['{name}']")
    assert message in said
    assert not (tmp_path / "new").exists()


def test_what_was_not_asked_for_is_in_no_figure(
    run: RunDirectory, config: Config, checkpoint: Path, small_prompts: Path, tool: Tool
) -> None:
    run_pipeline(config, only="evaluate")
    plain = tiny_config(checkpoint, run.path, small_prompts)
    found = run_pipeline(plain, only="evaluate").evaluation
    assert not any(name.startswith("lm_eval") for name in found["benchmarks"])
    assert found[BASE]["capability"]["n"]


def test_settings_that_tools_do_not_know_are_said(run: RunDirectory, tool: Tool) -> None:
    config = load_run(run.path).config
    model = config.model.model_copy(update={"device_map": "auto"})
    evaluate = config.evaluate.model_copy(update={"benchmarks": (QUIZ,)})
    listener = Listener()
    stage.benchmarks_hardened(
        run, config.model_copy(update={"model": model, "evaluate": evaluate}), listener
    )
    assert "model.device_map are not known to other tools" in listener.text
    assert replace(tool.asked[0][0], checkpoint="").device == ""


def test_terminal_and_page_show_them_side_by_side(
    run: RunDirectory, config: Config, steermoe: CommandLine, tool: Tool
) -> None:
    run_pipeline(config, only="evaluate")
    run_pipeline(config, only="report")
    assert steermoe("show", "--run", run.path) == 0, steermoe.err
    line = next(line for line in steermoe.out.splitlines() if "lm_eval:quiz, acc" in line)
    assert "0.800" in line and "0.500" in line and "0.625" in line and "unscored" in steermoe.out
    page = run.file("report.html").read_text(encoding="utf-8")
    assert "lm_eval:quiz, acc" in page and "lm_eval 0.0" in page
