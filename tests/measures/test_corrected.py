"""Rates without the judge's errors: on numbers that were worked by hand, and from a labelled sheet to every figure."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from steermoe.judges.agreement import accuracy, corrected_rate
from steermoe.measures.corrected import with_corrections
from steermoe.metrics import MeasureRow, Metric
from steermoe.records import Verdict
from steermoe.report.numbers import NBSP, corrected
from steermoe.report.side_by_side import markdown
from steermoe.store.directory import RunDirectory
from steermoe.store.names import JUDGE_LABELS, VERDICTS
from steermoe.store.run import load_run
from tiny import CommandLine, copy_of, finished_run

REFUSED, ANSWERED = Verdict.REFUSED, Verdict.ANSWERED


def judged(
    hits: int, refusals: int, rejections: int, answers: int
) -> tuple[dict[str, Verdict], dict[str, Verdict]]:
    """Verdicts and labels of which so many refusals and answers are called what they are."""
    labels = {f"r{i}": REFUSED for i in range(refusals)} | {
        f"a{i}": ANSWERED for i in range(answers)
    }
    verdicts = {
        name: label
        if int(name[1:]) < (hits if label is REFUSED else rejections)
        else (ANSWERED if label is REFUSED else REFUSED)
        for name, label in labels.items()
    }
    return verdicts, labels


def row(
    measure: str, value: float | None, source: str = "keyword", against: str = ""
) -> MeasureRow:
    return MeasureRow("base", "test", measure, Metric(value, 0.0, 1.0, 100, 0), source, against)


def test_a_rate_of_refusals_and_one_of_answers_are_corrected_each_its_own_way() -> None:
    found = accuracy(*judged(45, 50, 95, 100))
    refusals, answers = with_corrections(
        [row("refusal_rate", 0.30), row("attack_success_rate", 0.70)], "keyword", found, 0.95
    )
    # (.30 + .95 - 1) / (.90 + .95 - 1), and (.70 + .90 - 1) / .85: together they are 1 again.
    assert refusals.metric.more["corrected"] == pytest.approx(0.25 / 0.85)
    assert answers.metric.more["corrected"] == pytest.approx(0.60 / 0.85)
    by_itself = corrected_rate(70, 100, (95, 100), (45, 50))
    assert answers.metric.more["corrected_ci_low"] == by_itself.ci_low
    assert answers.metric.more["corrected_ci_high"] == by_itself.ci_high
    assert refusals.metric.more["num_labels_refused"] == 50
    assert (refusals.metric.value, refusals.metric.ci_low) == (0.30, 0.0)


def test_changes_other_judges_and_other_measures_are_left_as_they_are() -> None:
    found = accuracy(*judged(45, 50, 95, 100))
    rows = [
        row("refusal_rate", 0.3, against="base"),
        row("refusal_rate", 0.3, source="guard:x"),
        row("capability", 0.3),
        row("refusal_rate", None),
    ]
    assert with_corrections(rows, "keyword", found, 0.95) == rows


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((45, 50, 95, 100), f"29.4{NBSP}% ["),
        ((20, 50, 40, 100), "undefined: the judge is no better than chance"),
        ((45, 50, 0, 0), "undefined without labelled refusals and labelled answers"),
    ],
)
def test_a_correction_says_its_rate_or_why_there_is_none(
    labels: tuple[int, int, int, int], said: str
) -> None:
    found = accuracy(*judged(*labels))
    (one,) = with_corrections([row("refusal_rate", 0.3)], "keyword", found, 0.95)
    assert corrected(one.metric.as_json()).startswith(said)
    assert corrected(row("refusal_rate", 0.3).metric.as_json()) == ""


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path, small_prompts: Path) -> RunDirectory:
    return RunDirectory(copy_of(finished_run(checkpoint, small_prompts), tmp_path / "run"))


def test_labels_put_the_corrected_rates_into_every_figure_of_the_run(
    run: RunDirectory, steermoe: CommandLine, tmp_path: Path
) -> None:
    before = run.read_evaluation()
    assert "corrected" not in before["base"]["refusal_rate"]
    make_every_third_reply_a_refusal(run)
    assert steermoe("evaluate", "--run", run.path) == 0, steermoe.err
    sheet = tmp_path / "sheet.csv"
    assert steermoe("judge", "--run", run.path, "--sample", "40", "-o", sheet) == 0, steermoe.err
    label_by_verdict(sheet, run, wrong=2)
    assert steermoe("judge", "--run", run.path, "--labels", sheet) == 0, steermoe.err
    shown = [line.split()[:3] for line in steermoe.out.splitlines() if "_rate" in line]
    assert ["base", "test", "refusal_rate"] in shown and [
        "hardened",
        "test",
        "refusal_rate",
    ] in shown
    assert all(shown.count(figure) == 1 for figure in shown)
    after = load_run(run.path).evaluation
    for side in ("base", "hardened"):
        for name in ("refusal_rate", "attack_success_rate", "over_refusal_rate"):
            found = after[side][name]
            assert found["num_labels_refused"] and found["num_labels_answered"]
            assert (
                0 <= found["corrected_ci_low"] <= found["corrected"] <= found["corrected_ci_high"]
            )
    assert set(before["base"]) <= set(after["base"])
    assert steermoe("show", "--run", run.path) == 0
    assert "corrected" in steermoe.out
    assert "corrected" in run.file("report.html").read_text(encoding="utf-8")
    assert "corrected" in markdown(after, 0.95)


def make_every_third_reply_a_refusal(run: RunDirectory) -> None:
    table = run.read_table(VERDICTS)
    table["verdict"] = [("refused", "answered", "answered")[i % 3] for i in range(len(table))]
    table.to_parquet(run.file(VERDICTS))
    state = run.read_state()
    state.files.pop(VERDICTS, None)
    run.write_state(state)


def label_by_verdict(sheet: Path, run: RunDirectory, wrong: int) -> None:
    """Label a sheet as the judge has judged, but for some replies of each kind."""
    from steermoe.judges.label_sheet import row_id
    from steermoe.store.exchanges import exchanges_of

    verdicts = {
        row_id(exchange): run.read_verdicts(variant, "keyword")[exchange.prompt_id]
        for variant in ("base", "hardened")
        for exchange in exchanges_of(run, variant)
    }
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        header, *body = list(csv.reader(file))
    left = dict.fromkeys(("refused", "answered"), wrong)
    for cells in body:
        cells[3] = verdicts[cells[0]]
        if left[cells[3]]:
            left[cells[3]] -= 1
            cells[3] = "answered" if cells[3] == "refused" else "refused"
    with sheet.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *body])


def test_labels_of_replies_that_are_gone_correct_nothing_aloud(
    run: RunDirectory, steermoe: CommandLine, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.csv"
    steermoe("judge", "--run", run.path, "--sample", "6", "-o", sheet)
    label_by_verdict(sheet, run, wrong=0)
    assert steermoe("judge", "--run", run.path, "--labels", sheet) == 0, steermoe.err
    table = run.read_table(JUDGE_LABELS)
    assert len(table) >= 6
    table["reply_sha256"] = "0" * 64
    table.to_parquet(run.file(JUDGE_LABELS))
    assert steermoe("evaluate", "--run", run.path) == 0
    assert f"{len(table)} labels are of replies that the run no longer holds" in steermoe.err
    assert "num_labels_refused" not in run.read_evaluation()["base"]["refusal_rate"]
