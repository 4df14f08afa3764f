"""Routing of another kind than `simulate`, whose inclusion probabilities are known exactly.

A layer's experts are divided into as many slots as a token chooses experts, and a token chooses one expert of
each slot. A slot's weights are nested Dirichlets: the goal's scatter about the layer's, a reply's about its
goal's. So a reply's weights *are* the chances that a token of it chooses each expert, they add up to K over a
layer, and their expectation is the layer's own whatever the spread: classes may differ in spread, in length and
in both, and every expert's true difference is still exactly 0.

A token repeats its predecessor's choices with a fixed chance, which leaves those chances as they are. Lengths are
log-normal with heavy tails; refusals are short. Replies may begin in a way of their own (`opening_tokens`), and
refusals may have words of their own (`refusal_text`): then length, or refusing, makes a difference that no class has.

Shape legend: N replies, G goals, L MoE layers, K slots, B experts of a slot, E = K * B experts, R topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from steermoe.analysis.counts import RoutingCounts
from steermoe.records import BoolArray, FloatArray, IntArray

Goals = Literal["paired", "unpaired"]

FIFTH = 0.2
"""Share of the replies that the one large goal has (`large_goal`)."""


@dataclass(frozen=True, slots=True)
class NestedModel:
    """How replies route.

    Attributes:
        num_layers: MoE layers, L.
        num_slots: Experts that a token chooses, K.
        slot_size: Experts of a slot, B.
        base_spread: Concentration, an expert, of the layers' own weights: the smaller, the more unevenly
            experts are used.
        goal_concentration: How closely goals keep to their layer's weights.
        reply_concentration: How closely safe and unsafe replies keep to their goal's.
        symmetric: Replies differ from their goal by a shift that is as likely up as down, instead of by a Dirichlet,
            which is skewed; `reply_concentration` is then the largest shift, as a share of the rarer expert's weight.
        topic_concentration: How closely topics keep to the layer's weights; topic 0 is the layer's own.
        repeat: Chance that a token repeats its predecessor's choices.
        mean_tokens: Mean length of a reply that does not refuse.
        tail: Spread of its length on the log scale.
        most_tokens: Longest reply.
        refusal_tokens: Mean length of a refusal.
        opening_tokens: Tokens of a reply that count as its opening.
        opening_text: Share of the opening's routing that is the opening's own, whatever the reply.
        refusal_text: Share of a refusal's routing that is the refusal's own, whatever the goal.
    """

    num_layers: int = 4
    num_slots: int = 8
    slot_size: int = 8
    base_spread: float = 0.6
    goal_concentration: float = 20.0
    reply_concentration: tuple[float, float] = (20.0, 20.0)
    symmetric: bool = False
    topic_concentration: float = 20.0
    repeat: float = 0.35
    mean_tokens: float = 45.0
    tail: float = 0.9
    most_tokens: int = 400
    refusal_tokens: float = 10.0
    opening_tokens: int = 8
    opening_text: float = 0.0
    refusal_text: float = 0.0

    @property
    def num_experts(self) -> int:
        """Experts of a layer, E."""
        return self.num_slots * self.slot_size


@dataclass(frozen=True, slots=True)
class Plan:
    """Which replies there are.

    Attributes:
        goal_of: `(N,)` 0 .. G-1.
        is_unsafe: `(N,)`.
        refuses: `(N,)` whether a reply is a short refusal.
        topic_of: `(G,)` topic of each goal, 0 for the layer's own.
    """

    goal_of: IntArray
    is_unsafe: BoolArray
    refuses: BoolArray
    topic_of: IntArray

    def __len__(self) -> int:
        return len(self.goal_of)


@dataclass(frozen=True, slots=True)
class NestedRun:
    """One simulated data set.

    Attributes:
        counts: Counts of N replies; the prompt segment is empty.
        opening: The same of the replies' openings alone.
        plan: Which replies there are.
        goals: `(N,)` the goal of each reply, as text.
        batch_idx: `(N,)` mixed batch of each reply, -1 for leftovers.
        inclusion: `(N, L, E)` the exact chance that a token of the reply, whichever, chooses each expert.
        truth: `(L, E)` the exact difference that was planted between unsafe and safe.
    """

    counts: RoutingCounts
    opening: RoutingCounts
    plan: Plan
    goals: list[str]
    batch_idx: IntArray
    inclusion: FloatArray
    truth: FloatArray

    @property
    def is_unsafe(self) -> BoolArray:
        """`(N,)`."""
        return self.plan.is_unsafe


@dataclass(frozen=True, slots=True)
class Effects:
    """What is planted in unsafe replies.

    Attributes:
        risk_diff: Of `(layer, expert)` how much more often it fires, at most one of a slot. The others of its slot fire
            less often, in proportion to their weights.
        variation: Spread of the effect between goals, as a share of its mean (coefficient of variation).
    """

    risk_diff: Mapping[tuple[int, int], float] = field(default_factory=dict)
    variation: float = 0.0


def simulate_nested(
    model: NestedModel,
    plan: Plan,
    seed: int,
    *,
    effects: Effects | None = None,
    half_batch: int = 8,
) -> NestedRun:
    """Simulate the routing of the replies of a plan.

    Args:
        model: How they route.
        plan: Which there are.
        seed: Seeds everything but the plan.
        effects: What is planted; by default nothing.
        half_batch: Replies of either class in a mixed batch.
    """
    generator = np.random.default_rng([seed, 1])
    base = draw_base(model, generator)
    weights = draw_weights(model, plan, base, generator)
    truth = plant(model, weights, base, plan, effects or Effects(), generator)
    tokens = draw_lengths(model, plan, generator)
    early = np.minimum(tokens, model.opening_tokens)
    own = _dirichlet(
        np.full(base.shape, model.base_spread), generator
    )  # of an opening, whatever the reply
    of_opening = (1 - model.opening_text) * weights + model.opening_text * own
    at_first = draw_counts(model, of_opening, early, generator)
    later = draw_counts(model, weights, tokens - early, generator)
    share = (early / tokens)[:, None, None, None]
    inclusion = share * of_opening + (1 - share) * weights
    return NestedRun(
        counts=_counts(model, at_first + later, tokens),
        opening=_counts(model, at_first, early),
        plan=plan,
        goals=[f"goal {goal}" for goal in plan.goal_of],
        batch_idx=mixed_batches(plan.is_unsafe, half_batch, generator),
        inclusion=inclusion.reshape(len(plan), model.num_layers, -1),
        truth=truth,
    )


def plan_replies(
    num_per_class: int,
    seed: int,
    *,
    goals: Goals = "paired",
    num_unsafe: int | None = None,
    large_goal: bool = False,
    refusals: tuple[float, float] = (0.0, 0.0),
    topics: tuple[int, int] = (0, 0),
) -> Plan:
    """Which replies there are.

    Args:
        num_per_class: Safe replies, and as many unsafe ones.
        seed: Seeds who refuses and the sizes of goals.
        goals: `paired`: a goal has as many replies of either class. `unpaired`: of one class only.
        num_unsafe: Unsafe replies, if their number differs (unpaired only).
        large_goal: One goal (unpaired: of either class one) has a fifth of the replies, and the others have 1, 2, 3 ..
            with chances as 1, 1/4, 1/9 ..; by default every goal has one reply of a class.
        refusals: Share of the safe and of the unsafe replies that are short refusals.
        topics: Topic of safe and of unsafe goals (unpaired only).
    """
    generator = np.random.default_rng([seed, 0])
    numbers = (num_per_class, num_per_class if num_unsafe is None else num_unsafe)
    if goals == "paired":
        if numbers[0] != numbers[1] or topics[0] != topics[1]:
            raise ValueError("a pair has one reply of either class, and one topic")
        goal_of = _goal_numbers(num_per_class, large_goal, generator)
        by_class = [goal_of, goal_of]
    else:
        by_class = [_goal_numbers(number, large_goal, generator) for number in numbers]
        by_class[1] = by_class[1] + by_class[0].max() + 1
    goal_of = np.concatenate(by_class)
    is_unsafe = np.repeat([False, True], numbers)
    topic_of = np.full(goal_of.max() + 1, topics[0])
    topic_of[by_class[1]] = topics[1]
    share = np.where(is_unsafe, refusals[1], refusals[0])
    return Plan(goal_of, is_unsafe, generator.random(len(goal_of)) < share, topic_of)


def draw_base(model: NestedModel, generator: np.random.Generator) -> FloatArray:
    """The layers' own weights `(L, K, B)`, that of a slot adding up to 1."""
    shape = (model.num_layers, model.num_slots, model.slot_size)
    return _dirichlet(np.full(shape, model.base_spread), generator)


