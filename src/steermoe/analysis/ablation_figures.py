"""What `ablation.json` holds, key by key."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from steermoe.metrics import MetricJson


class RandomSets(TypedDict):
    """How like the random draws are to the selected set: in activation frequency, and in what they share with it."""

    mean_frequency_selected: float | None
    mean_frequency_draws: float | None
    num_draws: int
    num_distinct_draws: int
    num_possible_sets: NotRequired[float | None]
    mean_overlap: float | None
    least_overlap: int | None
    largest_overlap: int | None


class Rank(TypedDict):
    """Where the selected set lies among the random draws (`ablation.Position`)."""

    p_value: float
    percentile: float
    num_draws: int


class SetFigures(MetricJson):
    """One metric of one set: the figure while it is switched off, and what that changes."""

    effect: MetricJson
    among_random: Rank | None
    beyond_random: NotRequired[MetricJson]


class RandomEffects(TypedDict):
    """One metric of the random draws: how far they differ from the intact model."""

    num_draws: int
    mean_effect: float | None
    least_effect: float | None
    largest_effect: float | None


class MetricFigures(TypedDict):
    """One metric of a model, with no expert switched off and with each set."""

    intact: MetricJson
    selected: NotRequired[SetFigures]
    lowest: NotRequired[SetFigures]
    random: RandomEffects


class DescribedSet(TypedDict):
    """A set that was switched off."""

    set: str
    draw: int
    num_experts: int
    num_deactivated: int
    overlap_with_selected: int
    mean_frequency: float
    kept_active: list[str]
    experts: list[str]


class AblationFigures(TypedDict):
    """The whole file."""

    measures: str
    split: str
    num_prompts: dict[str, int]
    max_tokens: int
    random: RandomSets
    sets: list[DescribedSet]
    models: dict[str, dict[str, MetricFigures]]
