"""A run's tables and trained experts in other formats, and a delta back onto its base model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from steermoe.config import EMBEDDED_MODEL, ModelSection
from steermoe.errors import ConfigError, RunDirectoryError
from steermoe.loading import model_source
from steermoe.moe.delta import apply_delta, save_delta
from steermoe.run import Run, load_run
from steermoe.rundir import MODEL, RESPONSES, RISK, RISK_PER_BATCH

TABLES = (RISK, RISK_PER_BATCH, RESPONSES)
DELTA = "delta.safetensors"


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    """A cell of CSV is a text, so chat turns are written as JSON."""
    if "messages" in table.columns:
        turns = table["messages"].map(
            lambda messages: json.dumps([dict(turn) for turn in messages], ensure_ascii=False)
        )
        table = table.assign(messages=turns)
    table.to_csv(path, index=False)


_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "csv": _write_csv,
    "jsonl": lambda table, path: table.to_json(
        path, orient="records", lines=True, force_ascii=False
    ),
}
FORMATS = (*_WRITERS, "delta")


def export_run(
    run_dir: str | Path, formats: Sequence[str], output: str | Path | None = None
) -> list[Path]:
    """Write the tables of a run as CSV or JSONL, and its trained experts as a delta.

    Args:
        run_dir: The run.
        formats: Any of `csv`, `jsonl`, `delta`.
        output: Directory to write into; `<run>/export` by default.

    Returns:
        The files written.

    Raises:
        ConfigError: A format is unknown.
        RunDirectoryError: The run lacks what is asked for, or the directory cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--format {name!r} is not known: use {', '.join(FORMATS)}")
    run = load_run(run_dir)
    folder = Path(output) if output is not None else run.directory.file("export")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [
            path
            for name in formats
            if name in _WRITERS
            for path in _export_tables(run, name, folder)
        ]
        if "delta" in formats:
            written.append(_export_delta(run, folder))
    except OSError as error:
        raise RunDirectoryError(
            f"{folder} cannot be written: {error.strerror}; choose another --output"
        ) from None
    return written


def apply_delta_file(delta: Path, output: Path, model: str | None = None) -> Path:
    """Put a delta onto its base model and save the hardened model.

    Args:
        delta: A file that `steermoe export --format delta` wrote.
        output: Directory to write; it must not hold anything yet.
        model: The base model; the embedded one by default. Its content hash must be the delta's.

    Returns:
        The directory.

    Raises:
        ModelError: The base model is another one.
        RunDirectoryError: The directory is not empty.
    """
    if output.exists() and any(output.iterdir()):
        raise RunDirectoryError(f"{output} is not empty; choose a new directory with --output")
    source = model_source(ModelSection(id=model if model is not None else EMBEDDED_MODEL))
    apply_delta(source, delta, output)
    return output


def _export_tables(run: Run, name: str, folder: Path) -> list[Path]:
    written = []
    for file in TABLES:
        if run.directory.file(file).exists():
            path = folder / f"{Path(file).stem}.{name}"
            _WRITERS[name](run.directory.read_table(file), path)
            written.append(path)
    if not written:
        raise RunDirectoryError(
            f"{run.path} has no tables yet: run `steermoe collect --run {run.path}` first"
        )
    return written


def _export_delta(run: Run, folder: Path) -> Path:
    hardened = run.directory.file(MODEL)
    if not hardened.is_dir():
        raise RunDirectoryError(
            f"{run.path} has no hardened model: run `steermoe train --run {run.path}` first"
        )
    path = folder / DELTA
    settings = run.config.model
    save_delta(
        model_source(settings), hardened, run.trained_experts, path, revision=settings.revision
    )
    return path
