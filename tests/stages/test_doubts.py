"""What a run doubts of itself, by hand-made verdicts and settings."""

import pandas as pd
import pytest

from steermoe.config import load_config
from steermoe.moe.description import MoEDescription, MoELayer
from steermoe.records import PLAIN_GOAL, Label, Prompt, Split, Verdict
from steermoe.stages.doubts import (
    doubts_about_rendering,
    doubts_about_replies,
    doubts_about_routing,
    doubts_about_tokens,
    doubts_about_training,
)

TURN = ({"role": "user", "content": "x"},)


def doubts(*groups: tuple[str, str, int]) -> list[str]:
    """Of `(kind, verdict, how many)` training replies; `kind` is a label, or `goal` for a plain one."""
    rows, prompts = [], {}
    for kind, verdict, count in groups:
        label = Label.SAFE if kind == "goal" else Label(kind)
        for _ in range(count):
            name = f"p{len(rows)}"
            rows.append((name, str(label), str(Split.TRAIN), verdict))
            category = PLAIN_GOAL if kind == "goal" else ""
            prompts[name] = Prompt(name, label, TURN, "x", category=category)
    columns = ["prompt_id", "label", "split", "verdict"]
    test = (str(Label.UNSAFE), str(Split.TEST), str(Verdict.REFUSED))
    prompts["other"] = Prompt("other", Label.UNSAFE, TURN, "x")
    return doubts_about_replies(pd.DataFrame([*rows, ("other", *test)], columns=columns), prompts)


def test_an_ordinary_run_has_nothing_to_doubt() -> None:
    ordinary = (("unsafe", "answered", 6), ("unsafe", "refused", 94), ("benign", "answered", 9))
    assert doubts(*ordinary, ("goal", "refused", 1), ("goal", "answered", 7)) == []


@pytest.mark.parametrize(("refused", "is_said"), [(94, False), (95, True), (100, True)])
def test_a_base_that_refuses_nearly_all_is_said_with_the_counts(
    refused: int, is_said: bool
) -> None:
    said = doubts(("unsafe", "refused", refused), ("unsafe", "answered", 100 - refused))
    assert [f"refuses {refused} of 100 unsafe" in note for note in said] == [True] * is_said


def test_unscored_replies_count_on_neither_side() -> None:
    said = doubts(("unsafe", "refused", 19), ("unsafe", "answered", 1), ("unsafe", "unscored", 50))
    assert len(said) == 1 and "19 of 20 unsafe" in said[0]


def test_a_base_that_refuses_no_plain_goal_is_said_and_other_safe_prompts_do_not_count() -> None:
    said = doubts(("unsafe", "answered", 4), ("goal", "answered", 3), ("safe", "refused", 9))
    assert len(said) == 1 and "refuses none of 3 plain goals" in said[0]
    assert doubts(("unsafe", "answered", 4), ("safe", "answered", 9)) == []


def test_where_nothing_could_be_scored_that_is_all_that_is_said() -> None:
    said = doubts(("unsafe", "unscored", 60), ("goal", "unscored", 39), ("safe", "answered", 1))
    assert len(said) == 1 and "99 of 100 replies to training prompts are unscored" in said[0]


def description(top_k: int, num_experts: int) -> MoEDescription:
    layer = MoELayer(
        0, "b", "e", "r", num_experts, top_k, 4, 4,
        has_shared_experts=False, is_hash_routed=False, has_gate=True, has_bias=False, is_transposed=False,
        is_concatenated=True, has_post_expert_norm=False,
    )  # fmt: skip
    return MoEDescription("m", "M", (layer,), 1)


def test_routing_to_every_expert_says_nothing() -> None:
    assert doubts_about_routing(description(2, 8)) == []
    assert "8 of 8 experts" in doubts_about_routing(description(8, 8))[0]
    assert "1 of 1 experts" in doubts_about_routing(description(1, 1))[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], ""),
        (["train.retention_weight=0"], ""),
        (["train.refusal_weight=0"], "train.refusal_weight is 0"),
        (
            ["train.refusal_weight=0", "train.retention_weight=0"],
            "train.refusal_weight and train.retention_weight are 0",
        ),
        (['train.objectives=["retention"]'], "no refusal"),
        (['train.objectives=["own.module:made"]'], ""),
        (['train.phases=[{objectives = ["retention"]}, {objectives = ["refusal"]}]'], ""),
        (['train.phases=[{objectives = ["retention"]}]'], "no refusal"),
    ],
)
def test_training_that_teaches_nothing_is_said(settings: list[str], said: str) -> None:
    notes = doubts_about_training(load_config(settings=settings).train)
    assert [said in note for note in notes] == [True] * bool(said)


def test_prompts_that_the_tokenizer_cannot_write_are_counted() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(
        models.WordLevel({"<unk>": 0, "pick": 1, "a": 2, "lock": 3}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")

    def said(*texts: str) -> list[str]:
        prompts = [
            Prompt(text, Label.UNSAFE, ({"role": "user", "content": text},), text) for text in texts
        ]
        return doubts_about_tokens(tokenizer, prompts)

    assert said("pick a lock", "a lock", "pick <unk>") == []
    (note,) = said("pick a lock", "撬锁", "pick a melon")
    assert note.startswith("2 of 3 prompts")
    tokenizer.unk_token = None
    assert said("撬锁") == []


def test_prompts_that_a_template_makes_the_same_are_counted() -> None:
    def said(*texts: str) -> list[str]:
        turns = [({"role": "user", "content": text},) for text in texts]
        return doubts_about_rendering(
            [
                Prompt(str(i), Label.SAFE, turn, "x", rendered=turn[0]["content"][:6])
                for i, turn in enumerate(turns)
            ]
        )

    assert said("Pick a lock", "Bake a loaf", "Bake a loaf") == []
    (note,) = said("Pick a lock", "Pick a melon", "Bake a loaf")
    assert note.startswith("1 of 3 prompts are the same text")
