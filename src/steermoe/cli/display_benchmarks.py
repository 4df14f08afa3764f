"""What is printed of benchmarks: the figures of both models side by side."""

from __future__ import annotations

from rich.table import Table

from steermoe.report.side_by_side import benchmark_lines
from steermoe.store.names import EVALUATION
from steermoe.store.run import Run


def benchmarks_table(run: Run) -> list[Table]:
    """A table of the categories of `builtin:capability` and of the tasks of other tools; none where nothing ran."""
    if not run.directory.file(EVALUATION).exists():
        return []
    lines = list(benchmark_lines(run.evaluation))
    if not lines:
        return []
    names = ("benchmark", "before", "after", "change", "p", "n")
    table = Table(*names, title="benchmarks", title_justify="left", box=None)
    for line in lines:
        table.add_row(line.name, line.before, line.after, line.change, line.p, line.n)
    return [table]
