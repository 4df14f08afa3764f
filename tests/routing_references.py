"""Ordinary routing over the allowed experts only, token by token, in plain loops.

Written from the definition of each routing family, on Python floats: no tensor operation, no masking by
infinities. The allowed experts are the only experts that exist. Every function returns the weight of
each chosen expert, `{expert: weight}`; experts that are not in it weigh nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Weights = dict[int, float]


@dataclass(frozen=True)
class Token:
    """What a router knows of one token.

    Attributes:
        logits: One a routed expert.
        allowed: The experts that exist.
        top_k: How many to choose, at most.
        bias: Added to the scores for the choice alone.
        shared_logits: Logits of shared experts, where the router scores them too.
        expert_scale: A factor for each expert's weight.
    """

    logits: Sequence[float]
    allowed: Sequence[int]
    top_k: int
    bias: Sequence[float] = field(default_factory=list)
    shared_logits: Sequence[float] = field(default_factory=list)
    expert_scale: Sequence[float] = field(default_factory=list)


Routing = Callable[[Token], Weights]


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def root_of_softplus(x: float) -> float:
    return math.sqrt(math.log1p(math.exp(x)))


def softmax(values: dict[int, float]) -> Weights:
    total = sum(math.exp(value) for value in values.values())
    return {expert: math.exp(value) / total for expert, value in values.items()}


def largest(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda expert: -scores[expert])[:count]


def normalised(weights: Weights) -> Weights:
    total = sum(weights.values())
    return {expert: weight / total for expert, weight in weights.items()}


def scaled(weights: Weights, factor: float) -> Weights:
    return {expert: weight * factor for expert, weight in weights.items()}


def softmax_then_top_k(normalise: bool, biased: bool = False) -> Routing:
    def route(token: Token) -> Weights:
        probabilities = softmax({e: token.logits[e] for e in token.allowed})
        choice = {e: p + (token.bias[e] if biased else 0.0) for e, p in probabilities.items()}
        chosen = {e: probabilities[e] for e in largest(choice, token.top_k)}
        chosen = normalised(chosen) if normalise else chosen
        if token.expert_scale:
            chosen = {e: weight * token.expert_scale[e] for e, weight in chosen.items()}
        return chosen

    return route


def top_k_then_softmax(token: Token) -> Weights:
    logits = {e: token.logits[e] for e in token.allowed}
    return softmax({e: logits[e] for e in largest(logits, token.top_k)})


def top_k_then_sigmoid(token: Token) -> Weights:
    logits = {e: token.logits[e] for e in token.allowed}
    return normalised({e: sigmoid(logits[e]) for e in largest(logits, token.top_k)})


def best_groups(
    choice: dict[int, float], num_experts: int, num_groups: int, kept: int, members: int
) -> list[int]:
    """Experts of the best groups; a group is worth the sum of its `members` best experts."""
    size = num_experts // num_groups
    worth = {}
    for group in range(num_groups):
        scores = sorted((choice[e] for e in choice if e // size == group), reverse=True)
        if scores:
            worth[group] = sum(scores[:members])
    groups = largest(worth, kept)
    return [e for e in choice if e // size in groups]


def softmax_in_groups(normalise: bool, members: int, num_groups: int = 2, kept: int = 1) -> Routing:
    def route(token: Token) -> Weights:
        probabilities = softmax({e: token.logits[e] for e in token.allowed})
        inside = best_groups(probabilities, len(token.logits), num_groups, kept, members)
        chosen = largest({e: probabilities[e] for e in inside}, token.top_k)
        weights = {e: probabilities[e] for e in chosen}
        return normalised(weights) if normalise else weights

    return route


def scores_plus_bias(
    normalise: bool = True,
    scale: float = 1.0,
    num_groups: int = 1,
    kept: int = 1,
    score: Callable[[float], float] = sigmoid,
    biased: bool = True,
) -> Routing:
    def route(token: Token) -> Weights:
        scores = {e: score(token.logits[e]) for e in token.allowed}
        choice = {e: s + (token.bias[e] if biased else 0.0) for e, s in scores.items()}
        if num_groups > 1:
            inside = best_groups(choice, len(token.logits), num_groups, kept, members=2)
            choice = {e: choice[e] for e in inside}
        weights = {e: scores[e] for e in largest(choice, token.top_k)}
        return scaled(normalised(weights) if normalise else weights, scale)

    return route


def logits_plus_bias(token: Token) -> Weights:
    """Kolibri: the bias is added to the logits, the weights are normalised sigmoids."""
    choice = {e: token.logits[e] + token.bias[e] for e in token.allowed}
    return normalised({e: sigmoid(token.logits[e]) for e in largest(choice, token.top_k)})


def shared_with_routed(scale: float) -> Routing:
    """Inkling: the sigmoids of chosen and shared experts are normalised together."""

    def route(token: Token) -> Weights:
        scores = {e: sigmoid(token.logits[e]) for e in token.allowed}
        chosen = largest({e: s + token.bias[e] for e, s in scores.items()}, token.top_k)
        total = sum(scores[e] for e in chosen) + sum(sigmoid(x) for x in token.shared_logits)
        return {e: scale * token.expert_scale[e] * scores[e] / total for e in chosen}

    return route


def sparse_mixer(threshold: float) -> Routing:
    """Phi-MoE: the best expert, weighed among those within a threshold of it; then the next best."""

    def weight(best: int, logits: dict[int, float], candidates: list[int]) -> float:
        near = {}
        for e in candidates:
            factor = max(abs(logits[e]), logits[best])
            if (logits[best] - logits[e]) / factor <= 2 * threshold:
                near[e] = logits[e]
        return softmax(near)[best]

    def route(token: Token) -> Weights:
        logits = {e: token.logits[e] for e in token.allowed}
        first = largest(logits, 1)[0]
        weights = {first: weight(first, logits, list(logits))}
        rest = [e for e in logits if e != first]
        if rest:
            second = largest({e: logits[e] for e in rest}, 1)[0]
            weights[second] = weight(second, logits, rest)
        return weights

    return route
