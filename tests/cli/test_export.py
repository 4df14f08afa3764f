"""`steermoe export` and `steermoe apply`: tables in other formats, and a delta there and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from steermoe.store.run import load_run
from tiny import CommandLine, copy_of


@pytest.fixture
def steermoe(steermoe: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line of a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return steermoe


def test_export_writes_the_tables(steermoe: CommandLine, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        steermoe("export", "--run", finished, "--format", "csv", "--format", "jsonl", "-o", out)
        == 0
    )
    written = [Path(line) for line in steermoe.out.split()]
    assert {path.name for path in written} == {path.name for path in out.iterdir()}
    table = load_run(finished).risk_diff
    with (out / "risk_diff.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["Layer_Expert"] for row in rows] == table["Layer_Expert"].tolist()
    assert [float(row["risk_diff"]) for row in rows] == pytest.approx(table["risk_diff"].tolist())
    lines = (out / "responses.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    response = load_run(finished).responses.iloc[0]
    assert first["generated_text"] == response["generated_text"]
    assert first["messages"] == [dict(m) for m in response["messages"]]
    with (out / "responses.csv").open(newline="", encoding="utf-8") as file:
        cell = next(csv.DictReader(file))["messages"]
    assert json.loads(cell) == first["messages"], "messages can be read back from the CSV too"


def test_export_and_apply_a_delta(
    steermoe: CommandLine, finished: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert steermoe("export", "--run", finished, "--format", "delta", "-o", tmp_path / "d") == 0
    (delta,) = (tmp_path / "d").iterdir()
    assert delta.stat().st_size < (finished / "model" / "model.safetensors").stat().st_size / 2
    hardened = tmp_path / "hardened"
    arguments = [delta, "--model", checkpoint, "-o", hardened]
    assert steermoe("apply", *arguments) == 0, steermoe.err
    assert steermoe.out.split() == [str(hardened)]
    from safetensors.torch import load_file

    mine, theirs = (load_file(p / "model.safetensors") for p in (hardened, finished / "model"))
    assert mine.keys() == theirs.keys()
    assert all(bool((mine[name] == tensor).all()) for name, tensor in theirs.items())
    assert "not empty" in steermoe.refusal("apply", *arguments)
    assert steermoe("apply", delta) == 2, "an output is needed"
    assert "not empty" in steermoe.refusal("export", "--apply", *arguments)
    assert "--output" in steermoe.refusal("export", "--apply", delta)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--format", "xlsx"], "xlsx"),
        (["--apply", "missing.safetensors", "-o", "out"], "missing.safetensors"),
    ],
)
def test_an_export_that_cannot_be_is_refused(
    steermoe: CommandLine, finished: Path, arguments: list[str], word: str
) -> None:
    assert word in steermoe.refusal("export", "--run", finished, *arguments)


def test_export_without_a_hardened_model_names_the_stage(
    steermoe: CommandLine, finished: Path, tmp_path: Path
) -> None:
    import shutil

    run = copy_of(finished, tmp_path / "run")
    shutil.rmtree(run / "model")
    assert "steermoe train" in steermoe.refusal("export", "--run", run, "--format", "delta")
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in steermoe.refusal(
        "export", "--run", run, "-o", tmp_path / "file" / "below"
    )
