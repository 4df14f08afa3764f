"""Figures of two models side by side, as the command line prints them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from steermoe.measures import MEASURES
from steermoe.measures.groups import parts_of_group_name
from steermoe.metrics import Comparison, Evaluation, MetricJson
from steermoe.report.numbers import corrected


def percent(metric: MetricJson) -> str:
    """A rate with its interval, n and unscored answers."""
    if metric["value"] is None:
        return f"none scored ({metric['num_unscored']} unscored)"
    text = (
        f"{metric['value']:.1%} [{metric['ci_low']:.1%}, {metric['ci_high']:.1%}] n={metric['n']}"
    )
    if metric["num_unscored"]:
        text += f", {metric['num_unscored']} unscored"
    if metric.get("worst_case") is not None:
        text += f", at worst {metric['worst_case']:.1%}"
    if found := corrected(metric):
        text += f", corrected {found}"
    return text


def figure(metric: MetricJson, unit: str) -> str:
    """Any figure with its interval, unit and n."""
    if unit == "share" or metric["value"] is None:
        return percent(metric)
    digits = 4 if unit == "nats" else 1
    low, high = metric["ci_low"], metric["ci_high"]
    interval = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return " ".join(f"{metric['value']:.{digits}f}{interval} {unit} n={metric['n']}".split())


def figure_rows(comparison: Comparison | Evaluation) -> Iterator[tuple[str, str, str, str]]:
    """The rows of a table of figures: title, before, after, and the p-value of the change where there is one.

    Where too many answers are unscored, also what it is if all of them had gone against the change.
    """
    for measure in MEASURES:
        before = comparison["base"].get(measure.name)
        after = comparison["hardened"].get(measure.name)
        change = comparison["paired"].get(measure.name)
        p_value = change.get("p_value") if change else None
        worst = change.get("worst_case_p_value") if change else None
        shown = "" if p_value is None else f"{p_value:.2g}"
        shown += "" if worst is None else f", at worst {worst:.2g}"
        if before and after:
            yield measure.title, figure(before, measure.unit), figure(after, measure.unit), shown
        elif change and change["value"] is not None:  # a comparison by itself
            yield measure.title, "", figure(change, measure.unit), ""


def set_tables(evaluation: Evaluation) -> list[Table]:
    """The figures on every set of its own, a table each."""
    tables = []
    for name, found in evaluation.get("sets", {}).items():
        if parts_of_group_name(name) is not None:
            continue
        columns = f"set {name}", "before", "after", "p"
        table = Table(*columns, title="figures", title_justify="left", box=None)
        for cells in figure_rows(found):
            table.add_row(*cells)
        tables.append(table)
    return tables


MOST_GROUPS = 12
"""Of a kind, such as styles, that are printed one by one; more of them are left to the page."""


def group_tables(evaluation: Evaluation) -> list[Table | str]:
    """The rates by category and by style: a table each, or where they have many groups the line that says so."""
    groups: dict[tuple[str, str], dict[str, Comparison]] = {}
    for name, found in evaluation.get("sets", {}).items():
        parts = parts_of_group_name(name)
        if parts is not None:
            whole, by, value = parts
            groups.setdefault((whole, by), {})[value] = found
    return [
        _group_table(whole, by, of_values)
        if len(of_values) <= MOST_GROUPS
        else f"refusal by {by}: {len(of_values)} groups, on the page and in measures.parquet"
        for (whole, by), of_values in groups.items()
    ]


def _group_table(whole: str, by: str, groups: Mapping[str, Comparison]) -> Table:
    columns = f"{whole} prompts", by, "before", "after", "p"
    table = Table(*columns, title=f"refusal by {by}", title_justify="left", box=None)
    for value, found in groups.items():
        for title, *cells in figure_rows(found):
            table.add_row(title, value, *cells)
    return table
