"""Recorded experts and their weights, against routing worked token by token from the published formulas.

A reference is given the router's weight, its bias and one hidden state, as Python floats, and nothing that
the model computed from them. It works in plain loops and says by how much its closest decision was made, so
that tokens whose scores tie within rounding are left out, and counted.

Shape legend: B sequences, S positions, T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch

from architectures import BY_NAME, token_ids
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.routing import RoutingRecorder

PAD = 0
TIE = 1e-5
"""Decisions closer than this may fall either way in fp32."""

Scores = dict[int, float]


@dataclass
class Decisions:
    """Takes the largest, and remembers the closest call."""

    margin: float = math.inf

    def largest(self, scores: Scores, count: int) -> list[int]:
        ordered = sorted(scores, key=lambda expert: -scores[expert])
        if len(ordered) > count:
            self.note(scores[ordered[count - 1]] - scores[ordered[count]])
        return ordered[:count]

    def note(self, distance: float) -> None:
        self.margin = min(self.margin, abs(distance))


Reference = Callable[[Sequence[float], Sequence[float], int, Decisions], Scores]
"""`(logits, bias, top_k, decisions) -> {expert: weight}`; the bias has a number for each expert."""


def matrix_product(weight: list[list[float]], hidden: list[float]) -> list[float]:
    return [math.fsum(w * x for w, x in zip(row, hidden, strict=True)) for row in weight]


def softmax(logits: Scores) -> Scores:
    powers = {expert: math.exp(logit) for expert, logit in logits.items()}
    return {expert: power / math.fsum(powers.values()) for expert, power in powers.items()}


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def shares(weights: Scores) -> Scores:
    total = math.fsum(weights.values())
    return {expert: weight / total for expert, weight in weights.items()}


def softmax_then_top_k(
    logits: Sequence[float],
    bias: Sequence[float],
    top_k: int,
    decisions: Decisions,
    normalised: bool = False,
) -> Scores:
    """Qwen2-MoE, OLMoE (arXiv:2409.02060, eq. 2), Hunyuan, Jamba; ERNIE 4.5 chooses with the bias added."""
    probabilities = softmax(dict(enumerate(logits)))
    chosen = decisions.largest({e: p + bias[e] for e, p in probabilities.items()}, top_k)
    weights = {e: probabilities[e] for e in chosen}
    return shares(weights) if normalised else weights


def top_k_then_softmax(
    logits: Sequence[float], bias: Sequence[float], top_k: int, decisions: Decisions
) -> Scores:
    """Mixtral: Softmax(TopK(x W)) (arXiv:2401.04088, section 2.1); Granite; gpt-oss with a bias on the logits."""
    biased = {e: logit + bias[e] for e, logit in enumerate(logits)}
    return softmax({e: biased[e] for e in decisions.largest(biased, top_k)})


def sigmoid_plus_bias(
    logits: Sequence[float],
    bias: Sequence[float],
    top_k: int,
    decisions: Decisions,
    groups: int = 1,
    kept: int = 1,
    scale: float = 1.0,
) -> Scores:
    """DeepSeek-V3 (arXiv:2412.19437, eqs. 12 to 16), and without groups LFM2 and MiniMax-M2.

    The bias counts in the choice alone. A group is worth the sum of its two best biased scores.
    """
    affinity = {e: sigmoid(logit) for e, logit in enumerate(logits)}
    biased = {e: score + bias[e] for e, score in affinity.items()}
    size = len(logits) // groups
    worth = {}
    for group in range(groups):
        members = sorted((biased[e] for e in range(group * size, (group + 1) * size)), reverse=True)
        worth[group] = members[0] + members[1]
    best = decisions.largest(worth, kept)
    chosen = decisions.largest({e: s for e, s in biased.items() if e // size in best}, top_k)
    return {e: scale * share for e, share in shares({e: affinity[e] for e in chosen}).items()}


def group_limited_greedy(
    logits: Sequence[float],
    bias: Sequence[float],
    top_k: int,
    decisions: Decisions,
    groups: int,
    kept: int,
    scale: float,
) -> Scores:
    """DeepSeek-V2 (arXiv:2405.04434, section 2.2.2): a group is worth its best expert; weights are not normalised."""
    probabilities = softmax(dict(enumerate(logits)))
    size = len(logits) // groups
    worth = {g: max(probabilities[g * size + i] for i in range(size)) for g in range(groups)}
    best = decisions.largest(worth, kept)
    inside = {e: p for e, p in probabilities.items() if e // size in best}
    return {e: scale * probabilities[e] for e in decisions.largest(inside, top_k)}


def sparse_mixer(
    logits: Sequence[float],
    bias: Sequence[float],
    top_k: int,
    decisions: Decisions,
    threshold: float,
) -> Scores:
    """Phi-MoE: SparseMixer-v2 (arXiv:2409.12136), when it does not train.

    The best expert is weighed among those that are relatively close to it; the same again without it.
    """
    weights: Scores = {}
    left = dict(enumerate(logits))
    for _ in range(top_k):
        (best,) = decisions.largest(left, 1)
        close = {}
        for expert, logit in left.items():
            distance = (left[best] - logit) / max(abs(logit), left[best])
            decisions.note(distance - 2 * threshold)
            if distance <= 2 * threshold:
                close[expert] = logit
        weights[best] = softmax(close)[best]
        del left[best]
    return weights


@dataclass(frozen=True)
class Case:
    """A router to check.

    Attributes:
        name: The architecture of the matrix.
        reference: How its published formula routes.
        options: What is changed in its config.
        top_k: K, with those options.
        weight: Path of the router's weight, from its block.
        bias: Path of the router's bias, from its block; empty if it has none.
        plain: Whether the experts chosen are those of the largest logits.
    """

    name: str
    reference: Reference
    options: dict[str, Any] = field(default_factory=dict)
    top_k: int = 2
    weight: str = "gate.weight"
    bias: str = ""
    plain: bool = True


GROUPS = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
IN_GROUPS = {"groups": 4, "kept": 2, "scale": 2.5}
AFFINITY_IN_GROUPS = {
    "reference": partial(sigmoid_plus_bias, **IN_GROUPS),
    "options": {**GROUPS, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "top_k": 4,
    "bias": "gate.e_score_correction_bias",
    "plain": False,
}
NORMALISED = partial(softmax_then_top_k, normalised=True)
ROUTER = {"weight": "router.weight"}

CASES = {
    "qwen2_moe": Case("qwen2_moe", softmax_then_top_k, {"norm_topk_prob": False}),
    "qwen2_moe normalised": Case("qwen2_moe", NORMALISED, {"norm_topk_prob": True}),
    "qwen3_moe normalised": Case("qwen3_moe", NORMALISED, {"norm_topk_prob": True}),
    "olmoe": Case("olmoe", softmax_then_top_k, {"norm_topk_prob": False}),
    "olmoe normalised": Case("olmoe", NORMALISED, {"norm_topk_prob": True}),
    "jamba": Case("jamba", softmax_then_top_k, **ROUTER),
    "hunyuan": Case("hunyuan_v1_moe", NORMALISED, weight="gate.wg.weight"),
    "ernie4_5": Case(
        "ernie4_5_moe",
        NORMALISED,
        bias="gate.moe_statics.e_score_correction_bias",
        plain=False,
    ),
    "mixtral": Case("mixtral", top_k_then_softmax),
    "gpt_oss": Case("gpt_oss", top_k_then_softmax, bias="router.bias", plain=False, **ROUTER),
    "granitemoe": Case("granitemoe", top_k_then_softmax, **ROUTER),
    "granitemoeshared": Case("granitemoeshared", top_k_then_softmax, **ROUTER),
    "granitemoehybrid": Case("granitemoehybrid", top_k_then_softmax, **ROUTER),
    "deepseek_v3": Case("deepseek_v3", **AFFINITY_IN_GROUPS),
    "glm4_moe": Case("glm4_moe", **AFFINITY_IN_GROUPS),
    "nemotron_h": Case("nemotron_h", **AFFINITY_IN_GROUPS),
    "deepseek_v2": Case(
        "deepseek_v2",
        partial(group_limited_greedy, **IN_GROUPS),
        {**GROUPS, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.5},
        top_k=4,
        plain=False,
    ),
    "deepseek_v2 greedy": Case(
        "deepseek_v2",
        partial(group_limited_greedy, groups=1, kept=1, scale=2.5),
        {"topk_method": "greedy", "routed_scaling_factor": 2.5},
    ),
    "lfm2_moe": Case(
        "lfm2_moe",
        partial(sigmoid_plus_bias, scale=1.5),
        {"use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.5},
        bias="expert_bias",
        plain=False,
    ),
    "minimax_m2": Case(
        "minimax_m2", sigmoid_plus_bias, bias="e_score_correction_bias", plain=False
    ),
    "phimoe": Case(
        "phimoe", partial(sparse_mixer, threshold=0.3), {"router_jitter_noise": 0.3}, **ROUTER
    ),
}


# Probabilities 1/8, 2/8, 4/8, 1/8, and sigmoids 1/2, 2/3, 4/5, 1/2.
LOGITS = (0.0, math.log(2), math.log(4), 0.0)
NO_BIAS = (0.0,) * 4


@pytest.mark.parametrize(
    ("reference", "bias", "expected"),
    [
        (softmax_then_top_k, NO_BIAS, {2: 1 / 2, 1: 1 / 4}),
        (NORMALISED, NO_BIAS, {2: 2 / 3, 1: 1 / 3}),
        # 1/8 + 1/4 beats 2/8, and weighs as 1/8.
        (NORMALISED, (0.25, 0.0, 0.0, 0.0), {2: 4 / 5, 0: 1 / 5}),
        (top_k_then_softmax, NO_BIAS, {2: 2 / 3, 1: 1 / 3}),
        # Expert 0 has the logit ln 4 too, through its bias.
        (top_k_then_softmax, (math.log(4), 0.0, 0.0, 0.0), {2: 1 / 2, 0: 1 / 2}),
        # 2/3 and 4/5 have the sum 22/15.
        (sigmoid_plus_bias, NO_BIAS, {2: 6 / 11, 1: 5 / 11}),
        # Groups (0, 1) and (2, 3): 1/2 + 2/3 + 1/5 beats 4/5 + 1/2, and the weights are 3/7 and 4/7.
        (partial(sigmoid_plus_bias, groups=2), (0.2, 0.0, 0.0, 0.0), {0: 3 / 7, 1: 4 / 7}),
        # The best expert alone speaks for its group: (2, 3) wins, and nothing is normalised.
        (
            partial(group_limited_greedy, groups=2, kept=1, scale=2.0),
            NO_BIAS,
            {2: 1.0, 3: 1 / 4},
        ),
        # ln 2 is half of ln 4 away from it: beyond 2 x 0.2, within 2 x 0.25 (1e-9 for rounding).
        (partial(sparse_mixer, threshold=0.2), NO_BIAS, {2: 1.0, 1: 1.0}),
        (partial(sparse_mixer, threshold=0.25 + 1e-9), NO_BIAS, {2: 2 / 3, 1: 1.0}),
    ],
)
def test_the_references_on_numbers_worked_by_hand(
    reference: Reference, bias: Sequence[float], expected: Scores
) -> None:
    assert reference(LOGITS, bias, 2, Decisions()) == pytest.approx(expected)


def test_a_tie_is_noticed() -> None:
    decisions = Decisions()
    softmax_then_top_k(LOGITS, NO_BIAS, 3, decisions)  # experts 0 and 3 are equal
    assert decisions.margin == 0


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `(4, 12)` of sequences that are 12, 7, 3 and 9 long, padded on the left, and their mask."""
    ids = token_ids(4, 12)
    for row, length in enumerate((12, 7, 3, 9)):
        ids[row, : 12 - length] = PAD
    return ids, (ids != PAD).long()


