"""Mixed batches: exact counts, nothing lost or placed twice, and as many pairs together as can be."""

import dataclasses
import math
import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from steermoe.errors import ConfigError, PromptError
from steermoe.prompts.batches import as_prompt, batch_counts, plan_batches
from steermoe.records import PLAIN_GOAL, Label, Prompt, Split

SAFE, UNSAFE, BENIGN = Label.SAFE, Label.UNSAFE, Label.BENIGN
USER = {"role": "user", "content": "Hi."}


def prompt(name, label, pair_id="", split=Split.TRAIN):
    return Prompt(name, label, (USER,), name, pair_id=pair_id, split=split)


def mixture(num_pairs, num_safe=0, num_unsafe=0):
    """So many pairs, and so many prompts of each side without partner."""
    prompts = []
    for i in range(num_pairs):
        prompts += [
            prompt(f"pair-safe-{i}", SAFE, f"{i}"),
            prompt(f"pair-unsafe-{i}", UNSAFE, f"{i}"),
        ]
    prompts += [prompt(f"safe-{i}", SAFE) for i in range(num_safe)]
    return prompts + [prompt(f"unsafe-{i}", UNSAFE) for i in range(num_unsafe)]


def pairs_together(batches):
    found = Counter((i, p.pair_id) for i, batch in enumerate(batches) for p in batch if p.pair_id)
    return sum(count == 2 for count in found.values())


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        (16, 0.5, (8, 8)),
        (8, 0.3, (2, 6)),  # 2.4
        (16, 0.3, (5, 11)),  # 4.8
        (32, 0.7, (22, 10)),  # 22.4
        (5, 0.5, (3, 2)),  # 2.5 rounds up
        (16, 0.01, (1, 15)),
        (16, 0.99, (15, 1)),
        (2, 0.9, (1, 1)),
    ],
)
def test_counts_of_a_batch(size, ratio, expected):
    assert batch_counts(size, ratio) == expected


@pytest.mark.parametrize("ratio", [0, 1, 1.5, -0.1, math.nan])
def test_a_ratio_outside_0_and_1_is_refused(ratio):
    with pytest.raises(ConfigError, match="safe_ratio"):
        plan_batches(mixture(20), safe_ratio=ratio)


def test_batches_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="batch_size 1 is too small"):
        plan_batches(mixture(20), batch_size=1)
    with pytest.raises(ConfigError, match="num_batches 0"):
        plan_batches(mixture(20), num_batches=0)


