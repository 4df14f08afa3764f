"""`steermoe apply`: a delta back onto its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steermoe.cli.options import expand
from steermoe.errors import ModelError, RunDirectoryError


def apply(
    delta: Annotated[
        str,
        typer.Argument(metavar="DELTA", help="A file of steermoe export --format delta."),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="The hardened model to write.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="ID_OR_PATH",
            help="The base model.",
            show_default="the one that the delta names",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="Branch, tag or commit of a hub model.",
            show_default="the delta's",
        ),
    ] = None,
) -> None:
    """Put a delta onto its base model, and write the hardened model."""
    typer.echo(str(apply_delta_file(expand(delta), expand(output), model, revision)))


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
    from steermoe.config import EMBEDDED_MODEL, ModelSection
    from steermoe.loading import model_source
    from steermoe.moe.delta import apply_delta, read_delta_header
    from steermoe.store.files import disk_error

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
