"""What the page's figures are made of, as plotly specifications in plain dicts.

Colours are written as `var(--name)`: the page's script replaces them with those of its style sheet, so that figures
follow light, dark and print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steermoe.report.numbers import is_number

WIDTH = 1000
"""Pixels a figure may take; the page's column is as wide."""

DIVERGING = [
    [0.0, "var(--negative)"],
    [0.25, "var(--negative-half)"],
    [0.5, "var(--neutral)"],
    [0.75, "var(--positive-half)"],
    [1.0, "var(--positive)"],
]
"""Blue to orange-red through neutral: told apart with every common kind of colour blindness."""


Plotly = dict[str, Any]
"""A part of a figure, in the words of Plotly's own schema."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the page.

    Attributes:
        name: Fixed, the end of its element's id.
        description: What it shows, for those who do not see it.
        data: Plotly traces.
        layout: Plotly layout; its height is fixed.
        min_width: Pixels below which it scrolls inside its frame instead of shrinking.
        max_width: Pixels above which it does not grow.
        zoom: Whether dragging zooms.
    """

    name: str
    description: str
    data: list[Plotly]
    layout: Plotly
    min_width: int
    max_width: int = WIDTH
    zoom: bool = False

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.layout["height"])


def ticks(labels: Sequence[int | str], pixels: float, spacing: float) -> Plotly:
    """Labels at regular places, so that no two come nearer than `spacing` pixels."""
    step = next(
        (
            s
            for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128)
            if pixels / len(labels) * s >= spacing
        ),
        256,
    )
    places = list(range(0, len(labels), step))
    return {"tickvals": places, "ticktext": [str(labels[place]) for place in places]}


def axis(title: str, **more: Any) -> Plotly:
    """One axis as all figures have it."""
    return {
        "title": {"text": title, "font": font(12, "var(--muted)")},
        "tickfont": font(11, "var(--muted)"),
        "gridcolor": "var(--line)",
        "zeroline": False,
        "zerolinecolor": "var(--muted)",
        "zerolinewidth": 1,
        "ticks": "",
        "tickangle": 0,
        **more,
    }


def figure_layout(**more: Any) -> Plotly:
    """What the layouts of all figures share."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": font(12, "var(--ink)"),
        "hoverlabel": {
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--line)",
            "font": font(13, "var(--ink)"),
            "align": "left",
        },
        "showlegend": False,
        "autosize": True,
        **more,
    }


def font(size: int, colour: str = "var(--ink)") -> Plotly:
    """A font of the page's own family."""
    family = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
    return {"family": family, "size": size, "color": colour}


def rounded(value: Any) -> float | None:
    """A number as the page holds it; None where it is none."""
    return round(float(value), 6) if is_number(float(value)) else None
