"""Whole runs on tiny checkpoints: their settings, a run that is made once, and the command line in this process."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import Config, load_config
from steermoe.reporter import Reporter

SETTINGS: dict[str, Any] = {
    "collect": {"batch_size": 8, "max_new_tokens": 6, "generation_batch_size": 16},
    "identify": {
        "threshold": 0.0,
        "top_k": 4,
        "num_permutations": 20,
        "num_bootstrap": 20,
        "filter_by_verdict": False,
    },
    "train": {
        "epochs": 2,
        "learning_rate": 5e-3,
        "target_response": "No.",
        "arguments": {"save_steps": 1},
    },
    "evaluate": {"num_bootstrap": 100, "benchmark_limit": 2},
}
"""Of a run that takes seconds: 3 mixed batches of 8, 6 training steps, 4 experts, a task of each way of scoring."""

COMPARED = (
    "prompts.jsonl",
    "responses.parquet",
    "tokens.parquet",
    "routing.safetensors",
    "risk_diff_per_batch.parquet",
    "risk_diff.parquet",
    "risk_diff_heldout.parquet",
    "scores.parquet",
    "score_sums/gradient.safetensors",
    "unsafe_experts.json",
    "forecast.json",
    "sft_dataset.jsonl",
    "verdicts.parquet",
    "replies/hardened.parquet",
    "scored/hardened.parquet",
    "capability/base.parquet",
    "capability/hardened.parquet",
    "measures.parquet",
    "evaluation.json",
)
"""What must be equal byte for byte between two runs; every file of `model/` comes on top."""


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second winning."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def tiny_config(checkpoint: Path, run_dir: Path, prompts: Path, /, **settings: Any) -> Config:
    """The settings of a tiny run."""
    own = {
        "run": str(run_dir),
        "model": {"id": str(checkpoint)},
        "prompts": {"sources": [str(prompts)]},
    }
    return load_config(overrides=merged(merged(SETTINGS, own), settings))


def as_arguments(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The same settings as `--set section.key=value` arguments."""
    arguments: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            arguments += as_arguments(value, f"{prefix}{key}.")
        else:
            shown = json.dumps(value) if isinstance(value, bool | list) else str(value)
            arguments += ["--set", f"{prefix}{key}={shown}"]
    return arguments


class Listener(Reporter):
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        self.said.append(f"note: {text}")

    @property
    def text(self) -> str:
        """Everything, one line each."""
        return "\n".join(self.said)


def finished_run(checkpoint: Path, prompts: Path) -> Path:
    """A whole run on that checkpoint, made once. Copy it before writing to it."""
    from steermoe.pipeline import run_pipeline

    folder = checkpoint.parent / f"finished-{checkpoint.name}"
    if not folder.exists():
        unfinished = folder.with_name(f"unfinished-{checkpoint.name}")
        run_pipeline(tiny_config(checkpoint, unfinished, prompts), reporter=Listener())
        unfinished.rename(folder)
    return folder


def copy_of(run: Path, to: Path) -> Path:
    """A copy of a run that may be changed."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns(".lock")))


def contents(run: Path) -> dict[str, bytes]:
    """The bytes of every file that must be equal between two runs."""
    files = [run / name for name in COMPARED]
    files += sorted(path for path in (run / "model").rglob("*") if path.is_file())
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.exists()}


def files_of(run: Path) -> set[str]:
    """Every file of a run but its lock."""
    found = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)) for path in found}


def write_prompts(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A CSV of prompt rows."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


class CommandLine:
    """Runs `steermoe` in this process: its exit code, and what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str | Path) -> int:
        from steermoe.cli.app import main

        self._capsys.readouterr()
        self._monkeypatch.setattr("sys.argv", ["steermoe", *map(str, arguments)])
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        else:
            code = 0
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        return code if isinstance(code, int) else int(code is not None)

    def refusal(self, *arguments: str | Path) -> str:
        """The one line of a user's error."""
        code = self(*arguments)
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert code == 1, (code, self.err)
        assert len(errors) == 1 and self.err.splitlines()[-1] == errors[0], self.err
        assert "Traceback" not in self.err
        return errors[0].removeprefix("error: ")


def arguments_of(checkpoint: Path, run_dir: Path, prompts: Path | Sequence[Path]) -> list[str]:
    """The command-line options of a tiny run."""
    sources = [prompts] if isinstance(prompts, Path) else prompts
    options = ["--model", str(checkpoint), "--run", str(run_dir), "--quiet"]
    for source in sources:
        options += ["--prompts", str(source)]
    return options + as_arguments(SETTINGS)
