"""What is read of logs that lm-eval 0.4.13 and Inspect 0.3.285 wrote for tiny random models; `logs/README.md`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from steermoe.errors import RunDirectoryError
from steermoe.harness.figures import Figure, change_rows
from steermoe.harness.inspect_runs import read_inspect
from steermoe.harness.lm_eval_runs import read_lm_eval

LOGS = Path(__file__).parent / "logs"


def by_name(figures: list[Figure]) -> dict[tuple[str, str], Figure]:
    named = {(figure.task, figure.metric): figure for figure in figures}
    assert len(named) == len(figures)
    return named


# ---- lm-eval ------------------------------------------------------------------------------------------


def test_lm_eval_figures_are_those_it_printed() -> None:
    found = by_name(read_lm_eval(LOGS / "lm_eval_base"))
    assert set(found) == {
        ("steermoe_benign", "over_refusal_rate"),
        ("steermoe_benign", "unscored_rate"),
        ("steermoe_look_alike", "over_refusal_rate_look_alike"),
        ("steermoe_look_alike", "unscored_rate"),
        ("quiz", "acc"),
        ("quiz", "acc_norm"),
        ("words", "exact_match,first-letter"),
    }
    acc_norm = found["quiz", "acc_norm"]
    assert acc_norm.value == pytest.approx(5 / 6)
    assert acc_norm.stderr == pytest.approx(0.16666667)
    assert (acc_norm.n, acc_norm.num_unscored) == (6, 0)
    assert sorted(acc_norm.scored.values()) == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_lm_eval_samples_of_two_models_are_paired_by_their_documents() -> None:
    base, changed = (read_lm_eval(LOGS / f"lm_eval_{name}") for name in ("base", "changed"))
    rows = {
        (row.set, row.measure): row.metric
        for row in change_rows("changed", changed, "base", base, "lm_eval", num_bootstrap=100)
    }
    # From 5 right of 6 to 3: two are lost, none is won, as the sample files show.
    change = rows["quiz", "acc_norm"]
    assert change.value == pytest.approx(-1 / 3)
    assert change.n == 6
    lost, won = change.more["only_before"], change.more["only_after"]
    assert lost is not None and won is not None and lost - won == 2
    assert all(metric.more["paired"] == 1 for metric in rows.values())


def edited(folder: Path, tmp_path: Path, pattern: str, edit: Any) -> Path:
    """A copy of recorded logs, one of whose JSON files was changed."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (path,) = copy.rglob(pattern)
    found = json.loads(path.read_text(encoding="utf-8"))
    edit(found)
    path.write_text(json.dumps(found), encoding="utf-8")
    return copy


def test_a_metric_that_is_no_mean_of_its_samples_is_not_paired(tmp_path: Path) -> None:
    def edit(found: dict[str, Any]) -> None:
        found["results"]["quiz"]["acc,none"] = 0.9
        found["results"]["quiz"]["acc_stderr,none"] = "N/A"

    copy = edited(LOGS / "lm_eval_base", tmp_path, "results_*.json", edit)
    figure = by_name(read_lm_eval(copy))["quiz", "acc"]
    assert (figure.value, figure.stderr, figure.n, dict(figure.values)) == (0.9, None, 6, {})


