"""The report's figures: the map of experts, the differences in each batch, the course of training.

Shape legend: L MoE layers, E experts, B mixed batches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from steermoe.analysis.risk import expert_label
from steermoe.records import Expert
from steermoe.report.numbers import counted, is_number, signed
from steermoe.report.plotly_parts import (
    DIVERGING,
    WIDTH,
    Figure,
    Plotly,
    axis,
    figure_layout,
    font,
    rounded,
    ticks,
)

MAX_EXPERTS_SHOWN = 50
"""Rows of the figure of differences per batch."""


def risk_map(risk: pd.DataFrame, selected: Collection[Expert]) -> Figure:
    """Layer x expert heat map of risk difference, with the selected experts outlined.

    The longer side lies along the page: experts of a wide model, layers of a deep one with few experts.

    Args:
        risk: The aggregated risk table.
        selected: Experts to outline.
    """
    layers = sorted({int(layer) for layer in risk["layer"]})
    experts = list(range(int(risk["expert"].max()) + 1))
    is_deep = len(layers) > len(experts)
    across, down = (layers, experts) if is_deep else (experts, layers)
    titles = ("decoder layer", "expert") if is_deep else ("expert", "decoder layer")
    place = {layer: i for i, layer in enumerate(layers)}

    def cell(layer: int, expert: int) -> tuple[int, int]:
        """Column and row."""
        return (place[layer], expert) if is_deep else (expert, place[layer])

    z: list[list[float | None]] = [[None] * len(across) for _ in down]
    details: list[list[list[Any]]] = [[[] for _ in across] for _ in down]
    for record in risk.to_dict("records"):
        expert = (int(record["layer"]), int(record["expert"]))
        column, row = cell(*expert)
        z[row][column] = rounded(record["risk_diff"])
        details[row][column] = _details(record, expert in selected)
    limit = max((abs(v) for values in z for v in values if v is not None), default=0.0) or 1.0
    outlined = sorted(expert for expert in selected if expert[0] in place)
    width = max(280.0, min(WIDTH - 64.0, 56.0 * len(across)))
    height = min(26.0, max(9.0, 600 / len(down))) * len(down)
    return Figure(
        name="risk-map",
        description=_describe_map(risk, layers, len(experts), outlined),
        data=[
            _heat(z, details, limit),
            _outlines([cell(*expert) for expert in outlined], len(across)),
        ],
        layout=figure_layout(
            height=round(height) + 100,
            margin={"l": 52, "r": 12, "t": 56, "b": 44},
            xaxis=axis(
                titles[0],
                range=[-0.5, len(across) - 0.5],
                showgrid=False,
                **ticks(across, width, 30),
            ),
            yaxis=axis(
                titles[1], range=[len(down) - 0.5, -0.5], showgrid=False, **ticks(down, height, 18)
            ),
        ),
        min_width=round(64 + max(4.6 * len(across), 200)),
        max_width=round(64 + width),
        zoom=True,
    )


def _heat(z: Any, details: Any, limit: float) -> Plotly:
    """The coloured cells; `z` and `details` are indexed by row, then column."""
    return {
        "type": "heatmap",
        "z": z,
        "customdata": details,
        "zmin": -limit,
        "zmax": limit,
        "zmid": 0,
        "colorscale": DIVERGING,
        "xgap": 1 if len(z[0]) <= 64 else 0,
        "ygap": 1 if len(z[0]) <= 64 else 0,
        "hoverongaps": False,
        "hovertemplate": (
            "<b>%{customdata[0]}</b> %{customdata[1]}<br>risk difference %{customdata[2]}"
            "<br>active on unsafe prompts %{customdata[3]:.1%}"
            "<br>active on safe prompts %{customdata[4]:.1%}"
            "<br>unsafe: %{customdata[5]}<br>safe: %{customdata[6]}"
            "<br>pooled difference %{customdata[7]}<extra></extra>"
        ),
        "colorbar": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "xpad": 0,
            "y": 1,
            "yanchor": "bottom",
            "ypad": 6,
            "len": 240,
            "lenmode": "pixels",
            "thickness": 10,
            "tickvals": [-limit, 0, limit],
            "ticktext": [signed(-limit, 2), "0", signed(limit, 2)],
            "tickfont": font(11, "var(--muted)"),
            "outlinewidth": 0,
        },
    }


def _details(record: Mapping[Any, Any], is_selected: bool) -> list[Any]:
    """What a cell says when it is pointed at."""
    return [
        expert_label(int(record["layer"]), int(record["expert"])),
        "selected" if is_selected else "",
        signed(record["risk_diff"], 4),
        rounded(record["a_unsafe_n"]),
        rounded(record["a_safe_n"]),
        f"{int(record['a_unsafe']):,} of {int(record['n_unsafe']):,} tokens",
        f"{int(record['a_safe']):,} of {int(record['n_safe']):,} tokens",
        signed(record["risk_diff_pooled"], 4),
    ]


def _outlines(cells: Sequence[tuple[int, int]], num_columns: int) -> Plotly:
    """A square around each `(column, row)`, in one line that is broken between them."""
    x: list[float | None] = []
    y: list[float | None] = []
    for column, row in cells:
        x += [column - 0.5, column + 0.5, column + 0.5, column - 0.5, column - 0.5, None]
        y += [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": {"color": "var(--ink)", "width": 2 if num_columns <= 64 else 1.5},
        "hoverinfo": "skip",
        "cliponaxis": False,
    }


def differences_per_batch(per_batch: pd.DataFrame, selected: Sequence[Expert]) -> Figure | None:
    """One row an expert, one dot a mixed batch; None where there is nothing to show."""
    found = _by_expert(per_batch, selected[:MAX_EXPERTS_SHOWN])
    if not found:
        return None
    names = [expert_label(*expert) for expert in found]
    rows = list(enumerate(zip(names, found.values(), strict=True)))
    dots = [(row, name, *dot) for row, (name, values) in rows for dot in values]
    means = [sum(value for _, value in values) / len(values) for values in found.values()]
    num_batches = len({batch_idx for _, _, batch_idx, _ in dots})
    always = sum(all(value > 0 for _, value in values) for values in found.values())
    return Figure(
        name="per-batch",
        description=(
            f"{counted(len(found), 'expert')} in {counted(num_batches, 'batch', 'batches')}, "
            f"{always} of them above zero in every batch."
        ),
        data=[
            {
                "type": "scatter",
                "mode": "markers",
                "name": "one batch",
                "x": [rounded(value) for *_, value in dots],
                "y": [row for row, *_ in dots],
                "customdata": [[name, batch_idx, signed(x, 4)] for _, name, batch_idx, x in dots],
                "marker": {"size": 7, "color": "var(--after)", "opacity": 0.55},
                "hovertemplate": "%{customdata[0]}, batch %{customdata[1]}: %{customdata[2]}<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "mean of the batches",
                "x": [rounded(mean) for mean in means],
                "y": list(range(len(found))),
                "customdata": [[n, signed(m, 4)] for n, m in zip(names, means, strict=True)],
                "marker": {
                    "symbol": "line-ns",
                    "size": 12,
                    "line": {"width": 3, "color": "var(--ink)"},
                },
                "hovertemplate": "%{customdata[0]}, mean: %{customdata[1]}<extra></extra>",
            },
        ],
        layout=figure_layout(
            height=(18 if len(found) <= 30 else 14) * len(found) + 90,
            margin={"l": 76, "r": 16, "t": 36, "b": 44},
            xaxis=axis("risk difference", zeroline=True, rangemode="tozero", nticks=7),
            yaxis=axis("", range=[len(found) - 0.4, -0.6], **ticks(names, 18 * len(found), 1)),
            showlegend=True,
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": font(12)},
        ),
        min_width=300,
        max_width=760,
    )


def _by_expert(
    per_batch: pd.DataFrame, experts: Sequence[Expert]
) -> dict[Expert, list[tuple[int, float]]]:
    """`(batch_idx, risk_diff)` of every batch, for those of the experts that have any, in their order."""
    found: dict[Expert, list[tuple[int, float]]] = {expert: [] for expert in experts}
    columns = (per_batch[name] for name in ("layer", "expert", "batch_idx", "risk_diff"))
    for layer, expert, batch_idx, value in zip(*columns, strict=True):
        pair = Expert(int(layer), int(expert))
        if pair in found and is_number(float(value)):
            found[pair].append((int(batch_idx), float(value)))
    return {expert: values for expert, values in found.items() if values}


CURVES = (
    ("loss", "loss", "var(--ink)"),
    ("refusal_loss", "refusal loss (cross entropy)", "var(--after)"),
    ("retention_kl", "retention (KL to the base model)", "var(--before)"),
)
"""What is logged while training: key, name and colour."""

PANEL_GAP = 0.14
"""Space between panels, as a share of the figure."""


def training_curve(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Losses over the steps, one panel each, since they are of different sizes; None without steps."""
    curves = []
    for key, name, colour in CURVES:
        points = [
            (int(entry["step"]), float(entry[key]))
            for entry in history
            if is_number(entry.get("step")) and is_number(entry.get(key))
        ]
        if points:
            curves.append((name, colour, points))
    if not curves:
        return None
    last_step = max(points[-1][0] for *_, points in curves)
    steps = {"dtick": 1} if last_step <= 8 else {"nticks": 8}  # no half steps
    panel = (1 - PANEL_GAP * (len(curves) - 1)) / len(curves)
    axes: Plotly = {}
    for i in range(len(curves)):
        suffix = _suffix(i)
        top = 1 - i * (panel + PANEL_GAP)
        title = "optimizer step" if i == len(curves) - 1 else ""
        shared = {"matches": "x"} if i else {}
        axes[f"xaxis{suffix}"] = axis(title, anchor=f"y{suffix}", **steps, **shared)
        axes[f"yaxis{suffix}"] = axis(
            "", domain=[max(0.0, top - panel), top], rangemode="tozero", nticks=4
        )
    said = [f"{name} went from {p[0][1]:.3f} to {p[-1][1]:.3f}" for name, _, p in curves]
    return Figure(
        name="training",
        description=f"Over {last_step} steps {'; '.join(said)}.",
        data=[_curve(i, *curve) for i, curve in enumerate(curves)],
        layout=figure_layout(
            height=150 * len(curves) + 70,
            margin={"l": 56, "r": 16, "t": 28, "b": 46},
            annotations=[
                _panel_name(name, axes[f"yaxis{_suffix(i)}"]["domain"][1])
                for i, (name, *_) in enumerate(curves)
            ],
            **axes,
        ),
        min_width=300,
        max_width=760,
    )


