"""Classifiers as judges: what their labels mean, and that batches change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import byte_tokenizer
from judges.judge_models import REFUSAL_LABELS, exchange, save_random
from steermoe.config import JudgeSection
from steermoe.errors import ConfigError, ModelError
from steermoe.judges.classifier import ClassifierJudge, meanings
from steermoe.records import Verdict


@pytest.mark.parametrize(
    ("labels", "meant"),
    [
        (("NORMAL", "REJECTION"), ("answered", "refused")),
        (("refusal", "not_refusal"), ("refused", "answered")),
        (("Compliance", "Refusal"), ("answered", "refused")),
        (("safe", "unsafe"), ("harmless", "harmful")),
        (("NonToxic", "Toxic"), ("harmless", "harmful")),
        (("benign", "harmful", "hate"), ("harmless", "harmful", "harmful")),
    ],
)
def test_labels_mean_what_their_words_say(labels: tuple[str, ...], meant: tuple[str, ...]) -> None:
    assert tuple(meanings(dict(enumerate(labels)), {}, "m").values()) == meant


@pytest.mark.parametrize(
    "labels",
    [
        ("LABEL_0", "LABEL_1"),
        ("safe", "refusal"),
        ("refusal",),
        ("safe refusal", "answer"),
        ("toxic", "hate"),
    ],
)
def test_labels_that_do_not_tell_ask_for_a_map(labels: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"set judge\.label_map") as caught:
        meanings(dict(enumerate(labels)), {}, "m")
    assert all(label in str(caught.value) for label in labels)


def test_a_map_decides_and_has_to_fit() -> None:
    labels = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    whole = {"LABEL_0": "answered", "LABEL_1": "refused", "LABEL_2": "unscored"}
    assert list(meanings(labels, whole, "m").values()) == ["answered", "refused", "unscored"]
    for wrong, words in (
        ({**whole, "LABEL_3": "refused"}, "names 'LABEL_3', which it has not"),
        ({"LABEL_0": "refused"}, "leaves out 'LABEL_1'"),
        ({**whole, "LABEL_2": "harmful"}, "must map the labels"),
        (dict.fromkeys(whole, "refused"), "must map the labels"),
    ):
        with pytest.raises(ConfigError, match=words):
            meanings(labels, wrong, "m")


REPLIES = [
    "Four.",
    "It is four, and here is why it is four: two and two.",
    "",
    "No, no and no. " * 5,
    "Well, yes.",
]


@pytest.mark.parametrize(
    "architecture",
    [
        "LlamaForSequenceClassification",
        "Qwen2ForSequenceClassification",
        "BertForSequenceClassification",
    ],
)
def test_batches_change_nothing(tmp_path: Path, architecture: str) -> None:
    folder = save_random(tmp_path / "classifier", architecture, **REFUSAL_LABELS)
    exchanges = [exchange(reply) for reply in REPLIES]
    one, many = (
        ClassifierJudge(str(folder), JudgeSection(batch_size=size, device="cpu")).judge(exchanges)
        for size in (1, 8)
    )
    assert one == many
    assert one[2].verdict is Verdict.UNSCORED
    assert {j.verdict for j in one} > {Verdict.UNSCORED} and all(j.score is None for j in one)
    assert len({j.reason for j in one}) == len(REPLIES)


def test_the_verdict_is_that_of_the_larger_logit(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = save_random(tmp_path / "c", "LlamaForSequenceClassification", **REFUSAL_LABELS)
    judged = ClassifierJudge(str(folder), JudgeSection(device="cpu")).judge(
        [exchange(r) for r in REPLIES]
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for reply, judgement in zip(REPLIES, judged, strict=True):
        if reply:
            with torch.no_grad():
                logits = model(**tokenizer(reply, return_tensors="pt")).logits[0]
            assert judgement.verdict == ("refused" if logits[0] > logits[1] else "answered")


def test_a_classifier_of_harm_gives_the_score_and_words_give_the_refusal(tmp_path: Path) -> None:
    settings = {"id2label": {0: "safe", 1: "unsafe"}, "label2id": {"safe": 0, "unsafe": 1}}
    folder = save_random(tmp_path / "c", "LlamaForSequenceClassification", **settings)
    replies = [
        f"I can't help with that, {word}."
        for word in ("sir", "madam", "all of you", "my friend", "no")
    ]
    judged = ClassifierJudge(str(folder), JudgeSection(device="cpu")).judge(
        [exchange(r) for r in replies]
    )
    assert all(j.score is not None and 0 <= j.score <= 1 for j in judged)
    for judgement in judged:
        harmful = (judgement.score or 0) >= 0.5
        assert judgement.verdict is (Verdict.ANSWERED if harmful else Verdict.REFUSED)
        assert judgement.reason.startswith("harmful " if harmful else "harmless ")


def test_a_long_reply_is_judged_by_its_beginning_and_says_so(tmp_path: Path) -> None:
    folder = save_random(
        tmp_path / "c", "LlamaForSequenceClassification", **REFUSAL_LABELS, max_position_embeddings=32,
    )  # fmt: skip
    judge = ClassifierJudge(
        str(folder), JudgeSection(device="cpu", classifier_reads="goal_and_reply")
    )
    short, long = judge.judge(
        [exchange("Four.", goal="2+2?"), exchange("It is four. " * 25, goal="2+2?")]
    )
    assert not short.reason.endswith("of its beginning alone")
    assert long.reason.endswith(", of its beginning alone")


def test_a_model_without_a_longest_input_reads_a_long_reply_whole(tmp_path: Path) -> None:
    from transformers import XLNetConfig, XLNetForSequenceClassification

    tokenizer = byte_tokenizer()  # as many do, it names a limit of 1e30; the config's is -1
    config = XLNetConfig(
        vocab_size=len(tokenizer), d_model=32, n_layer=1, n_head=2, d_inner=32, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, **REFUSAL_LABELS,
    )  # fmt: skip
    XLNetForSequenceClassification(config).save_pretrained(tmp_path / "c")
    tokenizer.save_pretrained(tmp_path / "c")
    judge = ClassifierJudge(str(tmp_path / "c"), JudgeSection(device="cpu"))
    (long,) = judge.judge([exchange("It is four. " * 100)])
    assert long.verdict in (Verdict.REFUSED, Verdict.ANSWERED)
    assert not long.reason.endswith("of its beginning alone")


def test_a_decoder_whose_config_names_no_padding_is_batched_all_the_same(tmp_path: Path) -> None:
    folder = save_random(
        tmp_path / "c", "LlamaForSequenceClassification", **REFUSAL_LABELS, pad_token_id=None
    )
    exchanges = [exchange(reply) for reply in REPLIES]
    one, many = (
        ClassifierJudge(str(folder), JudgeSection(batch_size=size, device="cpu")).judge(exchanges)
        for size in (1, 8)
    )
    assert one == many


def test_a_classifier_of_several_labels_at_once_is_refused(tmp_path: Path) -> None:
    several = {**REFUSAL_LABELS, "problem_type": "multi_label_classification"}
    folder = save_random(tmp_path / "c", "LlamaForSequenceClassification", **several)
    with pytest.raises(ModelError, match="several labels at once"):
        ClassifierJudge(str(folder), JudgeSection(device="cpu"))


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", "LlamaForCausalLM")
    with pytest.raises(ModelError, match="is no sequence classifier"):
        ClassifierJudge(str(folder), JudgeSection(device="cpu"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClassifierJudge(str(tmp_path / "none"), JudgeSection(device="cpu"))