def test_samples_that_could_not_be_scored_are_counted(tmp_path: Path) -> None:
    copy = edited(
        LOGS / "lm_eval_base",
        tmp_path,
        "results_*.json",
        lambda found: found["results"]["quiz"].update({"acc,none": 0.6}),
    )
    (path,) = copy.rglob("samples_quiz_*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, value in zip(rows, (1.0, 1.0, 1.0, 0.0, 0.0, float("nan")), strict=True):
        row["acc"] = value
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    figure = by_name(read_lm_eval(copy))["quiz", "acc"]
    assert (figure.n, figure.num_unscored, figure.value) == (5, 1, 0.6)


def test_a_group_counts_the_samples_of_its_tasks(tmp_path: Path) -> None:
    copy = edited(
        LOGS / "lm_eval_base",
        tmp_path,
        "results_*.json",
        lambda found: found["results"]["steermoe"].update({"acc,none": 0.25}),
    )
    figure = by_name(read_lm_eval(copy))["steermoe", "acc"]
    assert (figure.value, figure.n) == (0.25, 12)


def test_the_newest_results_are_read(tmp_path: Path) -> None:
    copy = edited(LOGS / "lm_eval_base", tmp_path, "results_*.json", lambda found: None)
    (path,) = copy.rglob("results_*.json")
    newer = json.loads(path.read_text(encoding="utf-8"))
    newer["results"] = {"later": {"name": "later", "acc,none": 1.0}}
    newer["n-samples"] = {"later": {"original": 9, "effective": 3}}
    path.with_name("results_2027-01-01T00-00-00.json").write_text(json.dumps(newer), "utf-8")
    assert read_lm_eval(copy) == [Figure("later", "acc", 1.0, None, 3)]


# ---- Inspect ------------------------------------------------------------------------------------------


def test_inspect_figures_are_those_it_printed() -> None:
    (figure,) = read_inspect(LOGS / "inspect_letters_base")
    assert (figure.task, figure.metric, figure.n) == ("letters", "accuracy", 6)
    assert figure.value == pytest.approx(4 / 6)
    assert figure.stderr == pytest.approx(0.21081851)
    assert sorted(figure.scored.values()) == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_inspect_samples_of_two_models_are_paired_by_their_ids() -> None:
    base, changed = (read_inspect(LOGS / f"inspect_letters_{n}") for n in ("base", "changed"))
    (row,) = change_rows("changed", changed, "base", base, "inspect", num_bootstrap=100)
    assert row.metric.value == pytest.approx(2 / 6)
    assert (row.metric.more["only_before"], row.metric.more["only_after"]) == (0, 2)
    assert row.metric.more["p_value"] == pytest.approx(0.5)


def test_of_several_epochs_a_sample_counts_once_with_their_mean() -> None:
    (figure,) = read_inspect(LOGS / "inspect_twice_base")
    assert (figure.metric, figure.n, len(figure.values)) == ("accuracy", 6, 6)
    assert figure.value == pytest.approx(4 / 6)
    assert sum(figure.scored.values()) == 4.0


def test_unscored_samples_and_complements_are_read_from_an_inspect_log(tmp_path: Path) -> None:
    def edit(log: dict[str, Any]) -> None:
        (score,) = log["results"]["scores"]
        (reduction,) = log["reductions"]
        for sample, value in zip(reduction["samples"], (1, 1, 1, 0, 0, float("nan")), strict=True):
            sample["value"] = value
        score.update({"scored_samples": 5, "unscored_samples": 1})
        score["metrics"] = {
            "refusal_rate": {"name": "refusal_rate", "value": 0.6},
            "attack_success_rate": {"name": "attack_success_rate", "value": 0.4},
            "of_its_own": {"name": "of_its_own", "value": 7.0},
            "stderr": {"name": "stderr", "value": 0.2},
        }

    copy = edited(LOGS / "inspect_letters_base", tmp_path, "*.json", edit)
    found = {figure.metric: figure for figure in read_inspect(copy)}
    assert set(found) == {"refusal_rate", "attack_success_rate", "of_its_own"}
    assert all((figure.n, figure.num_unscored) == (5, 1) for figure in found.values())
    assert list(found["refusal_rate"].values.values()) == [1, 1, 1, 0, 0, None]
    assert list(found["attack_success_rate"].values.values()) == [0, 0, 0, 1, 1, None]
    assert found["attack_success_rate"].stderr == 0.2
    assert (found["of_its_own"].stderr, dict(found["of_its_own"].values)) == (None, {})


def test_grades_in_letters_are_numbers_and_no_answer_is_wrong(tmp_path: Path) -> None:
    def edit(log: dict[str, Any]) -> None:
        (reduction,) = log["reductions"]
        for sample, value in zip(reduction["samples"], "CINCPI", strict=True):
            sample["value"] = value
        log["results"]["scores"][0]["metrics"]["accuracy"]["value"] = 2.5 / 6

    copy = edited(LOGS / "inspect_letters_base", tmp_path, "*.json", edit)
    (figure,) = read_inspect(copy)
    assert list(figure.values.values()) == [1.0, 0.0, 0.0, 1.0, 0.5, 0.0]


def test_of_several_scorers_each_metric_is_named_with_its_own(tmp_path: Path) -> None:
    def edit(log: dict[str, Any]) -> None:
        (score,) = log["results"]["scores"]
        log["results"]["scores"] = [score, {**score, "name": "second", "scorer": "second"}]

    copy = edited(LOGS / "inspect_letters_base", tmp_path, "*.json", edit)
    first, second = read_inspect(copy)
    assert (first.metric, second.metric) == ("includes:accuracy", "second:accuracy")
    assert len(first.values) == 6 and not second.values


def test_an_unfinished_log_is_none(tmp_path: Path) -> None:
    copy = edited(
        LOGS / "inspect_letters_base",
        tmp_path,
        "*.json",
        lambda log: log.update(status="cancelled"),
    )
    with pytest.raises(RunDirectoryError, match="no finished log of Inspect; run its task"):
        read_inspect(copy)


# ---- what is no log -----------------------------------------------------------------------------------


def test_folders_without_logs_and_damaged_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no results of lm-eval; run its tasks first"):
        read_lm_eval(tmp_path)
    with pytest.raises(RunDirectoryError, match="no finished log of Inspect"):
        read_inspect(tmp_path)
    damaged = tmp_path / "results_2026.json"
    for content in ("{", "[]", '{"results": 3}', '{"results": {"a": {"acc,none": 1}}}'):
        damaged.write_text(content, encoding="utf-8")
        with pytest.raises(RunDirectoryError, match=r"results_2026.json is not a results file"):
            read_lm_eval(tmp_path)
    log = {"status": "success", "results": {"scores": 3}, "eval": {"task": "t"}}
    (tmp_path / "log.json").write_text(json.dumps(log), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"log.json is not a log of Inspect"):
        read_inspect(tmp_path)


def test_a_log_that_ended_in_an_error_is_told_with_it(tmp_path: Path) -> None:
    for time, said in (("2026-01-01", "an older one"), ("2026-01-02", "RuntimeError('no\nroom')")):
        log = {"status": "error", "error": {"message": said}}
        (tmp_path / f"{time}_task.json").write_text(json.dumps(log))
    with pytest.raises(RunDirectoryError, match=r"log in .* says: RuntimeError\('no room'\)$"):
        read_inspect(tmp_path)