def draw_weights(
    model: NestedModel, plan: Plan, base: FloatArray, generator: np.random.Generator
) -> FloatArray:
    """Every reply's chances `(N, L, K, B)`: layer, topic, goal, reply."""
    of_topic = [base]
    for _ in range(int(plan.topic_of.max())):
        of_topic.append(_dirichlet(model.topic_concentration * base, generator))
    of_goal = _dirichlet(model.goal_concentration * np.stack(of_topic)[plan.topic_of], generator)[
        plan.goal_of
    ]
    spread = np.where(plan.is_unsafe, model.reply_concentration[1], model.reply_concentration[0])
    spread = spread[:, None, None, None]
    weights = (
        _exchanged(of_goal, spread, generator)
        if model.symmetric
        else _dirichlet(spread * of_goal, generator)
    )
    text = model.refusal_text * plan.refuses[:, None, None, None]
    own = _dirichlet(np.full(base.shape, model.base_spread), generator)
    return np.asarray((1 - text) * weights + text * own)


def plant(
    model: NestedModel,
    weights: FloatArray,
    base: FloatArray,
    plan: Plan,
    effects: Effects,
    generator: np.random.Generator,
) -> FloatArray:
    """Raise planted experts in unsafe replies, in place; the exact difference that this makes, `(L, E)`.

    An expert's chance w becomes `w + a (1 - w)`, the others' of its slot `(1 - a) w`. The effect a of a goal is
    drawn from a Beta distribution, so that its mean and its spread are exact and no chance leaves [0, 1].
    """
    truth = np.zeros(base.shape)
    unsafe = np.flatnonzero(plan.is_unsafe)
    slots: set[tuple[int, int]] = set()
    for (layer, expert), size in effects.risk_diff.items():
        slot, place = divmod(expert, model.slot_size)
        if (layer, slot) in slots:
            raise ValueError(f"two planted experts share slot {slot} of layer {layer}")
        slots.add((layer, slot))
        mean = size / (1 - base[layer, slot, place])
        of_goal = _beta(mean, effects.variation, len(plan.topic_of), generator)
        effect = of_goal[plan.goal_of[unsafe]][:, None]
        raised = np.eye(model.slot_size)[place]
        own = weights[unsafe, layer, slot]
        weights[unsafe, layer, slot] = (1 - effect) * own + effect * raised
        truth[layer, slot] = mean * (raised - base[layer, slot])
    return truth.reshape(model.num_layers, -1)


