"""Asking a tiny model: likelihoods against one plain pass an option, groups that are resumed, every item counted.

Shape legend: C completion tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from steermoe.capability.asking import (
    ask_group,
    continuation_log_probs,
    measure_capability,
    option_tokens,
    plan_groups,
)
from steermoe.capability.checks import Number
from steermoe.capability.grading import COLUMNS, Graded
from steermoe.capability.items import EXACT, Item, builtin_items
from steermoe.chat import render
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import RunDirectoryError
from steermoe.records import Continuation, Output


class PlainEngine(TransformersEngine):
    """Scores one continuation a pass, and keeps what it was asked."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer, record=False)
        self.fed: list[Continuation] = []
        self.generated = 0

    @torch.inference_mode()
    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[Continuation, Any]]:
        for continuation in continuations:
            self.fed.append(continuation)
            ids = continuation.prompt_token_ids + continuation.completion_token_ids
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
            yield continuation, logits[len(continuation.prompt_token_ids) - 1 : -1]

    def generate(self, conversations: Any, sampling: Any) -> list[Output]:
        self.generated += len(conversations)
        return super().generate(conversations, sampling)


@pytest.fixture
def engine(tiny_checkpoint: TinyCheckpoint) -> PlainEngine:
    path = tiny_checkpoint("olmoe")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return PlainEngine(model, AutoTokenizer.from_pretrained(path))


def choice(item_id: str, options: Sequence[str], opening: str = "It is") -> Item:
    return Item(item_id, "facts", f"What is {item_id}?", options[0], tuple(options), opening)


CHOICES = [
    choice("one", ["cat", "car", "cot"]),
    choice("two", ["yes", "no"], opening=""),
    choice("three", ["a", "b", "c", "d"]),
    choice("four", ["long words here", "short"]),
]
SUMS = [
    Item(
        f"sum-{n}", "arithmetic", f"What is {n} + 1?", str(n + 1), check=Number(n + 1), max_tokens=4
    )
    for n in range(5)
]


@torch.inference_mode()
def plain_log_prob(engine: PlainEngine, before: str, option: str) -> float:
    """Of one option after a text, with a byte tokenizer: token by token, no padding, nothing shared."""
    total = 0.0
    ids = engine.tokenizer(before, add_special_tokens=False)["input_ids"]
    for token in engine.tokenizer(option, add_special_tokens=False)["input_ids"]:
        logits = engine.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(0))
        ids = [*ids, token]
    return total


def test_the_likeliest_option_per_byte_is_what_plain_passes_say(engine: PlainEngine) -> None:
    rows = ask_group(engine, engine.tokenizer, CHOICES)
    for item, row in zip(CHOICES, rows, strict=True):
        before = render(engine.tokenizer, item.messages()) + item.opening
        space = " " if item.opening else ""
        values = {
            option: plain_log_prob(engine, before, f"{space}{option}") / len(option)
            for option in item.options
        }
        assert row.given == max(values, key=values.__getitem__)
        assert row.correct is (row.given == item.answer)


def test_options_that_differ_in_their_last_token_share_a_pass(engine: PlainEngine) -> None:
    # cat and car share "ca", cot does not; yes and no share nothing; a, b, c, d are one token after a space.
    ask_group(engine, engine.tokenizer, CHOICES[:3])
    by_item = {
        name: sum(c.prompt_id == name for c in engine.fed) for name in ("one", "two", "three")
    }
    assert by_item == {"one": 2, "two": 2, "three": 1}
    lengths = [len(c.prompt_token_ids) + len(c.completion_token_ids) for c in engine.fed]
    assert lengths == sorted(lengths)


def test_log_probs_of_a_continuation_are_normalised(engine: PlainEngine) -> None:
    fed = [Continuation("a", (5, 6, 7), (8, 9)), Continuation("b", (5,), (6,))]
    found = list(continuation_log_probs(engine, fed))
    assert [continuation for continuation, _ in found] == fed
    for continuation, log_probs in found:
        assert log_probs.shape == (len(continuation.completion_token_ids), len(engine.tokenizer))
        assert torch.allclose(log_probs.exp().sum(-1), torch.ones(len(log_probs)), atol=1e-5)


