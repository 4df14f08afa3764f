"""A run's tables and trained experts in other formats, and a delta back onto its base model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from steermoe.config import EMBEDDED_MODEL, ModelSection
from steermoe.errors import ConfigError, ModelError, RunDirectoryError
from steermoe.loading import model_source
from steermoe.moe.delta import apply_delta, read_delta_header, save_delta
from steermoe.store.directory import MODEL, RESPONSES, RISK, RISK_PER_BATCH, disk_error
from steermoe.store.run import Run, load_run

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


def apply_delta_file(
    delta: Path, output: Path, model: str | None = None, revision: str | None = None
) -> Path:
    """Put a delta onto its base model and save the hardened model.

    Args:
        delta: A file that `steermoe export --format delta` wrote.
        output: Directory to write; it must not hold anything yet.
        model: The base model; by default the one that the delta names. Its content hash must be the delta's.
        revision: Branch, tag or commit of a hub model; by default the commit that the delta names.

    Returns:
        The directory.

    Raises:
        ModelError: The delta is damaged, or the base model is another one or cannot be found.
        RunDirectoryError: The directory is not empty, or cannot be written.
    """
    header = read_delta_header(delta)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunDirectoryError(f"{output} is not empty; choose a new directory with --output")
    if model is None and header.revision is None and header.base != EMBEDDED_MODEL:
        raise ModelError(
            f"the base model of {delta} was a local directory, {header.base}; give it with --model"
        )
    if model in (None, header.base) and revision is None:
        revision = header.revision
    source = model_source(ModelSection(id=model if model is not None else header.base))
    try:
        return apply_delta(source, delta, output, revision=revision)
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        raise RunDirectoryError(
            f"{output} cannot be written: {reason}; choose another --output"
        ) from None


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
        model_source(settings),
        hardened,
        run.trained_experts,
        path,
        revision=settings.revision,
        name=EMBEDDED_MODEL if settings.id == EMBEDDED_MODEL else None,
    )
    return path