def draw_lengths(model: NestedModel, plan: Plan, generator: np.random.Generator) -> IntArray:
    """Tokens of every reply, at least one."""
    mean = np.where(plan.refuses, model.refusal_tokens, model.mean_tokens)
    tail = np.where(plan.refuses, 0.3, model.tail)
    drawn = mean * np.exp(generator.normal(-(tail**2) / 2, tail))
    return np.asarray(np.clip(np.rint(drawn), 1, model.most_tokens), dtype=np.int64)


def draw_counts(
    model: NestedModel, weights: FloatArray, tokens: IntArray, generator: np.random.Generator
) -> IntArray:
    """How many of its tokens each reply sends to each expert, `(N, L, K, B)`.

    Tokens that repeat their predecessor make runs; of each reply's runs of one length, the choices are multinomial.
    """
    counts = np.zeros(weights.shape, dtype=np.int64)
    number = run_lengths(tokens, model.repeat, generator)  # (N, longest + 1)
    for length in range(1, number.shape[1]):
        rows = np.flatnonzero(number[:, length])
        drawn = generator.multinomial(number[rows, length][:, None, None], weights[rows])
        counts[rows] += length * drawn
    return counts


def run_lengths(tokens: IntArray, repeat: float, generator: np.random.Generator) -> IntArray:
    """How many runs of each length a reply's tokens form, `(N, longest + 1)`."""
    longest = int(tokens.max(initial=0))
    begins = generator.random((len(tokens), longest)) >= repeat
    begins[:, :1] = True
    begins &= np.arange(longest) < tokens[:, None]
    reply, start = np.nonzero(begins)
    is_last = np.append(reply[1:] != reply[:-1], True) if len(reply) else np.zeros(0, dtype=bool)
    end = np.where(is_last, tokens[reply], np.append(start[1:], 0))
    length = end - start
    most = int(length.max(initial=0))
    flat = np.bincount(reply * (most + 1) + length, minlength=len(tokens) * (most + 1))
    return np.asarray(flat.reshape(len(tokens), most + 1))


