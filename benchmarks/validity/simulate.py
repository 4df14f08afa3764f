"""Simulated routing with a known truth, to check what the statistics claim.

Each response has its own routing preferences: a base preference for every expert, plus what its goal and
the response itself add, part of it through topics that move many experts of many layers together. Tokens
then choose their top-k by adding noise, so that experts of a layer compete as they do in a model. The
tokens of a response share its preferences and are therefore not independent, which is the point.

Shape legend: N responses, T tokens, L MoE layers, E experts, K top-k, F topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from steermoe.analysis.counts import RoutingCounts
from steermoe.records import BoolArray, IntArray

Float32Array = npt.NDArray[np.float32]

Design = Literal["paired", "unpaired", "clustered"]

EFFECT_SPREAD = 0.5
"""Spread, on the log scale, of a planted effect between prompts."""

EARLY_TOKENS = 8
"""Tokens of a reply that count as its beginning, where routing may differ (`position_spread`)."""


@dataclass(frozen=True, slots=True)
class RoutingModel:
    """How simulated responses route. Log preferences; all spreads are standard deviations.

    The defaults give the variation between prompts of which plain token-level tests make 40 % false
    alarms at the 5 % level.

    Attributes:
        num_layers: MoE layers, L.
        num_experts: Experts of a layer, E.
        top_k: Experts a token chooses, K.
        base_spread: Spread of the experts' base preferences: how unevenly experts are used.
        prompt_spread: Spread between responses; half of its variance belongs to the goal.
        spread_ratio: How much that spread itself differs between experts (log scale).
        topic_share: Share of the variance between responses that comes through topics.
        num_topics: Topics, F.
        position_spread: How much a reply's first tokens differ from the later ones.
        mean_tokens: Mean generated tokens of a safe and of an unsafe response.
        token_spread: Spread of a response's length on the log scale.
    """

    num_layers: int = 4
    num_experts: int = 64
    top_k: int = 8
    base_spread: float = 1.2
    prompt_spread: float = 1.0
    spread_ratio: float = 0.3
    topic_share: float = 0.5
    num_topics: int = 8
    position_spread: float = 0.0
    mean_tokens: tuple[float, float] = (48.0, 48.0)
    token_spread: float = 0.3


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """One simulated data set.

    Attributes:
        counts: Counts of N responses; the prompt segment is empty.
        is_unsafe: `(N,)`.
        goals: `(N,)` the goal of each response, as text.
        batch_idx: `(N,)` mixed batch of each response, -1 for leftovers.
        planted: `(layer, expert)` whose frequency was raised in unsafe responses.
    """

    counts: RoutingCounts
    is_unsafe: BoolArray
    goals: list[str]
    batch_idx: IntArray
    planted: list[tuple[int, int]] = field(default_factory=list)


def simulate_run(
    model: RoutingModel,
    num_per_class: int,
    seed: int,
    *,
    design: Design = "paired",
    planted: Sequence[tuple[int, int]] = (),
    risk_diff: float = 0.0,
    batch_size: int = 16,
) -> SimulatedRun:
    """Simulate the routing of safe and unsafe responses.

    Args:
        model: How responses route.
        num_per_class: Safe responses, and as many unsafe ones.
        seed: Seeds everything.
        design: `paired`: each goal has one response of either class. `unpaired`: each response has a
            goal of its own. `clustered`: goals have one to ten responses, all of one class.
        planted: Experts whose activation frequency is raised in unsafe responses.
        risk_diff: By how much.
        batch_size: Responses of a mixed batch, half of either class.

    Returns:
        The data set. Without `planted` the two classes have the same distribution, so every expert's
        true risk difference is 0 (with unequal `mean_tokens` and `position_spread` 0 as well).
    """
    generator = np.random.default_rng(seed)
    goal_of, is_unsafe = _goals(design, num_per_class, generator)
    preferences = _preferences(model, goal_of, generator)
    num_tokens = _lengths(model, is_unsafe, generator)
    active = _route(model, preferences, num_tokens, generator)
    _plant(active, num_tokens, is_unsafe, planted, risk_diff, generator)
    tokens = np.stack([np.zeros_like(num_tokens), num_tokens], axis=1)
    both = np.stack([np.zeros_like(active), active], axis=1)
    counts = RoutingCounts(both, tokens, tuple(range(model.num_layers)))
    goals = [f"goal {goal}" for goal in goal_of]
    return SimulatedRun(counts, is_unsafe, goals, batches_of(is_unsafe, batch_size), list(planted))


def batches_of(is_unsafe: BoolArray, batch_size: int) -> IntArray:
    """Mixed batches in the order given, half of either class; what fills no batch gets -1."""
    batch_idx = np.full(len(is_unsafe), -1, dtype=np.int64)
    half = batch_size // 2
    num_batches = min(int(is_unsafe.sum()), int((~is_unsafe).sum())) // half
    for side in (is_unsafe, ~is_unsafe):
        rows = np.flatnonzero(side)[: num_batches * half]
        batch_idx[rows] = np.arange(len(rows)) // half
    return batch_idx


def _goals(
    design: Design, num_per_class: int, generator: np.random.Generator
) -> tuple[IntArray, BoolArray]:
    is_unsafe = np.repeat([False, True], num_per_class)
    if design == "paired":
        return np.tile(np.arange(num_per_class), 2), is_unsafe
    if design == "unpaired":
        return np.arange(2 * num_per_class), is_unsafe
    goal_of: list[int] = []
    for _ in range(2):
        left = num_per_class
        while left > 0:
            # Most goals have one response, a few have ten.
            size = min(left, int(generator.choice([1, 1, 1, 2, 3, 10])))
            goal_of += [(goal_of[-1] + 1) if goal_of else 0] * size
            left -= size
    return np.asarray(goal_of), is_unsafe


def _preferences(
    model: RoutingModel, goal_of: IntArray, generator: np.random.Generator
) -> Float32Array:
    """Log preferences `(N, L, E)`: base, plus goal, plus response."""
    shape = (model.num_layers, model.num_experts)
    base = generator.normal(0, model.base_spread, shape)
    spread = model.prompt_spread * np.exp(generator.normal(0, model.spread_ratio, shape))
    loadings = generator.normal(size=(model.num_topics, *shape)) / np.sqrt(model.num_topics)

    def effects(number: int) -> npt.NDArray[np.float64]:
        topics = generator.normal(size=(number, model.num_topics))
        shared = np.tensordot(topics, loadings, axes=1)
        own = generator.normal(size=(number, *shape))
        return np.asarray(
            np.sqrt(model.topic_share) * shared + np.sqrt(1 - model.topic_share) * own
        )

    of_goal = effects(int(goal_of.max()) + 1)[goal_of]
    of_response = effects(len(goal_of))
    total = base + spread * np.sqrt(0.5) * (of_goal + of_response)
    return np.asarray(total, dtype=np.float32)


def _lengths(model: RoutingModel, is_unsafe: BoolArray, generator: np.random.Generator) -> IntArray:
    mean = np.where(is_unsafe, model.mean_tokens[1], model.mean_tokens[0])
    spread = np.exp(generator.normal(-(model.token_spread**2) / 2, model.token_spread, len(mean)))
    return np.asarray(np.maximum(1, np.rint(mean * spread)), dtype=np.int64)


def _route(
    model: RoutingModel,
    preferences: Float32Array,
    num_tokens: IntArray,
    generator: np.random.Generator,
) -> IntArray:
    """Activation counts `(N, L, E)`: tokens choose the K experts of least `exponential / weight`.

    That is the Gumbel top-k trick: it draws K experts without replacement, by weight.
    """
    active = np.zeros(preferences.shape, dtype=np.int32)
    weight = np.exp(preferences)
    drift = np.exp(generator.normal(0, model.position_spread, preferences.shape[1:]))
    order = np.argsort(-num_tokens, kind="stable")
    for position in range(int(num_tokens.max())):
        rows = order[: int((num_tokens > position).sum())]
        keys = generator.standard_exponential((len(rows), *drift.shape), dtype=np.float32)
        keys /= weight[rows]
        if position < EARLY_TOKENS:
            keys /= drift.astype(np.float32)
        kth = np.partition(keys, model.top_k - 1, axis=-1)[..., model.top_k - 1 : model.top_k]
        active[rows] += keys <= kth
    return active


def _plant(
    active: IntArray,
    num_tokens: IntArray,
    is_unsafe: BoolArray,
    planted: Sequence[tuple[int, int]],
    risk_diff: float,
    generator: np.random.Generator,
) -> None:
    """Raise the planted experts' frequency in unsafe responses, each time in place of another expert."""
    for layer, expert in planted:
        frequency = active[:, layer, expert].sum() / num_tokens.sum()
        chance = risk_diff / (1 - frequency)
        for row in np.flatnonzero(is_unsafe):
            # Prompts differ in how strongly they draw the expert, too.
            drawn = chance * np.exp(generator.normal(-(EFFECT_SPREAD**2) / 2, EFFECT_SPREAD))
            counts = active[row, layer]
            free = int(num_tokens[row] - counts[expert])
            added = int(generator.binomial(free, min(1.0, drawn)))
            others = counts.copy()
            others[expert] = 0
            counts -= generator.multivariate_hypergeometric(others, added)
            counts[expert] += added