@given(
    st.integers(0, 20),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(2, 9),
    st.floats(0.05, 0.95),
    st.integers(0, 3),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_every_plan_is_exact(num_pairs, num_safe, num_unsafe, size, ratio, seed, data):
    need_safe, need_unsafe = batch_counts(size, ratio)
    most = min((num_pairs + num_safe) // need_safe, (num_pairs + num_unsafe) // need_unsafe)
    assume(most > 0)
    wanted = data.draw(st.none() | st.integers(1, most))
    prompts = mixture(num_pairs, num_safe, num_unsafe)
    plan = plan_batches(prompts, size, ratio, wanted, seed)

    assert len(plan.batches) == (wanted or most)
    for batch in plan.batches:
        assert [p.label for p in batch] == [SAFE] * need_safe + [UNSAFE] * need_unsafe
    placed = [p.prompt_id for batch in plan.batches for p in batch]
    left = [p.prompt_id for p in plan.leftovers]
    assert sorted(placed + left) == sorted(p.prompt_id for p in prompts)

    # A batch holds no more pairs than its smaller side has places, and there are only so many pairs.
    bound = min(num_pairs, len(plan.batches) * min(need_safe, need_unsafe))
    assert pairs_together(plan.batches) == bound
    shuffled = random.Random(seed).sample(prompts, len(prompts))
    assert plan_batches(shuffled, size, ratio, wanted, seed) == plan


def test_at_half_and_half_pairs_are_never_separated():
    plan = plan_batches(mixture(21), batch_size=8)
    assert len(plan.batches) == 5
    for batch in plan.batches:
        assert [p.pair_id for p in batch[:4]] == [p.pair_id for p in batch[4:]]
    assert plan.leftovers[0].pair_id == plan.leftovers[1].pair_id
    assert plan.notes("training prompts", "count in pooled figures only") == (
        "2 training prompts fill no batch (1 safe, 1 unsafe) and count in pooled figures only",
    )


def test_pairs_are_dealt_out_evenly_and_lone_prompts_fill_the_rest():
    plan = plan_batches(mixture(4, 4, 4), batch_size=8)
    assert [pairs_together([batch]) for batch in plan.batches] == [2, 2]
    assert plan.leftovers == ()
    assert plan.notes("prompts", "are left out") == ()


def test_where_the_ratio_leaves_no_room_lone_prompts_come_before_halves_of_pairs():
    # 2 batches of 1 safe and 3 unsafe: 2 pairs, then 4 unsafe places; 3 lone prompts, so 1 torn pair.
    plan = plan_batches(mixture(3, 0, 3), batch_size=4, safe_ratio=0.25)
    assert pairs_together(plan.batches) == 2
    assert [(p.label, bool(p.pair_id)) for p in plan.leftovers] == [(SAFE, True)]
    assert plan.notes("prompts", "are left out") == (
        "1 prompts fill no batch (1 safe, 0 unsafe) and are left out",
        "pairs of which only one half found room in a batch: 1",
    )


def test_more_than_two_prompts_of_one_pair_id_are_matched_one_to_one():
    prompts = [prompt(f"s{i}", SAFE, "1") for i in range(2)]
    prompts += [prompt(f"u{i}", UNSAFE, "1") for i in range(3)]
    plan = plan_batches(prompts, batch_size=2)
    assert len(plan.batches) == 2
    assert [p.label for p in plan.leftovers] == [UNSAFE]


def test_only_safe_and_unsafe_training_prompts_are_placed():
    prompts = [
        prompt("train", SAFE),
        prompt("unsplit", UNSAFE, split=None),
        prompt("benign", BENIGN),
        prompt("dev", SAFE, split=Split.DEV),
        prompt("test", UNSAFE, split=Split.TEST),
    ]
    plan = plan_batches(prompts, batch_size=2)
    assert [[p.prompt_id for p in batch] for batch in plan.batches] == [["train", "unsplit"]]
    assert plan.leftovers == ()


def test_the_seed_draws_another_order():
    prompts = mixture(40)
    assert plan_batches(prompts, seed=0) == plan_batches(prompts, seed=0)
    assert plan_batches(prompts, seed=0) != plan_batches(prompts, seed=1)


def test_too_few_prompts_are_counted_against_what_is_needed():
    with pytest.raises(PromptError) as caught:
        plan_batches(mixture(2, 1, 3), batch_size=16)
    assert "needs 8 safe and 8 unsafe prompts, but there are 3 safe and 5 unsafe" in str(
        caught.value
    )
    with pytest.raises(PromptError, match="0 safe and 0 unsafe"):
        plan_batches([])
    with pytest.raises(PromptError, match="0 unsafe"):
        plan_batches([prompt("only", SAFE)], batch_size=2)


def test_too_many_batches_are_refused_with_the_number_that_can_be_filled():
    with pytest.raises(PromptError, match=r"enough for 2; .* set num_batches to 2 or less"):
        plan_batches(mixture(8), batch_size=8, num_batches=3)


def test_fewer_batches_leave_the_rest_over():
    plan = plan_batches(mixture(8), batch_size=4, num_batches=1)
    assert len(plan.batches) == 1
    assert len(plan.leftovers) == 12


# ---- prompts of the Python interface ------------------------------------------------------------


def test_chat_messages_become_those_of_the_record():
    chat = [{"role": "system", "content": "Be brief."}, USER]
    assert as_prompt(chat, SAFE, 0).messages == tuple(chat)


def test_text_becomes_a_record_named_by_side_and_position():
    record = as_prompt("Hi.", UNSAFE, 3)
    assert record == Prompt("unsafe-3", UNSAFE, (USER,), "Hi.")
    plan = plan_batches([as_prompt(s, x, 0) for s, x in (("a", SAFE), ("b", UNSAFE))], batch_size=2)
    assert [p.goal for p in plan.batches[0]] == ["a", "b"]


def test_a_record_keeps_all_but_its_label_and_its_split():
    record = dataclasses.replace(prompt("x", SAFE, "1"), category=PLAIN_GOAL, split=Split.TEST)
    assert as_prompt(record, SAFE, 0) == dataclasses.replace(record, split=None)
    assert as_prompt(record, UNSAFE, 0) == dataclasses.replace(record, label=UNSAFE, split=None)


@pytest.mark.parametrize("bad", ["", "  ", [], [{"role": "assistant", "content": "Hi."}], 5, {}])
def test_a_prompt_that_is_none_is_refused(bad):
    with pytest.raises(PromptError, match=r"^unsafe prompt 2: "):
        as_prompt(bad, UNSAFE, 2)
