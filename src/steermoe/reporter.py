"""How the stages speak to people: lines, warnings and progress, on a terminal or in a log."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LOG_LINES = 30.0
WIDTH_OF_NO_TERMINAL = 120


@dataclass(slots=True)
class Bar:
    """Progress of one long piece of work; call `advance` as it gets done."""

    total: int
    description: str
    _reporter: Reporter
    _progress: Progress | None = None
    done: int = 0
    _started: float = 0.0
    _last_line: float = 0.0
    _found: int = 0

    def find_done(self, amount: int) -> None:
        """Count work that was done before: it says nothing about how long the rest takes."""
        self.done += amount
        self._found += amount
        if self._progress is not None:
            self._progress.reset(self._progress.task_ids[0], completed=self.done)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count work that is done; `note` stands beside the bar."""
        self.done += amount
        if self._progress is not None:
            text = f"{self.description} {note}".rstrip()
            self._progress.update(self._progress.task_ids[0], advance=amount, description=text)
            return
        now = time.monotonic()
        is_time = now - self._last_line >= SECONDS_BETWEEN_LOG_LINES
        if amount and (self.done >= self.total or is_time):
            self._last_line = now
            elapsed = now - self._started
            left = elapsed / max(self.done - self._found, 1) * (self.total - self.done)
            tail = (
                f", about {left:.0f} s left" if self.done < self.total else f" in {elapsed:.0f} s"
            )
            self._reporter.line(
                f"{self.description}: {self.done} of {self.total}{tail} {note}".rstrip()
            )


class Reporter:
    """Prints lines and progress: a live bar on a terminal, plain lines elsewhere or when `quiet`.

    Args:
        console: Where to print; standard error by default, so that standard output keeps the results.
        quiet: No live bars, and only what matters.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = (
            console
            if console is not None
            else Console(stderr=True, highlight=False, soft_wrap=True)
        )
        self.live = self.console.is_terminal and not quiet
        self.quiet = quiet

    def line(self, text: str) -> None:
        """Say what is going on."""
        self.console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Say what a user should know: something was left out, completed or replaced."""
        self.console.print(f"note: {text}", style="yellow" if self.live else None, markup=False)

    @contextmanager
    def bar(self, total: int, description: str, done: int = 0) -> Iterator[Bar]:
        """Show the progress of `total` pieces of work, `done` of which are done already."""
        started = time.monotonic()
        bar = Bar(total, description, self, None, done, started, started, done)
        if not self.live:
            yield bar
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            progress.add_task(description, total=total, completed=done)
            bar._progress = progress
            yield bar


def silent() -> Reporter:
    """A reporter that prints nothing: the default of the Python interface."""
    return Reporter(Console(file=_Nowhere(), force_terminal=False), quiet=True)


class _Nowhere(io.StringIO):
    """A text file that forgets what is written to it."""

    def write(self, text: str) -> int:
        return len(text)


def plain_stdout() -> Console:
    """The console for results, on standard output; what is no terminal has room for a whole table."""
    width = None if sys.stdout.isatty() else WIDTH_OF_NO_TERMINAL
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=width)
