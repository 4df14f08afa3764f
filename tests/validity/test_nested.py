"""The second simulator: what it promises, by brute force over every course that a reply can take and by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.validity.nested import (
    Effects,
    NestedModel,
    Plan,
    draw_base,
    draw_counts,
    draw_weights,
    mixed_batches,
    plan_replies,
    run_lengths,
    simulate_nested,
)

SMALL = NestedModel(num_layers=2, num_slots=2, slot_size=3)


def every_course(weights: list[float], repeat: float, num_tokens: int) -> dict[int, float]:
    """Chance of each number of tokens that choose the first expert of one slot, token by token."""
    chance: dict[int, float] = Counter()
    for course in itertools.product(range(len(weights)), repeat=num_tokens):
        p = weights[course[0]]
        for before, now in itertools.pairwise(course):
            p *= repeat * (before == now) + (1 - repeat) * weights[now]
        chance[course.count(0)] += p
    return chance


def test_counts_have_the_distribution_of_every_course_a_reply_can_take() -> None:
    weights, repeat, num_tokens, number = [0.2, 0.5, 0.3], 0.4, 4, 40_000
    expected = every_course(weights, repeat, num_tokens)
    assert sum(expected.values()) == pytest.approx(1)
    # Whatever repeats, a token chooses the first expert with its weight.
    assert sum(k * p for k, p in expected.items()) == pytest.approx(num_tokens * 0.2)
    model = replace(SMALL, repeat=repeat)
    of_all = np.tile(weights, (number, 2, 2, 1))
    counts = draw_counts(model, of_all, np.full(number, num_tokens), np.random.default_rng(0))
    assert (counts.sum(axis=-1) == num_tokens).all()
    found = np.bincount(counts[:, 1, 0, 0], minlength=num_tokens + 1) / number
    for tokens, chance in expected.items():
        assert found[tokens] == pytest.approx(chance, abs=4.5 * (chance / number) ** 0.5)


def test_runs_by_hand() -> None:
    always, never = (
        run_lengths(np.array([3, 1, 0, 2]), r, np.random.default_rng(0)) for r in (1, 0)
    )
    assert always.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert never[:, 1].tolist() == [3, 1, 0, 2]
    some = run_lengths(np.arange(50), 0.5, np.random.default_rng(1))
    assert (some @ np.arange(some.shape[1])).tolist() == list(range(50))


def test_weights_scatter_about_their_goals_and_goals_about_the_layers_as_dirichlets_do() -> None:
    model = replace(SMALL, goal_concentration=9.0, reply_concentration=(4.0, 19.0))
    plan = plan_replies(20_000, 0, goals="unpaired")
    base = draw_base(model, np.random.default_rng(3))
    weights = draw_weights(model, plan, base, np.random.default_rng(4))
    assert weights.sum(axis=-1) == pytest.approx(1)
    for unsafe, concentration in ((False, 4.0), (True, 19.0)):
        of_class = weights[plan.is_unsafe == unsafe]
        # Between goals b (1 - b) / (9 + 1); what that leaves of b (1 - b) is shared by the replies' scatter.
        scatter = 1 / 10 + (1 - 1 / 10) / (concentration + 1)
        variance = base * (1 - base) * scatter
        assert np.abs(of_class.mean(axis=0) - base) == pytest.approx(
            0, abs=5 * np.sqrt(variance.max() / 20_000)
        )
        # The fourth moment of a rare expert, or of a rarely missing one, is too large to check its variance by.
        middle = (base > 0.1) & (base < 0.9)
        assert of_class.var(axis=0)[middle] == pytest.approx(variance[middle], rel=0.06)


def test_symmetric_replies_differ_from_their_goal_as_much_up_as_down() -> None:
    model = replace(
        SMALL, slot_size=4, goal_concentration=1e12, symmetric=True, reply_concentration=(0.2, 1.0)
    )
    plan = plan_replies(20_000, 0, goals="unpaired")
    base = draw_base(model, np.random.default_rng(3))
    weights = draw_weights(model, plan, base, np.random.default_rng(4))
    assert weights.sum(axis=-1) == pytest.approx(1) and weights.min() >= 0
    for unsafe, largest in ((False, 0.2), (True, 1.0)):
        shift = weights[plan.is_unsafe == unsafe] - base
        ordered = np.sort(base, axis=-1)
        rarer = np.take_along_axis(
            np.repeat(ordered[..., ::2], 2, axis=-1),
            np.argsort(np.argsort(base, axis=-1), axis=-1),
            axis=-1,
        )
        # Even on -largest .. largest times the rarer of two neighbours.
        assert shift.std(axis=0) == pytest.approx(largest * rarer / 3**0.5, rel=0.05)
        assert np.abs(shift.mean(axis=0)).max() < 5 * shift.std() / 20_000**0.5
        skewness = (shift**3).mean(axis=0) / shift.std(axis=0) ** 3
        assert np.abs(skewness).max() < 0.1


def test_a_planted_effect_is_exact_in_the_mean_and_the_others_of_its_slot_give_way() -> None:
    model = replace(SMALL, goal_concentration=30.0)
    plan = plan_replies(30_000, 1, goals="unpaired")
    effects = Effects({(1, 4): 0.1}, variation=1.5)
    run = simulate_nested(model, plan, 5, effects=effects)
    base = draw_base(model, np.random.default_rng([5, 1])).reshape(2, 6)
    assert run.truth[1, 4] == pytest.approx(0.1)
    assert run.truth[1, 3:].sum() == pytest.approx(0)
    assert run.truth[1, 3] / run.truth[1, 5] == pytest.approx(base[1, 3] / base[1, 5])
    assert (run.truth[0] == 0).all() and (run.truth[1, :3] == 0).all()
    found = run.inclusion[plan.is_unsafe].mean(axis=0) - run.inclusion[~plan.is_unsafe].mean(axis=0)
    spread = run.inclusion.std(axis=0).max()
    assert found == pytest.approx(run.truth, abs=5 * spread * (2 / 30_000) ** 0.5)


def test_the_effect_of_a_goal_varies_as_much_as_it_is_told_to() -> None:
    """Without scatter of goals and replies the effect is all that varies."""
    still = replace(SMALL, goal_concentration=1e8, reply_concentration=(1e8, 1e8))
    plan = plan_replies(20_000, 1)
    for variation in (0.5, 2.0):
        run = simulate_nested(still, plan, 6, effects=Effects({(0, 1): 0.08}, variation=variation))
        unsafe, safe = (
            run.inclusion[plan.is_unsafe == u][np.argsort(plan.goal_of[plan.is_unsafe == u])][
                :, 0, 1
            ]
            for u in (True, False)
        )
        effect = unsafe - safe
        assert effect.mean() == pytest.approx(0.08, rel=0.06)
        assert effect.std() / effect.mean() == pytest.approx(variation, rel=0.08)
    with pytest.raises(ValueError, match="share slot 0 of layer 1"):
        simulate_nested(SMALL, plan, 0, effects=Effects({(1, 0): 0.1, (1, 2): 0.1}))
    with pytest.raises(ValueError, match="no effect of mean"):
        simulate_nested(SMALL, plan, 0, effects=Effects({(1, 0): 0.1}, variation=9.0))


def test_inclusion_is_what_the_counts_of_many_tokens_show() -> None:
    model = replace(
        SMALL, opening_tokens=40, opening_text=0.5, refusal_text=0.5, mean_tokens=400.0, tail=0.01
    )
    plan = plan_replies(300, 0, refusals=(0.5, 0.0))
    model = replace(model, refusal_tokens=200.0, most_tokens=1000)
    run = simulate_nested(model, plan, 2)
    active, tokens = run.counts.segment("generation")
    opening, early = run.opening.segment("generation")
    assert (early == 40).all() and (opening <= active).all()
    frequency = active / tokens[:, None, None]
    # Runs of mean length 1 / (1 - 0.35) leave at least a quarter of the tokens as independent ones.
    error = np.sqrt(run.inclusion * (1 - run.inclusion) * 4 / tokens[:, None, None])
    assert (np.abs(frequency - run.inclusion) <= 5 * error + 0.01).all()
    # Short refusals are more opening, and have words of their own: a difference that no class has.
    refusing = run.plan.refuses
    assert (
        np.abs(run.inclusion[refusing].mean(axis=0) - run.inclusion[~refusing].mean(axis=0)).max()
        > 0.05
    )
    assert (run.truth == 0).all()


def test_goals_are_paired_alone_or_one_has_a_fifth() -> None:
    paired = plan_replies(50, 0)
    assert paired.goal_of[:50].tolist() == paired.goal_of[50:].tolist() == list(range(50))
    alone = plan_replies(50, 0, goals="unpaired", num_unsafe=20)
    assert np.bincount(alone.goal_of).tolist() == [1] * 70 and alone.is_unsafe.sum() == 20
    large = plan_replies(50, 0, large_goal=True)
    sizes = np.bincount(large.goal_of)
    assert (
        sizes[0] == 20 and sizes[1:].max() <= 10 and (sizes % 2 == 0).all() and sizes.sum() == 100
    )
    of_each = plan_replies(50, 0, goals="unpaired", large_goal=True)
    sizes = np.bincount(of_each.goal_of)
    assert sorted(sizes)[-2:] == [10, 10] and sizes.sum() == 100
    classes = {(int(g), bool(u)) for g, u in zip(of_each.goal_of, of_each.is_unsafe, strict=True)}
    assert len(classes) == len(sizes)
    topics = plan_replies(3, 0, goals="unpaired", topics=(0, 2))
    assert topics.topic_of.tolist() == [0, 0, 0, 2, 2, 2]


def test_batches_hold_as_many_of_either_class_and_whole_pairs() -> None:
    plan: Plan = plan_replies(21, 0)
    batch = mixed_batches(plan.is_unsafe, 8, np.random.default_rng(0))
    for number in (0, 1):
        inside = batch == number
        assert plan.is_unsafe[inside].sum() == 8 and inside.sum() == 16
    assert (batch == -1).sum() == 10
    assert (batch[:21] == batch[21:]).all()


def test_a_run_depends_on_its_seed_alone_and_refusals_are_short() -> None:
    plan = plan_replies(400, 3, refusals=(0.75, 0.0))
    first, again, other = (simulate_nested(SMALL, plan, seed) for seed in (1, 1, 2))
    assert (first.counts.active == again.counts.active).all()
    assert (first.counts.active != other.counts.active).any()
    tokens = first.counts.num_tokens[:, 1]
    assert tokens[plan.refuses].mean() == pytest.approx(10, rel=0.1)
    assert tokens[~plan.refuses].mean() == pytest.approx(45, rel=0.15)
    assert plan.refuses[~plan.is_unsafe].mean() == pytest.approx(0.75, abs=0.07)
    assert not plan.refuses[plan.is_unsafe].any()
