"""`steermoe show`: what it prints of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from steermoe.store.run import load_run
from tiny import CommandLine, copy_of


@pytest.fixture
def steermoe(steermoe: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line of a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return steermoe


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to write to."""
    return copy_of(finished, tmp_path / "run")


def test_show_prints_the_experts_with_their_frequencies(
    steermoe: CommandLine, finished: Path
) -> None:
    assert steermoe("show", "--run", finished, "--top", "5") == 0
    lines = [line for line in steermoe.out.splitlines() if re.match(r"L\d\d_E\d\d ", line)]
    table = load_run(finished).risk_diff.head(5)
    assert len(lines) == 5
    for line, row in zip(lines, table.to_dict("records"), strict=True):
        label, risk_diff, a_safe, a_unsafe = line.split()[:4]
        assert label == row["Layer_Expert"]
        assert float(risk_diff) == pytest.approx(row["risk_diff"], abs=1e-4)
        assert float(a_safe) == pytest.approx(row["a_safe_n"], abs=1e-4)
        assert float(a_unsafe) == pytest.approx(row["a_unsafe_n"], abs=1e-4)
    starred = [line.split()[0] for line in lines if " *" in line]
    selected = {(x, e) for x, e in load_run(finished).unsafe_experts}
    expected = table[
        [(x, e) in selected for x, e in zip(table["layer"], table["expert"], strict=True)]
    ]
    assert starred == expected["Layer_Expert"].tolist()


def test_show_prints_any_layer(steermoe: CommandLine, finished: Path) -> None:
    assert steermoe("show", "--run", finished, "--layer", "1") == 0
    labels = re.findall(r"^L\d\d_E\d\d", steermoe.out, re.MULTILINE)
    assert labels == [f"L01_E{e:02d}" for e in range(8)]
    assert "0-1" in steermoe.refusal("show", "--run", finished, "--layer", "9")
    assert "give one" in steermoe.refusal("show", "--layer", "1", "--batch", "0")


def test_show_prints_batches_and_the_counts_of_one(steermoe: CommandLine, finished: Path) -> None:
    assert steermoe("show", "--run", finished, "--batches") == 0
    rows = [line.split() for line in steermoe.out.splitlines()[1:] if line.strip()]
    assert [row[:3] for row in rows] == [[str(i), "4", "4"] for i in range(3)]
    assert steermoe("show", "--run", finished, "--batch", "1", "--top", "3") == 0
    run = load_run(finished)
    table = run.risk_diff_per_batch
    first = table[table["batch_idx"] == 1].nlargest(1, "risk_diff").to_dict("records")[0]
    assert f"safe {first['a_safe']} of {first['n_safe']}" in steermoe.out
    assert f"unsafe {first['a_unsafe']} of {first['n_unsafe']}" in steermoe.out
    prompts = run.responses[run.responses["batch_idx"] == 1]
    for messages in prompts["messages"]:
        assert messages[-1]["content"] in steermoe.out
    for absent in ("7", "-1"):  # -1 marks what is in no batch
        assert "batches 0 to 2" in steermoe.refusal("show", "--run", finished, "--batch", absent)


@pytest.mark.parametrize("missing", ["risk_diff.parquet", "unsafe_experts.json"])
def test_show_tells_what_a_run_does_not_have_yet(
    steermoe: CommandLine, finished: Path, tmp_path: Path, missing: str
) -> None:
    run = copy_of(finished, tmp_path / "run")
    (run / missing).unlink()
    assert missing in steermoe.refusal("show", "--run", run, "--layer", "0")


def test_show_leaves_markup_in_prompts_alone(
    steermoe: CommandLine, finished: Path, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    table = pd.read_parquet(run / "responses.parquet")
    at = table.index[table["batch_idx"] == 0][0]
    table.at[at, "messages"] = [{"role": "user", "content": "[red]x[/red] [/] \\[b]"}]
    load_run(run).directory.write_table("responses.parquet", table)
    assert steermoe("show", "--run", run, "--batch", "0") == 0
    assert "[red]x[/red] [/]" in steermoe.out


def test_show_prints_the_estimate_that_an_interval_belongs_to(
    steermoe: CommandLine, run: Path
) -> None:
    def columns() -> list[str]:
        (header,) = (
            x for x in steermoe.out.splitlines() if x.split()[:2] == ["expert", "risk_diff"]
        )
        return header.split()

    assert steermoe("show", "--run", run) == 0
    assert "estimate" not in columns()
    pooled = ["--set", "identify.estimator=pooled", "--quiet"]
    assert steermoe("identify", "--run", run, *pooled) == 0
    assert steermoe("show", "--run", run, "--top", "16") == 0
    assert columns()[4] == "estimate"
    for row in load_run(run).risk_diff.to_dict("records"):
        (line,) = (x for x in steermoe.out.splitlines() if x.startswith(row["Layer_Expert"]))
        assert float(line.split()[4]) == pytest.approx(row["risk_diff_pooled"], abs=6e-5)


def test_show_prints_what_the_stability_is_worth(steermoe: CommandLine, run: Path) -> None:
    state = json.loads((run / "run.json").read_text())
    found = state["stages"]["identify"]["figures"]
    assert steermoe("show", "--run", run) == 0
    (line,) = (x for x in steermoe.out.splitlines() if x.startswith("stability: "))
    assert line.startswith(
        f"stability: {found['num_stable_experts']} of 16 experts are selected by 75%"
    )
    for name in ("num_stable_experts", "mean_selected_by_half", "stability_error_bound"):
        del found[name]
    (run / "run.json").write_text(json.dumps(state))
    assert steermoe("show", "--run", run) == 0
    assert "stability: " not in steermoe.out


def test_show_prints_how_held_out_goals_replicate_the_selection(
    steermoe: CommandLine, run: Path
) -> None:
    state = json.loads((run / "run.json").read_text())
    found = state["stages"]["identify"]["figures"]["replication"]
    assert steermoe("show", "--run", run, "--top", "16") == 0
    assert "replication on held-out goals" in steermoe.out
    lines = {line.split("  ")[0].strip(): line for line in steermoe.out.splitlines()}
    assert f"{found['shrinkage']:.2f}" in lines["shrinkage of the 4 selected"]
    assert f"{found['correlation']:.2f}" in lines["correlation"]
    assert f"{found['sign_agreement']:.0%}" in lines["same sign"]
    again = lines["among the top 4 again"]
    assert f" {found['overlap']} " in again
    assert f"by chance {found['overlap_by_chance']:.1f}" in again
    held_out = pd.read_parquet(run / "risk_diff_heldout.parquet")
    for row in held_out.to_dict("records"):
        (line,) = (x for x in steermoe.out.splitlines() if x.startswith(row["Layer_Expert"]))
        assert f"{row['risk_diff']:9.4f}" in line
    # A run that was identified without held-out goals has neither.
    state["stages"]["identify"]["figures"]["replication"] = None
    (run / "run.json").write_text(json.dumps(state))
    (run / "risk_diff_heldout.parquet").unlink()
    assert steermoe("show", "--run", run) == 0
    assert "replication" not in steermoe.out and "held_out" not in steermoe.out
