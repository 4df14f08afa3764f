"""Lines of progress where there is no terminal, at hand-worked times."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from steermoe import reporter
from steermoe.reporter import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(reporter, "time", clock)
    return clock


def _reporter() -> tuple[Reporter, io.StringIO]:
    file = io.StringIO()
    return Reporter(Console(file=file, force_terminal=False, width=200)), file


@pytest.mark.parametrize("at_once", [True, False])
def test_work_that_was_done_before_says_nothing_about_how_long_the_rest_takes(
    clock: SimpleNamespace, at_once: bool
) -> None:
    reporter, file = _reporter()
    with reporter.bar(60, "train", 40 if at_once else 0) as bar:
        if not at_once:
            bar.find_done(40)
        clock.now += 32
        bar.advance(4, "loss 1.674")
        clock.now += 128
        bar.advance(16)
    # Four of the twenty that are left took 32 seconds.
    assert file.getvalue().splitlines() == [
        "train: 44 of 60, about 128 s left loss 1.674",
        "train: 60 of 60 in 160 s",
    ]


def test_between_two_lines_is_half_a_minute(clock: SimpleNamespace) -> None:
    reporter, file = _reporter()
    with reporter.bar(10, "collect") as bar:
        for _ in range(9):
            clock.now += 10
            bar.advance()
    assert file.getvalue().splitlines() == [
        "collect: 3 of 10, about 70 s left",
        "collect: 6 of 10, about 40 s left",
        "collect: 9 of 10, about 10 s left",
    ]
