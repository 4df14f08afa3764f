"""Training rows and micro-batches: loss on completion tokens only, batches never mixed, benign rows in turn."""

from __future__ import annotations

import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import byte_tokenizer
from steermoe.chat import encode, render
from steermoe.errors import ConfigError, TrainingError
from steermoe.records import LOOK_ALIKE, PLAIN_GOAL, Label, Output, Prompt, Verdict
from steermoe.training.dataset import (
    IGNORED,
    MicroBatches,
    TrainingRow,
    collate,
    needs_refusal,
    prepare_sft_dataset,
    refusal_row,
    retention_row,
)
from steermoe.training.targets import resolve_target

USER = ({"role": "user", "content": "Hello"},)
PROMPT = Prompt("p", Label.UNSAFE, USER, "Hello")


def row(
    name: str,
    batch_idx: int = 0,
    objective: str = "retention",
    prompt: tuple[int, ...] = (1, 2),
    completion: tuple[int, ...] = (3, 4),
    label: Label = Label.SAFE,
) -> TrainingRow:
    return TrainingRow(name, label, batch_idx, objective, USER, "text", prompt, completion)


def output(prompt: tuple[int, ...], reply: tuple[int, ...]) -> Output:
    return Output("<user>Hello", USER, "Hi there", prompt, reply, np.zeros((0, 1, 1), np.uint8))


def names(rows: list[TrainingRow]) -> list[str]:
    return [row.prompt_id for row in rows]


# ---- what a row is trained on -------------------------------------------------------------------------


def test_a_refusal_is_the_target_and_then_the_end_of_the_turn() -> None:
    tokenizer = byte_tokenizer()
    text = render(tokenizer, USER)
    replied = replace(output(tuple(encode(tokenizer, text)), (2,)), prompt=text)
    made = refusal_row(PROMPT, replied, 3, "No.", tokenizer)
    assert tokenizer.decode(made.prompt_token_ids).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(made.completion_token_ids) == "No.<|im_end|>"
    assert len(made.completion_token_ids) == 4 and made.is_own_turn
    assert made.as_sft() == {
        "prompt": [{"role": "user", "content": "Hello"}],
        "completion": [{"role": "assistant", "content": "No."}],
        "label": "unsafe",
        "batch_idx": 3,
        "prompt_id": "p",
        "objective": "refusal",
    }


def test_retention_keeps_the_own_reply_token_for_token() -> None:
    kept = retention_row("p", Label.BENIGN, 2, output((1, 2, 3), (7, 8, 9)))
    assert kept.prompt_token_ids == (1, 2, 3) and kept.completion_token_ids == (7, 8, 9)
    assert kept.objective == "retention" and kept.completion == "Hi there"
    short = retention_row("p", Label.BENIGN, 2, output((1, 2, 3), (7, 8, 9)), max_tokens=2)
    assert short.completion_token_ids == (7, 8)


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize(
    ("label", "category", "refused_by"),
    [
        (Label.UNSAFE, "", set(Verdict)),
        (Label.SAFE, "", set()),
        (Label.SAFE, LOOK_ALIKE, set()),
        (Label.BENIGN, "", set()),
        # Kept as it is only where the base model refused it.
        (Label.SAFE, PLAIN_GOAL, {Verdict.ANSWERED, Verdict.UNSCORED}),
    ],
)
def test_who_must_be_refused(
    label: Label, category: str, refused_by: set[Verdict], verdict: Verdict
) -> None:
    prompt = Prompt("p", label, USER, "goal", category=category)
    assert needs_refusal(prompt, verdict) is (verdict in refused_by)


# ---- the target response ------------------------------------------------------------------------------


def test_a_text_a_list_or_a_callable_may_be_the_target() -> None:
    assert [resolve_target("No.")("any", i) for i in range(2)] == ["No.", "No."]
    turns = resolve_target(["No.", "Never.", "Sorry."])
    assert [turns("any", i) for i in range(5)] == ["No.", "Never.", "Sorry.", "No.", "Never."]
    assert resolve_target(lambda prompt: f"Not {prompt}")("that", 9) == "Not that"


def test_a_callable_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_refusals")
    module.polite = lambda prompt: f"Kindly no: {prompt}"
    module.number = 3
    monkeypatch.setitem(sys.modules, "my_refusals", module)
    assert resolve_target("my_refusals:polite")("x", 0) == "Kindly no: x"
    for name in ("my_refusals:missing", "no_such_module_here:polite", "my_refusals:number"):
        with pytest.raises(ConfigError, match=name) as caught:
            resolve_target(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["No: never.", "I can't: it is unsafe", "Warning:this harms"])
