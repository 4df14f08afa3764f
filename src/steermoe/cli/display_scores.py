"""What is printed of the scores of a run."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from steermoe.analysis.rank_correlation import rank_correlations
from steermoe.report.controls import control_rows
from steermoe.report.numbers import is_number
from steermoe.scores import KNOWN, title_of
from steermoe.store.names import FORECAST, SCORES
from steermoe.store.run import Run


def scores(run: Run) -> Group | None:
    """How alike the scores rank the experts that may be selected; None where there is but one score."""
    if not run.directory.file(SCORES).exists():
        return None
    found = run.directory.read_table(SCORES)
    selectable = {layer for layer, _ in _candidates(run)}
    table = rank_correlations(found, sorted(selectable))
    if len(table) < 2:
        return None
    names = list(table.columns)
    shown = Table(
        *("", *map(title_of, names)),
        title="rank correlation of the scores, over the experts that may be selected",
        title_justify="left",
        box=None,
    )
    for name in names:
        values = (table.loc[name, other] for other in names)
        shown.add_row(title_of(name), *(f"{v:.2f}" if is_number(v) else "-" for v in values))
    lines = [f"{KNOWN[name].title}: {KNOWN[name].meaning}" for name in names if name in KNOWN]
    return Group(shown, Text("\n".join(lines)))


def forecast(run: Run) -> Text | None:
    """What training the selected experts is expected to cost; None where it was not forecast."""
    if not run.directory.file(FORECAST).exists():
        return None
    return Text("\n".join(run.directory.read_forecast().sentences()))


def controls(run: Run) -> Table:
    """The hardened model beside random and lowest experts that were trained alike."""
    found = run.directory.read_controls()
    table = Table(
        *("", "selected", "random", "selected less random", "lowest", "selected less lowest", "n"),
        title=f"did the selection matter? {found.num_selected} selected experts, and others trained alike "
        f"({found.split} prompts; intervals over goals and draws)",
        title_justify="left",
        box=None,
    )
    for row in control_rows(found):
        table.add_row(
            *(row.name, row.selected, row.random, row.beyond_random, row.lowest),
            *(row.beyond_lowest, row.num_prompts),
        )
    return table


def _candidates(run: Run) -> list[tuple[int, int]]:
    """The experts that may be selected."""
    settings = run.config.identify
    last = settings.last_layer
    rows = run.risk_diff[["layer", "expert"]].itertuples(index=False)
    return [
        (int(layer), int(expert))
        for layer, expert in rows
        if layer >= settings.first_layer and (last is None or layer <= last)
    ]
