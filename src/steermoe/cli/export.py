"""`steermoe export`: a run's tables, trained experts and hardened model in other formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.cli.apply import apply_delta_file
from steermoe.cli.export_hub import HUB, HubOptions, export_hub
from steermoe.cli.export_tasks import TASK_FORMATS, tasks_of_run, tasks_of_source
from steermoe.cli.options import DEFAULT_RUN, RunOption, check_run_named, expand
from steermoe.errors import ConfigError, RunDirectoryError

if TYPE_CHECKING:
    import pandas as pd

    from steermoe.store.run import Run

TABLE_FORMATS = ("csv", "jsonl")
FORMATS = (*TABLE_FORMATS, "delta", HUB, *TASK_FORMATS)


FormatsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help="csv, jsonl (the tables), delta (the trained experts alone), hub (a repository of the model hub, "
        "prepared on disk), lm-eval or inspect (the prompts as tasks of these tools). Repeatable.",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Where to write.", show_default="<run>/export"
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="SOURCE",
        help="With lm-eval or inspect: these prompts, and no run.",
        show_default="the run's",
    ),
]
AsDeltaOption = Annotated[
    bool,
    typer.Option("--as-delta", help="With hub: the trained experts alone, not the whole weights."),
]
PushOption = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="OWNER/NAME",
        help="With hub: push to that repository. Without this, no network is touched.",
    ),
]
PublicOption = Annotated[
    bool,
    typer.Option(
        "--public",
        help="With --push: a repository that is made can be read by everybody; otherwise it is private.",
    ),
]
ApplyOption = Annotated[
    str | None,
    typer.Option("--apply", metavar="DELTA", hidden=True, help="The same as steermoe apply."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", hidden=True, help="With --apply: the base model.")
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", hidden=True, help="With --apply: of a hub model.")
]


def export(
    run_dir: RunOption = None,
    formats: FormatsOption = None,
    output: OutputOption = None,
    prompts: PromptsOption = None,
    as_delta: AsDeltaOption = False,
    push: PushOption = None,
    public: PublicOption = False,
    apply: ApplyOption = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
) -> None:
    """Write a run's tables and trained experts in other formats."""
    folder = expand(output) if output is not None else None
    hub = HubOptions(as_delta, push, public)
    hub.check_used(formats or ())
    if apply is not None:
        if folder is None:
            raise ConfigError(
                "--apply needs --output DIR, the directory of the hardened model to write"
            )
        written = [apply_delta_file(expand(apply), folder, model, revision)]
    elif model is not None or revision is not None:
        raise ConfigError("--model and --revision belong to --apply DELTA; a run knows its model")
    elif prompts is not None:
        written = _export_prompts(prompts, formats or [*TASK_FORMATS], folder)
    else:
        check_run_named(run_dir)
        run_path = expand(run_dir if run_dir is not None else DEFAULT_RUN)
        written = export_run(run_path, formats or ["csv"], folder, hub)
    for path in written:
        typer.echo(str(path))


def _export_prompts(prompts: str, formats: Sequence[str], folder: Path | None) -> list[Path]:
    """Prompts that belong to no run, as tasks of other tools."""
    if others := sorted(set(formats) - set(TASK_FORMATS)):
        raise ConfigError(
            f"--prompts {prompts} goes with --format {' or '.join(TASK_FORMATS)}, not {', '.join(others)}"
        )
    written = []
    for name in formats:
        files, notes = tasks_of_source(prompts, name, folder or Path("export"))
        written += _with_notes(files, notes)
    return written


def export_run(
    run_dir: str | Path,
    formats: Sequence[str],
    output: str | Path | None = None,
    hub: HubOptions | None = None,
) -> list[Path]:
    """Write the tables of a run as CSV or JSONL, its trained experts as a delta, or a repository of the model hub.

    Args:
        run_dir: The run.
        formats: Any of `csv`, `jsonl`, `delta`, `hub`, `lm-eval`, `inspect`.
        output: Directory to write into; `<run>/export` by default.
        hub: What the repository holds, and where it is pushed to; nowhere by default.

    Returns:
        The files written.

    Raises:
        ConfigError: A format is unknown.
        RunDirectoryError: The run has not got what is asked for, or the directory cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--format {name!r} is not known: use {', '.join(FORMATS)}")
    from steermoe.store.run import load_run

    run = load_run(run_dir)
    folder = Path(output) if output is not None else run.directory.file("export")
    repository = export_hub(run, folder, hub or HubOptions()) if HUB in formats else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [
            path
            for name in formats
            if name in TABLE_FORMATS
            for path in _export_tables(run, name, folder)
        ]
        if "delta" in formats:
            from steermoe.hub.delta import write_delta

            written.append(write_delta(run, folder))
        if repository is not None:
            written += repository()
        for name in formats:
            if name in TASK_FORMATS:
                written += _with_notes(*tasks_of_run(run, name, folder))
    except OSError as error:
        raise RunDirectoryError(
            f"{folder} cannot be written: {error.strerror}; choose another --output"
        ) from None
    return written


def _with_notes(files: list[Path], notes: Sequence[str]) -> list[Path]:
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return files


def _export_tables(run: Run, name: str, folder: Path) -> list[Path]:
    from steermoe.store.names import RESPONSES, RISK, RISK_PER_BATCH

    write = {"csv": _write_csv, "jsonl": _write_jsonl}[name]
    written = []
    for file in (RISK, RISK_PER_BATCH, RESPONSES):
        if run.directory.file(file).exists():
            path = folder / f"{Path(file).stem}.{name}"
            write(run.directory.read_table(file), path)
            written.append(path)
    if not written:
        raise RunDirectoryError(
            f"{run.path} has no tables yet: run `steermoe collect --run {run.path}` first"
        )
    return written


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    """A cell of CSV is a text, so chat turns are written as JSON; no text is one that a spreadsheet computes."""
    from steermoe.spreadsheets import quoted_cell

    if "messages" in table.columns:
        turns = table["messages"].map(
            lambda messages: json.dumps([dict(turn) for turn in messages], ensure_ascii=False)
        )
        table = table.assign(messages=turns)
    texts = {
        str(name): column.map(lambda cell: quoted_cell(cell) if isinstance(cell, str) else cell)
        for name, column in table.items()
        if column.map(lambda cell: isinstance(cell, str)).any()
    }
    # Lines end as RFC 4180 has them: then a lone carriage return in a text is quoted as well.
    table.assign(**texts).to_csv(path, index=False, lineterminator="\r\n")


def _write_jsonl(table: pd.DataFrame, path: Path) -> None:
    table.to_json(path, orient="records", lines=True, force_ascii=False)