def mixed_batches(
    is_unsafe: BoolArray, half_batch: int, generator: np.random.Generator
) -> IntArray:
    """Mixed batches of as many replies of either class, at random; the two of a pair stay together."""
    batch_idx = np.full(len(is_unsafe), -1, dtype=np.int64)
    sides = [np.flatnonzero(is_unsafe == unsafe) for unsafe in (False, True)]
    fewer = min(map(len, sides))
    order = generator.permutation(fewer)
    number = fewer // half_batch
    for side in sides:
        chosen = side[order[: number * half_batch]]
        batch_idx[chosen] = np.arange(len(chosen)) // half_batch
    return batch_idx


def _goal_numbers(number: int, large_goal: bool, generator: np.random.Generator) -> IntArray:
    if not large_goal:
        return np.arange(number)
    sizes = [round(FIFTH * number)]
    possible = np.arange(1, 6)
    chance = 1 / possible**2
    while sum(sizes) < number:
        size = int(generator.choice(possible, p=chance / chance.sum()))
        sizes.append(min(size, number - sum(sizes)))
    return np.repeat(np.arange(len(sizes)), sizes)


def _dirichlet(concentration: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Weights along the last axis."""
    drawn = generator.standard_gamma(concentration) + 1e-300
    return np.asarray(drawn / drawn.sum(axis=-1, keepdims=True))


def _exchanged(
    weights: FloatArray, largest: FloatArray, generator: np.random.Generator
) -> FloatArray:
    """Neighbours in the order of weight exchange a part of the rarer one's, in either direction alike."""
    order = np.argsort(weights, axis=-1)
    sorted_weights = np.take_along_axis(weights, order, axis=-1)
    rarer = sorted_weights[..., 0::2][..., : weights.shape[-1] // 2]
    shift = largest * rarer * generator.uniform(-1, 1, rarer.shape)
    moved = sorted_weights.copy()
    moved[..., 0 : 2 * rarer.shape[-1] : 2] += shift
    moved[..., 1 : 2 * rarer.shape[-1] : 2] -= shift
    result = np.empty_like(moved)
    np.put_along_axis(result, order, moved, axis=-1)
    return result


def _beta(mean: float, variation: float, number: int, generator: np.random.Generator) -> FloatArray:
    if variation == 0:
        return np.full(number, mean)
    concentration = (1 - mean) / (mean * variation**2) - 1
    if not 0 < mean < 1 or concentration <= 0:
        raise ValueError(f"no effect of mean {mean} in 0 .. 1 varies by {variation} of its size")
    return generator.beta(mean * concentration, (1 - mean) * concentration, number)


def _counts(model: NestedModel, active: IntArray, tokens: IntArray) -> RoutingCounts:
    flat = active.reshape(len(tokens), model.num_layers, -1)
    both = np.stack([np.zeros_like(flat), flat], axis=1)
    num_tokens = np.stack([np.zeros_like(tokens), tokens], axis=1)
    return RoutingCounts(both, num_tokens, tuple(range(model.num_layers)))
