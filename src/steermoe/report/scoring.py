"""The parts of the page about scores: how alike they rank the experts, and what was forecast beside what came of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from steermoe.analysis.forecast import Interval, KindForecast
from steermoe.analysis.rank_correlation import rank_correlations
from steermoe.report.numbers import MISSING, is_number, number, points
from steermoe.report.plotly_parts import DIVERGING, Figure, axis, figure_layout
from steermoe.scores import KNOWN, title_of
from steermoe.store.forecast_file import KINDS, Forecast

OUTCOMES = {"look_alike": "over_refusal_rate_look_alike", "benign": "over_refusal_rate"}
"""The measure that tells what became of a forecast."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One score: its name, what it means, and its rank correlation with each."""

    name: str
    meaning: str
    correlations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForecastRow:
    """What was expected on one kind of prompts, and what came of it."""

    kind: str
    selected: str
    random: str
    difference: str
    outcome: str
    ratio: str


def score_rows(correlations: pd.DataFrame) -> list[ScoreRow]:
    """The table of rank correlations."""
    names = list(correlations.columns)
    return [
        ScoreRow(
            title_of(name),
            KNOWN[name].meaning if name in KNOWN else "",
            tuple(number(correlations.loc[name, other], 2) for other in names),
        )
        for name in names
    ]


def correlations_of(scores: pd.DataFrame | None, layers: Collection[int]) -> pd.DataFrame | None:
    """Rank correlations over the experts that may be selected; None where there is but one score."""
    if scores is None:
        return None
    found = rank_correlations(scores, sorted(layers))
    return found if len(found) > 1 else None


def correlation_map(correlations: pd.DataFrame) -> Figure:
    """Heat map of the rank correlations of all scores."""
    names = list(correlations.columns)
    titles = [title_of(name) for name in names]
    values = [
        [round(float(v), 3) if is_number(float(v)) else None for v in row]
        for row in correlations.to_numpy()
    ]
    side = 44 * len(names)
    places = list(range(len(names)))
    ticks = {"tickvals": places, "ticktext": titles, "showgrid": False}
    pairs = [
        (values[i][j], titles[i], titles[j])
        for i in places
        for j in places[:i]
        if values[i][j] is not None
    ]
    lowest = min(pairs, default=None, key=lambda pair: pair[0] or 0.0)
    unlike = (
        ""
        if lowest is None
        else f" The least alike are {lowest[1]} and {lowest[2]}, {lowest[0]:+.2f}."
    )
    return Figure(
        name="score-correlations",
        description=f"Spearman's rank correlation of {len(names)} scores with one another.{unlike}",
        data=[
            {
                "type": "heatmap",
                "z": values,
                "x": places,
                "y": places,
                "zmin": -1,
                "zmax": 1,
                "zmid": 0,
                "colorscale": DIVERGING,
                "xgap": 1,
                "ygap": 1,
                "customdata": [[f"{a} and {b}" for b in titles] for a in titles],
                "hovertemplate": "<b>%{customdata}</b><br>%{z:.2f}<extra></extra>",
                "colorbar": {"thickness": 10, "outlinewidth": 0},
            }
        ],
        layout=figure_layout(
            height=side + 150,
            margin={"l": 120, "r": 12, "t": 12, "b": 100},
            xaxis=axis("", range=[-0.5, len(names) - 0.5], **{**ticks, "tickangle": 40}),
            yaxis=axis("", range=[len(names) - 0.5, -0.5], **ticks),
        ),
        min_width=side + 180,
        max_width=side + 280,
    )


# ---- the forecast ---------------------------------------------------------------------------------------


def forecast_rows(
    found: Forecast | None, evaluation: Mapping[str, Any] | None
) -> list[ForecastRow]:
    """What was forecast, beside how refusals of the same kind of held-out prompts have changed."""
    if found is None:
        return []
    paired = (evaluation or {}).get("paired", {})
    return [_forecast_row(kind, of_kind, paired) for kind, of_kind in found.kinds.items()]


def _forecast_row(kind: str, found: KindForecast, paired: Mapping[str, Any]) -> ForecastRow:
    outcome = paired.get(OUTCOMES.get(kind, ""))
    gained = (paired.get("refusal_rate") or {}).get("value")
    lost = (outcome or {}).get("value")
    ratio = MISSING
    if gained is not None and lost is not None and gained > 0:
        ratio = number(lost / gained, 2)
    random = MISSING
    if found.random.value is not None:
        random = f"{number(found.random.value, 2)} ({number(found.least, 2)} to {number(found.largest, 2)})"
    return ForecastRow(
        kind=KINDS[kind].capitalize(),
        selected=_with_interval(found.selected),
        random=random,
        difference=_with_interval(found.beyond_random),
        outcome=_change(outcome),
        ratio=ratio,
    )


def _with_interval(found: Interval) -> str:
    if found.value is None:
        return MISSING
    if found.ci_low is None:
        return number(found.value, 2)
    return f"{number(found.value, 2)} ({number(found.ci_low, 2)} to {number(found.ci_high, 2)})"


def _change(metric: Mapping[str, Any] | None) -> str:
    if metric is None or not is_number(metric.get("value")):
        return MISSING
    if not is_number(metric.get("ci_low")):
        return points(metric["value"])
    return f"{points(metric['value'])} ({points(metric['ci_low'])} to {points(metric['ci_high'])})"


def scores_part(
    scores: pd.DataFrame | None,
    layers: Collection[int],
    found: Forecast | None,
    evaluation: Mapping[str, Any] | None,
) -> Mapping[str, object]:
    """What the template shows of scores and forecast."""
    correlations = correlations_of(scores, layers)
    names: Sequence[str] = [] if correlations is None else list(correlations.columns)
    return {
        "scores": [] if correlations is None else score_rows(correlations),
        "score_names": [title_of(name) for name in names],
        "forecast": forecast_rows(found, evaluation),
        "num_forecast": 0 if found is None else found.num_experts,
        "num_forecast_draws": max((k.num_draws for k in found.kinds.values()), default=0)
        if found is not None
        else 0,
    }
