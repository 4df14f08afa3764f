"""Public sets of prompts: recognised by their columns, or refused by name with the words that read them."""

import json

import pytest

from prompt_files import as_csv, lines, message_of, texts
from steermoe.prompts.formats import read_prompts
from steermoe.prompts.layouts import PromptFormat
from steermoe.prompts.resolve import resolve_prompts
from steermoe.records import Label


def test_do_not_answer(prompt_file):
    header = ["id", "risk_area", "types_of_harm", "specific_harms", "question", "GPT4_response"]
    rows = [[i, "Malicious Uses", "t", "s", f"question {i}", "No."] for i in (1, 2)]
    read = read_prompts(prompt_file(as_csv(header, *rows)))
    assert read.format is PromptFormat.DO_NOT_ANSWER
    assert [(p.prompt_id, p.goal, p.label, p.category) for p in read.prompts] == [
        ("do-not-answer-1", "question 1", "unsafe", "Malicious Uses"),
        ("do-not-answer-2", "question 2", "unsafe", "Malicious Uses"),
    ]


def test_simple_safety_tests(prompt_file):
    header = ["id", "harm_area", "category", "prompt"]
    read = read_prompts(prompt_file(as_csv(header, ["S1", "Scams", "Advice", "a"])))
    assert read.format is PromptFormat.SIMPLE_SAFETY_TESTS
    (prompt,) = read.prompts
    assert (prompt.label, prompt.category, texts([prompt])) == (Label.UNSAFE, "Scams", ["a"])


def test_sorry_bench_keeps_the_styles_of_a_question_together(prompt_file):
    rows = [
        {"question_id": 1, "category": "3", "turns": ["Base one"], "prompt_style": "base"},
        {"question_id": 1, "category": "3", "turns": ["Slang one"], "prompt_style": "slang"},
        {"question_id": 2, "category": "3", "turns": ["Slang two"], "prompt_style": "slang"},
    ]
    read = read_prompts(prompt_file(lines(*rows)))
    assert read.format is PromptFormat.SORRY_BENCH
    assert texts(read.prompts) == ["Base one", "Slang one", "Slang two"]
    assert [prompt.goal for prompt in read.prompts] == ["Base one", "Base one", "Slang two"]
    assert {prompt.label for prompt in read.prompts} == {Label.UNSAFE}


@pytest.mark.parametrize("turns", ['["A question"]', "A question"])
def test_sorry_bench_in_csv(prompt_file, turns):
    content = as_csv(["question_id", "category", "turns"], [1, "7", turns])
    assert texts(read_prompts(prompt_file(content)).prompts) == ["A question"]


@pytest.mark.parametrize("turns", ['["one", "two"]', "[]", "[3]", '[""]'])
def test_sorry_bench_rows_of_other_than_one_turn_are_refused(prompt_file, turns):
    path = prompt_file(as_csv(["question_id", "category", "turns"], [1, "7", turns]))
    assert "row 1, field 'turns': must be a list of one text" in message_of(path)


WILD = [
    ("vanilla_harmful", "plain harm", "", Label.UNSAFE, "plain harm", "plain harm", ""),
    ("vanilla_benign", "looks bad", "", Label.SAFE, "looks bad", "looks bad", "look_alike"),
    ("adversarial_harmful", "plain", "wrapped", Label.UNSAFE, "wrapped", "plain", "jailbreak"),
    ("adversarial_benign", "fine", "wrapped", Label.BENIGN, "wrapped", "fine", "jailbreak_format"),
]


@pytest.mark.parametrize(
    ("kind", "vanilla", "adversarial", "label", "text", "goal", "category"), WILD
)
def test_wildjailbreak(prompt_file, kind, vanilla, adversarial, label, text, goal, category):
    content = as_csv(
        ["vanilla", "adversarial", "completion", "data_type"],
        [vanilla, adversarial, "x", kind],
        delimiter="\t",
    )
    read = read_prompts(prompt_file(content))
    assert read.format is PromptFormat.WILDJAILBREAK
    (prompt,) = read.prompts
    assert (prompt.label, prompt.goal, prompt.category) == (label, goal, category)
    assert texts([prompt]) == [text]


def test_wildjailbreaks_evaluation_file_says_twice_what_a_prompt_is(prompt_file):
    header = ["adversarial", "label", "data_type"]
    rows = [["bad", 1, "adversarial_harmful"], ["good", 0, "adversarial_benign"]]
    read = read_prompts(prompt_file(as_csv(header, *rows)))
    assert [(p.label, p.goal) for p in read.prompts] == [("unsafe", "bad"), ("benign", "good")]
    path = prompt_file(as_csv(header, ["bad", 0, "adversarial_harmful"]))
    assert "row 1, field 'label'" in message_of(path)
    assert "'other' is not one of" in message_of(prompt_file(as_csv(header, ["bad", 0, "other"])))


