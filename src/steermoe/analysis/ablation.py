"""Deactivated experts: which sets of them are compared, and what the comparison says.

Two uncertainties are kept apart. Intervals are over prompts: what other goals would have shown for the same experts.
The rank among random draws is over experts: what other experts of the same layers and activation frequencies do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pandas as pd

from steermoe.analysis.ablation_figures import (
    MetricFigures,
    RandomEffects,
    RandomSets,
    Rank,
    SetFigures,
)
from steermoe.analysis.matched_sets import MatchedSets
from steermoe.analysis.rates import change, mean_per_token, rate
from steermoe.analysis.selection import (
    SelectionSettings,
    activation_frequencies,
    create_expert_mask,
    resolve_rule,
)
from steermoe.metrics import IntervalArguments, Metric
from steermoe.records import BoolArray, Expert, FloatArray, Verdict

INTACT, SELECTED, LOWEST, RANDOM = "intact", "selected", "lowest", "random"
REFUSAL, REPLY, DIVERGENCE, VERDICT = "refusal", "reply", "kl", "verdict"
UNSAFE, LOOK_ALIKES, BENIGN = "unsafe", "look_alike", "benign"

METRICS: dict[str, tuple[str, str]] = {
    "refusal_log_prob": (REFUSAL, UNSAFE),
    "reply_log_prob_unsafe": (REPLY, UNSAFE),
    "reply_log_prob_look_alike": (REPLY, LOOK_ALIKES),
    "reply_log_prob_benign": (REPLY, BENIGN),
    "kl_per_token": (DIVERGENCE, BENIGN),
    "refusal_rate": (VERDICT, UNSAFE),
    "over_refusal_rate": (VERDICT, BENIGN),
    "over_refusal_rate_look_alike": (VERDICT, LOOK_ALIKES),
}
"""Of each figure: what is measured, and on which kind of prompt."""

SCORE_COLUMNS = ("set", "draw", "measure", "prompt_id", "kind", "goal", "total", "num_tokens")
"""Of the table that `summarise` reads, with `verdict` beside them."""

TABLE_COLUMNS = (
    *("set", "draw", "metric", "value", "ci_low", "ci_high"),
    *("effect", "effect_ci_low", "effect_ci_high", "n", "num_unscored"),
)
"""Of the table that `summarise` returns."""

UNCHANGED = Metric(0.0, 0.0, 0.0, 0, 0)
"""The intact model's difference to itself."""