def tensor_at(block: torch.nn.Module, path: str) -> torch.Tensor:
    owner, _, name = path.rpartition(".")
    tensor: torch.Tensor = getattr(block.get_submodule(owner), name)
    return tensor.detach().double()


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_recorded_experts_and_their_weights_are_those_of_the_published_formula(case: Case) -> None:
    architecture = BY_NAME[case.name]
    model = replace(architecture, options=architecture.options | case.options).build(seed=1)
    layers = find_moe_layers(model).layers
    hidden_LTD: list[torch.Tensor] = []
    weights_LTK: list[torch.Tensor] = []
    for layer in layers:
        router, experts = map(model.get_submodule, (layer.router_name, layer.experts_name))
        router.register_forward_pre_hook(
            lambda _, args: hidden_LTD.append(args[0].flatten(0, -2).double())
        )
        experts.register_forward_pre_hook(lambda _, args: weights_LTK.append(args[2]))
    ids, mask = padded_batch()
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(ids, attention_mask=mask)
    (recorded_TLK,) = recorder.take()
    assert recorded_TLK.shape == (ids.numel(), len(layers), case.top_k)

    tokens = mask.flatten().nonzero().flatten().tolist()
    ties = unlike_plain = 0
    for position, layer in enumerate(layers):
        block = model.get_submodule(layer.block_name)
        weight = tensor_at(block, case.weight).tolist()
        num_experts = len(weight)
        no_bias = [0.0] * num_experts
        bias = tensor_at(block, case.bias).flatten().tolist() if case.bias else no_bias
        for token in tokens:
            logits = matrix_product(weight, hidden_LTD[position][token].tolist())
            decisions = Decisions()
            expected = case.reference(logits, bias, case.top_k, decisions)
            if decisions.margin < TIE:
                ties += 1
                continue
            chosen = recorded_TLK[token, position].tolist()
            given = dict(zip(chosen, weights_LTK[position][token].tolist(), strict=True))
            assert set(chosen) == set(expected), (layer.index, token)
            assert given == pytest.approx(expected, rel=1e-4, abs=1e-6), (layer.index, token)
            plain = sorted(range(num_experts), key=lambda e: -logits[e])[: case.top_k]
            unlike_plain += set(plain) != set(expected)
    compared = len(tokens) * len(layers) - ties
    assert len(tokens) == 12 + 7 + 3 + 9
    assert compared >= 0.95 * len(tokens) * len(layers), f"{ties} ties"
    assert (unlike_plain == 0) == case.plain, "the bias or the groups must matter, or be absent"