def test_wildguard(prompt_file):
    header = [
        "prompt",
        "adversarial",
        "response",
        "prompt_harm_label",
        "response_harm_label",
        "subcategory",
    ]
    rows = [
        ["a", "false", "x", "harmful", "", "fraud"],
        ["b", "true", "x", "harmful", "", "fraud"],
        ["c", "false", "x", "unharmful", "", "other"],
        ["d", "true", "x", "unharmful", "", "other"],
        ["e", "true", "x", "", "", "other"],
    ]
    read = read_prompts(prompt_file(as_csv(header, *rows)))
    assert read.format is PromptFormat.WILDGUARD
    assert [(p.goal, p.label, p.category) for p in read.prompts] == [
        ("a", "unsafe", "fraud"),
        ("b", "unsafe", "fraud"),
        ("c", "safe", "other"),
        ("d", "benign", "jailbreak_format"),
    ]
    assert any("1 row was left out" in note for note in read.notes)
    path = prompt_file(as_csv(header, ["a", "maybe", "x", "harmful", "", "f"]))
    assert "'maybe' is neither a yes" in message_of(path)
    path = prompt_file(as_csv(header, ["a", "", "x", "bad", "", "f"]))
    assert "'bad' is not one of harmful, unharmful" in message_of(path)
    assert "no row has a" in message_of(prompt_file(as_csv(header, ["a", "", "x", "", "", ""])))


# ---- sets that do not say what their prompts are -------------------------------------------------------


def transcript(*turns):
    speakers = ["Human", "Assistant"]
    return "".join(f"\n\n{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))


HH = [
    {
        "chosen": transcript("Hi", "Yes?", "More", "No"),
        "rejected": transcript("Hi", "Yes?", "More", "x"),
    }
]
SETS = {
    "BeaverTails": (
        [{"prompt": "a", "response": "b", "category": {"animal_abuse": False}, "is_safe": True}],
        PromptFormat.BEAVERTAILS,
        ["a"],
    ),
    "HH-RLHF": (HH, PromptFormat.HH, ["More"]),
    "Alpaca": (
        [
            {"instruction": "Sum up.", "input": "A text.", "output": "x"},
            {"instruction": "Say hello.", "input": "", "output": "x"},
        ],
        PromptFormat.ALPACA,
        ["Sum up.\n\nA text.", "Say hello."],
    ),
    "OR-Bench": ([{"prompt": "a", "category": "privacy"}], PromptFormat.ROWS, ["a"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_set_without_labels_is_refused_by_name_and_read_once_its_label_is_given(
    prompt_file, name
):
    rows, format, expected = SETS[name]
    path = prompt_file(json.dumps(rows))
    text = message_of(path)
    assert f"looks like {name}" in text and f"'unsafe:{path}'" in text
    read = read_prompts(f"benign:{path}")
    assert read.format is format
    assert texts(read.prompts) == expected
    assert {prompt.label for prompt in read.prompts} == {Label.BENIGN}


def test_beavertails_label_of_replies_is_named_as_not_read(prompt_file):
    read = read_prompts(f"unsafe:{prompt_file(SETS['BeaverTails'][0])}")
    assert any("not read" in note and "'is_safe'" in note for note in read.notes)


def test_transcripts_are_turns_without_their_last_reply(prompt_file):
    read = read_prompts(f"unsafe:{prompt_file(HH)}")
    assert [turn["content"] for turn in read.prompts[0].messages] == ["Hi", "Yes?", "More"]
    assert any("1 conversation ended with the assistant's turn" in note for note in read.notes)


def test_transcripts_that_do_not_alternate_are_left_out_and_counted(prompt_file):
    odd = {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "x"}
    read = read_prompts(f"unsafe:{prompt_file([*HH, odd])}")
    assert len(read.prompts) == 1
    assert any("1 transcript left out, the first in row 2" in note for note in read.notes)
    assert "row 1, field 'chosen'" in message_of(f"unsafe:{prompt_file([odd])}")
    text = message_of(f"unsafe:{prompt_file([{'chosen': 'no turns', 'rejected': 'x'}])}")
    assert "must be a transcript" in text


def test_a_category_with_a_meaning_can_be_given_to_a_set(prompt_file):
    path = prompt_file([{"prompt": "a", "category": "privacy"}])
    assert read_prompts(f"safe:{path}:category=look_alike").prompts[0].is_look_alike


def test_sets_of_harmful_requests_get_a_safe_side(prompt_file):
    path = prompt_file(as_csv(["id", "risk_area", "question"], [1, "r", "q"]))
    labels = {prompt.label for prompt in resolve_prompts([path]).prompts}
    assert labels == set(Label)
