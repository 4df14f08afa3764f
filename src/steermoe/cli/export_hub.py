"""`steermoe export --format hub`: a repository of the model hub, prepared and, when told to, pushed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from steermoe.errors import ConfigError

if TYPE_CHECKING:
    from steermoe.store.run import Run

HUB = "hub"


@dataclass(frozen=True)
class HubOptions:
    """What is asked for of a repository.

    Attributes:
        as_delta: The trained experts alone, not the whole weights.
        push: Where to push it; None for nowhere.
        public: Whether a repository that is made can be read by everybody.
    """

    as_delta: bool = False
    push: str | None = None
    public: bool = False

    def check_used(self, formats: Sequence[str]) -> None:
        """Refuse options that would have no effect.

        Raises:
            ConfigError: No repository is asked for, or `--public` without a push.
        """
        for is_given, flag in (
            (self.as_delta, "--as-delta"),
            (self.push is not None, "--push"),
            (self.public, "--public"),
        ):
            if is_given and HUB not in formats:
                raise ConfigError(f"{flag} goes with --format {HUB}")
        if self.public and self.push is None:
            raise ConfigError("--public goes with --push OWNER/NAME")


def export_hub(run: Run, folder: Path, options: HubOptions) -> Callable[[], list[Path]]:
    """Check all that can be known before anything is written.

    Args:
        run: A finished run.
        folder: A folder `hub` is made in it.
        options: What is asked for.

    Returns:
        What prepares the repository, and pushes it if that is asked for; it returns the files.

    Raises:
        HubError: The name, the token or the folder will not do.
        RunDirectoryError: The run is not finished.
    """
    from steermoe.hub import push, repository

    if options.push is not None:
        push.check_can_push(options.push)
    made = folder / HUB
    repository.check_can_be_published(run, made, options.as_delta)
    if options.push is not None:
        push.check_token(options.push)

    def prepare() -> list[Path]:
        files = repository.prepare(run, made, options.as_delta)
        if options.push is None:
            typer.echo(f"prepared in {made}; --push OWNER/NAME sends it to the hub", err=True)
        else:
            address = push.push(made, options.push, options.public)
            typer.echo(f"pushed to {address}", err=True)
        return files

    return prepare