def _suffix(panel: int) -> str:
    """How plotly numbers axes: x, x2, x3."""
    return "" if panel == 0 else str(panel + 1)


def _curve(panel: int, name: str, colour: str, points: Sequence[tuple[int, float]]) -> Plotly:
    return {
        "type": "scatter",
        "mode": "lines" if len(points) > 1 else "markers",
        "name": name,
        "x": [step for step, _ in points],
        "y": [rounded(value) for _, value in points],
        "xaxis": f"x{_suffix(panel)}",
        "yaxis": f"y{_suffix(panel)}",
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 7},
        "hovertemplate": "step %{x}: %{y:.4f}<extra></extra>",
    }


def _panel_name(name: str, top: float) -> Plotly:
    return {
        "text": name,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "yref": "paper",
        "y": top,
        "yanchor": "bottom",
        "showarrow": False,
        "font": font(12),
    }


def _describe_map(
    risk: pd.DataFrame, layers: Sequence[int], num_experts: int, outlined: Sequence[Expert]
) -> str:
    ordered = risk.sort_values(["risk_diff", "layer", "expert"], kind="stable").to_dict("records")
    lowest, highest = ordered[0], ordered[-1]

    def named(record: Mapping[Any, Any]) -> str:
        label = expert_label(int(record["layer"]), int(record["expert"]))
        return f"{signed(record['risk_diff'])} at {label}"

    text = (
        f"{counted(len(layers), 'layer')} (decoder layers {layers[0]} to {layers[-1]}) by "
        f"{counted(num_experts, 'expert')}. "
        f"Risk difference runs from {named(lowest)} to {named(highest)}. "
    )
    if not outlined:
        return text + "No expert is selected."
    first, last = outlined[0][0], outlined[-1][0]
    return text + (
        f"{counted(len(outlined), 'selected expert')} outlined, in layers {first} to {last}."
    )
