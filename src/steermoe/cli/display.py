"""What the command line prints of a run. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from steermoe.cli.display_benchmarks import benchmarks_table
from steermoe.cli.display_evidence import (
    HELD_OUT,
    ablation,
    replication_table,
    selection_lines,
    stability_line,
    with_score,
)
from steermoe.cli.display_figures import figure_rows, group_tables, set_tables
from steermoe.cli.display_scores import controls, forecast, scores
from steermoe.errors import RunDirectoryError
from steermoe.records import NO_BATCH, Expert
from steermoe.report.numbers import ranges
from steermoe.scores import KNOWN, RISK_DIFF
from steermoe.store.names import ABLATION, CONTROL_FIGURES, EVALUATION, MODEL, REPORT, RISK
from steermoe.store.run import Run
from steermoe.store.state import Figures
from steermoe.units import gibibytes


def summary(run: Run) -> Group:
    """The end of `steermoe run`: experts trained, figures before and after, where the files are."""
    parts: list[Any] = [_figures_table(run), *benchmarks_table(run), _cost_table(run)]
    if run.directory.file(EVALUATION).exists():
        parts[1:1] = set_tables(run.evaluation)
    files = Table(title="files", title_justify="left", show_header=False, box=None)
    for name, what in (
        (REPORT, "the report"),
        (MODEL, "the hardened model"),
        (EVALUATION, "the figures"),
    ):
        if run.directory.file(name).exists():
            files.add_row(what, str(run.directory.file(name)))
    return Group(*parts, files)


def overview(run: Run, top: int) -> Group:
    """Stages, figures and the top experts."""
    parts: list[Any] = [_cost_table(run)]
    if run.directory.file(EVALUATION).exists():
        evaluation = run.evaluation
        parts += [_figures_table(run), *set_tables(evaluation), *benchmarks_table(run)]
        parts += group_tables(evaluation)
    if run.directory.file(RISK).exists():
        parts.append(expert_lines(with_score(run).head(top), set(run.unsafe_experts)))
    evidence = (
        *(selection_lines(run), stability_line(run), forecast(run)),
        *(scores(run), replication_table(run)),
    )
    parts += [part for part in evidence if part is not None]
    if run.directory.file(CONTROL_FIGURES).exists():
        parts.append(controls(run))
    if run.directory.file(ABLATION).exists():
        parts.append(ablation(run))
    return Group(*parts)


def one_layer(run: Run, layer: int) -> Text:
    """Every expert of one decoder layer."""
    table = with_score(run)
    table = table[table["layer"] == layer]
    if table.empty:
        known = sorted({int(i) for i in run.risk_diff["layer"]})
        raise RunDirectoryError(
            f"layer {layer} has no experts in this run; its MoE layers are {ranges(known)}"
        )
    return expert_lines(table.sort_values("expert"), set(run.unsafe_experts))


def all_batches(run: Run) -> Table:
    """One line a mixed batch: prompts, tokens, verdicts, and its own selection."""
    responses = run.responses
    chosen = {batch_idx: len(experts) for batch_idx, experts in run.selection.per_batch.items()}
    table = Table("batch", "safe", "unsafe", "tokens", "refused", "unsafe experts", box=None)
    for batch_idx, rows in responses[responses["batch_idx"] >= 0].groupby("batch_idx"):
        index = int(str(batch_idx))
        table.add_row(
            str(index),
            str(int((rows["label"] == "safe").sum())),
            str(int((rows["label"] == "unsafe").sum())),
            str(int(rows["num_generated_tokens"].sum())),
            str(int((rows["verdict"] == "refused").sum())),
            str(chosen.get(index, "-")),
        )
    return table


def one_batch(run: Run, batch_idx: int, top: int) -> Group:
    """The prompts of one mixed batch, and the counts of its top experts."""
    rows = run.responses[run.responses["batch_idx"] == batch_idx].sort_values("in_batch_idx")
    if rows.empty or batch_idx == NO_BATCH:
        last = int(run.responses["batch_idx"].max())
        raise RunDirectoryError(f"there is no batch {batch_idx}: this run has batches 0 to {last}")
    prompts = Table("", "label", "tokens", "verdict", "prompt", box=None)
    for row in rows.to_dict("records"):
        text = str(row["messages"][-1]["content"])
        tokens = f"{row['num_prompt_tokens']} + {row['num_generated_tokens']}"
        shown = text if len(text) <= 70 else text[:67] + "..."
        prompts.add_row(str(row["in_batch_idx"]), row["label"], tokens, row["verdict"], Text(shown))
    table = run.risk_diff_per_batch
    table = table[table["batch_idx"] == batch_idx].sort_values(
        ["risk_diff", "layer", "expert"], ascending=[False, True, True]
    )
    lines = Text()
    for row in table.head(top).to_dict("records"):
        lines.append(
            f"{Expert(row['layer'], row['expert']).label}  {row['risk_diff']:+.4f}  "
            f"safe {row['a_safe']} of {row['n_safe']}  unsafe {row['a_unsafe']} of {row['n_unsafe']}\n"
        )
    return Group(prompts, Text(), lines)


AFTER_SELECTION = ("shrunken", "fcr_low", "fcr_high")
"""What may be said of an expert that was selected for its difference: columns of the risk table."""


def expert_lines(table: pd.DataFrame, selected: AbstractSet[tuple[int, int]]) -> Text:
    """`L08_E42  risk_diff  a_safe_n  a_unsafe_n`, one expert a line; selected ones are starred."""
    extra = [
        name
        for name in (
            *(name for name in KNOWN if name != RISK_DIFF),
            *(name for name in table.columns if ":" in name),
            *(AFTER_SELECTION if "fcr_low" in table.columns else ("ci_low", "ci_high")),
            "q_value",
            "stability",
            "topic_diff",
            "format_diff",
            "length_diff",
            "estimate_unfiltered",
            "at_same_verdict",
            HELD_OUT,
        )
        if name in table.columns
    ]
    if set(table.get("estimator", ())) - {"mean_over_batches"}:
        extra.insert(0, "estimate")  # The interval is not that of the column risk_diff.
    text = Text(
        f"{'expert':<9} {'risk_diff':>9}  {'a_safe_n':>8}  {'a_unsafe_n':>10}"
        + "".join(f"  {name:>{max(9, len(name))}}" for name in extra)
        + "\n"
    )
    for row in table.to_dict("records"):
        star = " *" if (row["layer"], row["expert"]) in selected else ""
        numbers = f"{row['risk_diff']:+9.4f}  {row['a_safe_n']:8.4f}  {row['a_unsafe_n']:10.4f}"
        more = "".join(f"  {row[name]:{max(9, len(name))}.4f}" for name in extra)
        confound = f" {row['confounded_by']}" if row.get("confounded_by") else ""
        text.append(f"{row['Layer_Expert']:<9} {numbers}{more}{star}{confound}\n")
    notes = ["* selected"] if selected else []
    if "fcr_low" in table.columns:
        notes.append("shrunken, fcr: estimate and interval that allow for selection")
    if table.get("confounded_by", pd.Series(dtype=str)).any():
        replies = ("length", "refusal_text")
        named = [name for name in replies if table["confounded_by"].str.contains(name).any()]
        names = ", ".join(["topic", "format", *named])
        notes.append(f"{names}: at least half of the risk difference may be that")
    text.append("; ".join(notes))
    return text


def _figures_table(run: Run) -> Table:
    table = Table(title="figures", title_justify="left", box=None)
    trained = run.state.figures_of("train").get("num_trained_experts")
    if not run.directory.file(EVALUATION).exists():
        table.add_column("")
        table.add_row(
            "nothing was trained" if not trained else "nothing was evaluated: no held-out prompts"
        )
        return table
    evaluation = run.evaluation
    for name in (f"{evaluation['split']} prompts", "before", "after", "p"):
        table.add_column(name)
    for cells in figure_rows(evaluation):
        table.add_row(*cells)
    if trained:
        of_all = run.state.figures_of("identify")["num_experts_in_all"]
        table.add_row("experts trained", "", f"{trained} of {of_all}")
    return table


def _cost_table(run: Run) -> Table:
    table = Table(
        "stage",
        "status",
        "seconds",
        "peak memory",
        "work",
        title="cost",
        title_justify="left",
        box=None,
    )
    seconds = 0.0
    for name, stage in run.state.stages.items():
        done = stage.status == "done"
        seconds += stage.seconds or 0.0
        table.add_row(
            name,
            stage.status,
            f"{stage.seconds:.1f}{stage.attempts}" if done else "",
            gibibytes(stage.peak_memory_bytes or 0) if done else "",
            _work(stage.figures),
        )
    at_least = "more than " if any(s.interrupted for s in run.state.stages.values()) else ""
    table.add_row("all", "", f"{at_least}{seconds:.1f}", "", "")
    return table


def _work(figures: Figures) -> str:
    words = {
        "num_prompts": "prompts",
        "num_prompt_tokens": "prompt tokens",
        "num_generated_tokens": "generated tokens",
        "num_unsafe_experts": "unsafe experts",
        "num_trained_experts": "trained experts",
    }
    return ", ".join(
        f"{figures[key]:,} {word}" for key, word in words.items() if figures.get(key) is not None
    )
