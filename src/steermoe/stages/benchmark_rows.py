"""What other tools found out about both models, as measures. Reading it loads no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steermoe.config import Config
from steermoe.harness.figures import Figure, change_rows, figure_rows
from steermoe.measures.evidence import Intervals
from steermoe.metrics import MeasureRow
from steermoe.store.benchmark_table import read_benchmarks
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED


def benchmark_rows(run: RunDirectory, config: Config, intervals: Intervals) -> Iterator[MeasureRow]:
    """The figures of both models and the changes between them, of the benchmarks that the settings name.

    The set of a figure is its task with the tool before it: `lm_eval:arc_easy`.
    """
    for benchmark in config.evaluate.benchmarks:
        sides = {variant: _figures(run, variant, benchmark) for variant in (BASE, HARDENED)}
        for variant, found in sides.items():
            for source, figures in found.items():
                yield from figure_rows(variant, figures, source, intervals.confidence)
        for source, figures in sides[HARDENED].items():
            before = [figure for found in sides[BASE].values() for figure in found]
            yield from change_rows(HARDENED, figures, BASE, before, source, **intervals.arguments())


def _figures(run: RunDirectory, variant: str, benchmark: str) -> dict[str, Sequence[Figure]]:
    """The figures of one benchmark by their source: the tool and its version."""
    tool = benchmark.partition(":")[0]
    found: dict[str, list[Figure]] = {}
    for row in read_benchmarks(run, variant):
        if row.benchmark != benchmark:
            continue
        values = dict(zip(row.sample_ids, row.sample_values, strict=True))
        figure = Figure(
            f"{tool}:{row.task}",
            row.metric,
            row.value,
            row.stderr,
            row.n,
            row.num_unscored,
            values,
        )
        found.setdefault(row.source, []).append(figure)
    return dict(found)