class Merging:
    """A tokenizer that joins "s" and what follows a space into one token with the space before it."""

    chat_template = "x"

    def apply_chat_template(self, turns: Any, **_: Any) -> str:
        (turn,) = turns
        return f"{turn['content']}:"

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[str]]:
        ids: list[str] = []
        for character in text:
            if ids and ids[-1] == "s" and character == " ":
                ids[-1] = "s "
            else:
                ids.append(character)
        return {"input_ids": ids}


def test_an_option_keeps_the_token_that_reaches_into_the_text_before_it() -> None:
    asked = ("W", "h", "a", "t", " ", "i", "s ", "x", "?", ":")
    before, options = option_tokens(Merging(), choice("x", ["on", "it"], opening="Is"))
    assert before == (*asked, "I")
    assert options == [("s ", "o", "n"), ("s ", "i", "t")]
    before, options = option_tokens(Merging(), choice("x", ["on", "it"], opening="At"))
    assert before == (*asked, "A", "t")
    assert options == [(" ", "o", "n"), (" ", "i", "t")]


def test_groups_hold_one_kind_and_every_item_once() -> None:
    items = builtin_items()
    groups = plan_groups(items, 32)
    assert sorted(i.item_id for group in groups for i in group) == sorted(i.item_id for i in items)
    for group in groups:
        assert len(group) <= 32
        assert len({(item.scoring, item.max_tokens) for item in group}) == 1
    assert plan_groups(list(reversed(items)), 32) == groups


def test_every_item_is_a_row_in_the_order_of_the_items(engine: PlainEngine) -> None:
    items = [SUMS[0], CHOICES[0], *SUMS[1:], *CHOICES[1:]]
    table = measure_capability(engine, engine.tokenizer, items, group_size=2)
    assert list(table.columns) == list(COLUMNS)
    assert list(table["item_id"]) == [item.item_id for item in items]
    # A random model that speaks letters alone gives no number.
    sums = table[table["scoring"] == EXACT]
    assert not sums["correct"].any()
    assert all(reason.startswith("no number in") for reason in sums["reason"])


def test_finished_groups_are_not_asked_again(engine: PlainEngine) -> None:
    items = [*SUMS, *CHOICES]
    stored: dict[int, Sequence[Graded]] = {}
    ask = dict(group_size=2, on_group=stored.__setitem__)
    whole = measure_capability(engine, engine.tokenizer, items, **ask)  # type: ignore[arg-type]
    assert sorted(stored) == [0, 1, 2, 3, 4]
    assert engine.generated == len(SUMS)
    kept = {index: stored[index] for index in (0, 2, 3)}
    asked: list[int] = []
    engine.fed.clear()
    again = measure_capability(
        engine,
        engine.tokenizer,
        items,
        group_size=2,
        finished=kept,
        on_group=lambda index, _: asked.append(index),
    )
    assert asked == [1, 4]
    pd.testing.assert_frame_equal(again, whole)
    engine.generated = 0
    measure_capability(engine, engine.tokenizer, items, group_size=2, finished=stored)
    assert engine.generated == 0


def test_groups_of_other_items_are_refused(engine: PlainEngine) -> None:
    stored: dict[int, Sequence[Graded]] = {}
    measure_capability(engine, engine.tokenizer, SUMS[:2], on_group=stored.__setitem__)
    with pytest.raises(RunDirectoryError, match="of 2 capability items, and not of the 3"):
        measure_capability(engine, engine.tokenizer, SUMS[:3], finished=stored)


def test_a_reply_that_ends_inside_its_reasoning_is_wrong(engine: PlainEngine) -> None:
    table = measure_capability(engine, engine.tokenizer, SUMS, answer_of=lambda _: None)
    assert set(table["reason"]) == {"the reply ended inside its reasoning"}
    right = measure_capability(
        engine, engine.tokenizer, SUMS, answer_of=lambda output: output.messages[-1]["content"][8]
    )
    # What is 0 + 1? answered 0, and so on: never right.
    assert not right["correct"].any()
    one_more = measure_capability(
        engine,
        engine.tokenizer,
        SUMS,
        answer_of=lambda output: str(int(output.messages[-1]["content"][8]) + 1),
    )
    assert one_more["correct"].all()


def test_the_system_prompt_is_what_the_model_reads_first(engine: PlainEngine) -> None:
    ask_group(engine, engine.tokenizer, CHOICES[:1], system_prompt="Be brief.")
    fed = engine.tokenizer.decode(engine.fed[0].prompt_token_ids)
    assert fed.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert fed.endswith("assistant\nIt is")