def test_a_refusal_with_a_colon_is_a_text(text: str) -> None:
    assert resolve_target(text)("x", 0) == text


@pytest.mark.parametrize("target", ["", "  ", [], ["No.", ""], [3], ("No.", None)])
def test_an_empty_target_is_refused(target: Any) -> None:
    with pytest.raises(ConfigError, match="target_response is empty"):
        resolve_target(target)


@pytest.mark.parametrize("returned", ["", None, 3, ["No."]])
def test_a_callable_that_returns_no_text_is_refused(returned: Any) -> None:
    with pytest.raises(ConfigError, match="must return a text"):
        resolve_target(lambda prompt: returned)("x", 0)


def test_outputs_become_rows_with_targets_in_turn() -> None:
    tokenizer = byte_tokenizer()
    rows = prepare_sft_dataset([output((1,), (2,))] * 3, tokenizer, ["No.", "Never."], batch_idx=4)
    assert [r.completion for r in rows] == ["No.", "Never.", "No."]
    assert {r.batch_idx for r in rows} == {4} and len({r.prompt_id for r in rows}) == 3
    assert all(r.objective == "refusal" and r.label is Label.UNSAFE for r in rows)


def test_outputs_keep_the_prompt_tokens_that_were_replied_to() -> None:
    # Another template, or other arguments of it, would render the messages to other tokens.
    (made,) = prepare_sft_dataset([output((5, 6, 7), (2,))], byte_tokenizer(), "No.")
    assert made.prompt_token_ids == (5, 6, 7)
    assert made.messages == USER


def test_a_callable_gets_a_prompt_record_of_each_output() -> None:
    def by_category(prompt: Prompt) -> str:
        kind = f" ({prompt.category})" if prompt.category else ""
        return f"No{kind}: {prompt.goal}, {prompt.label}, {prompt.messages[0]['role']}."

    (made,) = prepare_sft_dataset([output((1,), (2,))], byte_tokenizer(), by_category)
    assert made.completion == "No: Hello, unsafe, user."


def boom(prompt: Prompt) -> str:
    raise KeyError("theft\nand more")


def test_a_callable_that_fails_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"failed with KeyError: .*theft.*must return a text"):
        resolve_target(boom)(PROMPT, 0)
    with pytest.raises(ConfigError, match=r"'os:getcwd' failed with TypeError") as caught:
        resolve_target("os:getcwd")(PROMPT, 0)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refusals_with_a_slip.py").write_text("def polite(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="refusals_with_a_slip:polite' cannot be imported"):
        resolve_target("refusals_with_a_slip:polite")


def test_outputs_have_a_default_target() -> None:
    rows = prepare_sft_dataset([output((1,), (2,))] * 2, byte_tokenizer())
    assert all(r.completion for r in rows)


# ---- micro-batches ------------------------------------------------------------------------------------


def test_an_item_is_one_mixed_batch_and_nothing_of_another() -> None:
    rows = [row(f"{b}-{i}", b) for i in range(4) for b in (2, 0, 1)]
    data = MicroBatches(rows)
    assert len(data) == 3
    assert [{r.batch_idx for r in data[i]} for i in range(3)] == [{0}, {1}, {2}]
    assert Counter(n for i in range(3) for n in names(data[i])) == Counter(names(rows))


def test_parts_of_a_mixed_batch_keep_its_mix() -> None:
    rows = [row(f"r{i}", 0, "refusal") for i in range(8)] + [row(f"k{i}", 0) for i in range(8)]
    data = MicroBatches(rows, batch_size=6)
    assert len(data) == 3
    for i in range(3):
        kinds = Counter(r.objective for r in data[i])
        assert len(data[i]) <= 6
        assert abs(kinds["refusal"] - kinds["retention"]) <= 1
    assert sorted(n for i in range(3) for n in names(data[i])) == sorted(names(rows))


def test_without_a_number_every_benign_row_is_used_in_every_epoch() -> None:
    rows = [row(f"r{b}", b) for b in range(3)]
    benign = [row(f"b{i}") for i in range(7)]
    data = MicroBatches(rows, benign)
    for epoch in range(3):
        data.set_epoch(epoch)
        used = [n for i in range(3) for n in names(data[i])[1:]]
        assert sorted(used) == sorted(names(benign))
        assert sorted(len(data[i]) for i in range(3)) == [3, 3, 4]