_TIE = 1 + 1e-12
"""Distances that differ by rounding alone are equal."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """One set of experts to deactivate.

    Attributes:
        name: `intact` (none), `selected`, `lowest` or `random`.
        draw: Number of the random draw; 0 of the other sets.
        experts: The set, as it was asked for.
        kept: Those of it that stay active, because their layer would be left with fewer than top-k experts.
        overlap: How many of `experts` are in the selected set too.
        mean_frequency: Mean activation frequency of `experts` in the base model.
        num_sets: Of the selected set: how many sets, itself among them, it could as well have been
            (`matched_sets.MatchedSets`).
    """

    name: str
    draw: int = 0
    experts: tuple[Expert, ...] = ()
    kept: tuple[Expert, ...] = ()
    overlap: int = 0
    mean_frequency: float = 0.0
    num_sets: int = 0

    @property
    def deactivated(self) -> tuple[Expert, ...]:
        """The experts that no token reaches any more."""
        return tuple(expert for expert in self.experts if expert not in self.kept)

    def allowed(self, layer_indices: Sequence[int], num_experts: int) -> BoolArray:
        """`(L, E)`, true where an expert may be chosen."""
        return ~create_expert_mask(
            len(layer_indices), num_experts, self.deactivated, tuple(layer_indices)
        )


def plan_ablations(
    table: pd.DataFrame, selected: Sequence[Expert], num_draws: int, top_k: int, seed: int
) -> list[Ablation]:
    """The sets to compare: none, the selected one, the one of lowest risk difference, and random ones.

    All have as many experts as the selected set. Random ones are different sets that have as many of every layer and
    stratum of activation frequency, and may share experts with it (`matched_sets`).

    Args:
        table: The risk table, one row for each of the model's experts.
        selected: The experts in question, at least one.
        num_draws: Random sets; fewer where there are no more.
        top_k: Experts that a layer must keep.
        seed: Seeds the draws.

    Returns:
        The intact model first, then `selected`, `lowest`, and the draws in order.
    """
    lowest = resolve_rule(LOWEST, SelectionSettings(threshold=-1.0, top_k=len(selected)))(table)
    sets = [(SELECTED, 0, list(selected)), (LOWEST, 0, lowest)]
    frequency = activation_frequencies(table)
    matched = MatchedSets(frequency, selected)
    sets += [
        (RANDOM, draw, list(experts)) for draw, experts in enumerate(matched.draw(num_draws, seed))
    ]
    chosen = set(selected)
    return [Ablation(INTACT)] + [
        Ablation(
            name,
            draw,
            experts=tuple(experts),
            kept=kept_active(table, experts, top_k),
            overlap=len(chosen & {*experts}),
            mean_frequency=float(np.mean([frequency[expert] for expert in experts])),
            num_sets=matched.number if name == SELECTED else 0,
        )
        for name, draw, experts in sets
    ]


def kept_active(table: pd.DataFrame, experts: Sequence[Expert], top_k: int) -> tuple[Expert, ...]:
    """Which experts of a set must stay active, so that every layer keeps `top_k` to choose from.

    Args:
        table: The risk table, one row for each of the model's experts.
        experts: The set that is to be deactivated.
        top_k: Experts that a layer must keep.

    Returns:
        Of each layer that has too few others, those of the set with the smallest risk difference; of equal
        differences the expert that comes first.
    """
    asked = set(experts)
    kept: list[Expert] = []
    for layer, rows in table.groupby("layer"):
        of_set = [
            (float(risk), int(expert))
            for expert, risk in zip(rows["expert"], rows["risk_diff"], strict=True)
            if (layer, expert) in asked
        ]
        num_missing = top_k - (len(rows) - len(of_set))
        kept += [
            Expert(int(str(layer)), expert) for _, expert in sorted(of_set)[: max(0, num_missing)]
        ]
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Position:
    """Where one set lies among random draws.

    Attributes:
        p_value: `(1 + draws at least as extreme) / (1 + draws)`; extreme is far from the median of the set and all
            draws together, to either side. It cannot be below `1 / (1 + draws)`.
        percentile: Share of the draws that lie below, ties counted half: 0 below all of them, 1 above all.
        num_draws: How many draws there are.
    """

    p_value: float
    percentile: float
    num_draws: int

    def as_json(self) -> Rank:
        """As `ablation.json` holds it."""
        return Rank(p_value=self.p_value, percentile=self.percentile, num_draws=self.num_draws)


def position_among(value: float, draws: Sequence[float]) -> Position | None:
    """Where a value lies among draws; None where there are none."""
    if not len(draws):
        return None
    drawn = np.asarray(draws, dtype=np.float64)
    centre = float(np.median([value, *drawn]))
    num_extreme = int((np.abs(drawn - centre) * _TIE >= abs(value - centre)).sum())
    num_below, num_equal = int((drawn < value).sum()), int((drawn == value).sum())
    return Position(
        p_value=(1 + num_extreme) / (1 + len(drawn)),
        percentile=(num_below + num_equal / 2) / len(drawn),
        num_draws=len(drawn),
    )


def matching_figures(ablations: Sequence[Ablation]) -> RandomSets:
    """How like the random draws are to the selected set: in activation frequency, and in what they share with it."""
    draws = [ablation for ablation in ablations if ablation.name == RANDOM]
    overlaps = [draw.overlap for draw in draws]
    selected = [ablation for ablation in ablations if ablation.name == SELECTED]
    return {
        "mean_frequency_selected": selected[0].mean_frequency if selected else None,
        "mean_frequency_draws": float(np.mean([d.mean_frequency for d in draws]))
        if draws
        else None,
        "num_draws": len(draws),
        "num_distinct_draws": len({frozenset(draw.experts) for draw in draws}),
        "num_possible_sets": _as_json_number(selected[0].num_sets) if selected else None,
        "mean_overlap": float(np.mean(overlaps)) if draws else None,
        "least_overlap": min(overlaps, default=None),
        "largest_overlap": max(overlaps, default=None),
    }


def _as_json_number(number: int) -> float:
    """Numbers that readers in other languages would not hold exactly are rounded."""
    return number if number < 2**53 else float(f"{number:.3e}")


def summarise(
    scores: pd.DataFrame, intervals: IntervalArguments
) -> tuple[pd.DataFrame, dict[str, MetricFigures]]:
    """Figures of one model: every set on its own, and against the intact model and the random draws.

    Args:
        scores: One row for each set, draw, measure and prompt: `SCORE_COLUMNS` and `verdict`. `total` is a sum over
            the tokens of a reply (log-probability or divergence, in nats); verdicts have none. Every set has the same
            prompts in the same order.
        intervals: `confidence, num_bootstrap, seed` of the intervals.

    Returns:
        A table with one row for each set, draw and metric that is defined (`TABLE_COLUMNS`; nothing is NaN), and for
        each metric `intact, selected, lowest, random`. An `effect` is the difference to the intact model on the same
        prompts; `among_random` is the rank of the effect, `beyond_random` the difference to the mean of the draws on
        the same prompts.
    """
    records: list[dict[str, object]] = []
    figures: dict[str, MetricFigures] = {}
    for metric, (measure, kind) in METRICS.items():
        rows = scores[(scores["measure"] == measure) & (scores["kind"] == kind)]
        by_set = {
            (str(name), int(str(draw))): group
            for (name, draw), group in rows.groupby(["set", "draw"], sort=False)
        }
        if not by_set:
            continue
        measured = {key: _measured(metric, group, intervals) for key, group in by_set.items()}
        intact = by_set[(INTACT, 0)]
        effects = {
            key: _effect(metric, intact, group, intervals)
            for key, group in by_set.items()
            if key[0] != INTACT
        }
        records += [
            _record(key, metric, measured[key], effects.get(key, UNCHANGED))
            for key in by_set
            if measured[key].value is not None and effects.get(key, UNCHANGED).value is not None
        ]
        figures[metric] = _figures_of(metric, by_set, measured, effects, intervals)
    return pd.DataFrame(records, columns=list(TABLE_COLUMNS)), figures


_Key = tuple[str, int]


def _measured(metric: str, group: pd.DataFrame, intervals: IntervalArguments) -> Metric:
    if METRICS[metric][0] == VERDICT:
        return rate(
            _refusals(group), list(group["goal"]), worse=metric != "refusal_rate", **intervals
        )
    return _per_token(group["total"].to_numpy(dtype=np.float64), group, intervals)


def _effect(
    metric: str, intact: pd.DataFrame, group: pd.DataFrame, intervals: IntervalArguments
) -> Metric:
    assert list(intact["prompt_id"]) == list(group["prompt_id"])
    if METRICS[metric][0] == VERDICT:
        return change(_refusals(intact), _refusals(group), list(group["goal"]), **intervals)
    return _per_token((group["total"].to_numpy() - intact["total"].to_numpy()), group, intervals)


def _figures_of(
    metric: str,
    by_set: Mapping[_Key, pd.DataFrame],
    measured: Mapping[_Key, Metric],
    effects: Mapping[_Key, Metric],
    intervals: IntervalArguments,
) -> MetricFigures:
    """What `ablation.json` holds of one metric."""
    draws = [key for key in effects if key[0] == RANDOM and effects[key].value is not None]
    drawn = [value for draw in draws if (value := effects[draw].value) is not None]
    figures: MetricFigures = {
        "intact": measured[(INTACT, 0)].as_json(),
        "random": RandomEffects(
            num_draws=len(drawn),
            mean_effect=float(np.mean(drawn)) if drawn else None,
            least_effect=min(drawn, default=None),
            largest_effect=max(drawn, default=None),
        ),
    }
    names: tuple[Literal["selected", "lowest"], ...] = ("selected", "lowest")
    for name in names:
        key = (name, 0)
        if key not in effects:
            continue
        beyond = None
        if METRICS[metric][0] != VERDICT and draws:
            mean = np.mean([by_set[draw]["total"].to_numpy() for draw in draws], axis=0)
            totals = by_set[key]["total"].to_numpy() - mean
            beyond = _per_token(totals, by_set[key], intervals)
        figures[name] = _of_set(measured[key], effects[key], drawn, beyond)
    return figures


def _of_set(
    measured: Metric, effect: Metric, drawn: Sequence[float], beyond: Metric | None
) -> SetFigures:
    position = None if effect.value is None else position_among(effect.value, drawn)
    more: dict[str, object] = {
        "effect": effect.as_json(),
        "among_random": None if position is None else position.as_json(),
    }
    if beyond is not None:
        more["beyond_random"] = beyond.as_json()
    return cast("SetFigures", measured.as_json() | more)


def _per_token(totals: FloatArray, group: pd.DataFrame, intervals: IntervalArguments) -> Metric:
    """Mean over tokens."""
    num_tokens, goals = group["num_tokens"].tolist(), group["goal"].tolist()
    return mean_per_token(totals.tolist(), num_tokens, goals, **intervals)


def _refusals(group: pd.DataFrame) -> list[bool | None]:
    return [
        None if verdict == Verdict.UNSCORED else verdict == Verdict.REFUSED
        for verdict in group["verdict"]
    ]


def _record(key: _Key, metric: str, measured: Metric, effect: Metric) -> dict[str, object]:
    """One row of `ablation.parquet`. An interval that one goal cannot give rules nothing out."""

    def bound(end: float | None, unknown: float) -> float:
        return unknown if end is None else end

    return {
        "set": key[0],
        "draw": key[1],
        "metric": metric,
        "value": measured.value,
        "ci_low": bound(measured.ci_low, -np.inf),
        "ci_high": bound(measured.ci_high, np.inf),
        "effect": effect.value,
        "effect_ci_low": bound(effect.ci_low, -np.inf),
        "effect_ci_high": bound(effect.ci_high, np.inf),
        "n": measured.n,
        "num_unscored": measured.num_unscored,
    }