def benign_by_epoch(data: MicroBatches, epochs: int) -> list[list[str]]:
    used = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        used.append([n for i in range(len(data)) for n in names(data[i]) if n.startswith("b")])
    return used


def test_benign_rows_take_turns_over_the_epochs() -> None:
    rows = [row(f"r{b}", b) for b in range(2)]
    benign = [row(f"b{i}") for i in range(12)]
    data = MicroBatches(rows, benign, benign_per_batch=2, seed=1)
    used = benign_by_epoch(data, 6)
    assert all(len(set(epoch)) == 4 for epoch in used)
    # Three epochs of four go once through all twelve, in another order the next time.
    assert sorted(used[0] + used[1] + used[2]) == sorted(names(benign))
    assert sorted(used[3] + used[4] + used[5]) == sorted(names(benign))
    assert used[:3] != used[3:]


def test_cutting_batches_adds_no_benign_rows() -> None:
    rows = [row(f"r{b}-{i}", b) for b in range(3) for i in range(4)]
    benign = [row(f"b{i}") for i in range(20)]
    data = MicroBatches(rows, benign, batch_size=2, benign_per_batch=1)
    assert len(data) == 6
    used = benign_by_epoch(data, 2)
    assert [len(epoch) for epoch in used] == [3, 3]
    assert len({*used[0], *used[1]}) == 6


@given(
    num_benign=st.integers(0, 9),
    per_batch=st.integers(0, 4),
    num_batches=st.integers(1, 4),
    batch_size=st.sampled_from([None, 2, 3]),
)
def test_no_benign_row_is_preferred(
    num_benign: int, per_batch: int, num_batches: int, batch_size: int | None
) -> None:
    rows = [row(f"r{b}-{i}", b) for b in range(num_batches) for i in range(4)]
    benign = [row(f"b{i}") for i in range(num_benign)]
    data = MicroBatches(rows, benign, batch_size, per_batch, seed=3)
    used = Counter(n for epoch in benign_by_epoch(data, 12) for n in epoch)
    counts = [used[n] for n in names(benign)]
    assert max(counts, default=0) - min(counts, default=0) <= 1
    if per_batch == 0:
        assert not used


def test_an_epoch_is_the_same_whatever_came_before_it() -> None:
    def made() -> MicroBatches:
        rows = [row(f"r{b}", b) for b in range(3)]
        return MicroBatches(rows, [row(f"b{i}") for i in range(10)], None, 1, seed=2)

    through, direct = made(), made()
    for epoch in (0, 1, 2, 3):
        through.set_epoch(epoch)
    direct.set_epoch(3)
    assert [names(through[i]) for i in range(3)] == [names(direct[i]) for i in range(3)]


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        MicroBatches([], [row("b")])


# ---- padding ------------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    rows = [
        row("a", 5, "refusal", (1, 2, 3), (4, 5), Label.UNSAFE),
        row("b", 5, "retention", (6,), (7, 8, 9, 10)),
        row("c", 5, "retention", (11, 12), (13,)),
    ]
    batch = collate([rows], pad_token_id=0)
    x = IGNORED
    # The last token predicts nothing and is not fed; a label stands where its token is predicted.
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9], [11, 12, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[x, x, 4, 5], [7, 8, 9, 10], [x, 13, x, x]]
    predicted = batch["labels"] != x
    assert batch["token_position"][predicted].tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert batch["objective"] == ["refusal", "retention", "retention"]
    assert batch["is_unsafe"].tolist() == [True, False, False]
    assert batch["batch_idx"].tolist() == [5, 5, 5]


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 99), min_size=1, max_size=6),
            st.lists(st.integers(1, 99), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_completion_token_is_predicted_once_and_no_other(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    rows = [row(str(i), 0, prompt=tuple(p), completion=tuple(c)) for i, (p, c) in enumerate(pairs)]
    batch = collate([rows], pad_token_id=0)
    for i, (prompt, completion) in enumerate(pairs):
        labels = batch["labels"][i]
        predicted = labels != IGNORED
        assert labels[predicted].tolist() == completion
        assert bool((batch["attention_mask"][i][predicted] == 1).all())
        fed = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
        assert fed == (prompt + completion)[:-1]
        first = int(predicted.nonzero()[0])
        assert first == len(prompt) - 1
        assert torch.equal(batch["token_position"][i][predicted], torch.arange(len(completion)))
