"""Every column is read, named as not read, or refused: none is dropped without a word."""

import re

import pytest

from prompt_files import as_csv, lines, message_of, texts
from steermoe.prompts.columns import meaning
from steermoe.prompts.formats import read_prompts
from steermoe.prompts.layouts import PromptFormat
from steermoe.records import Label, Split


def columns_said(read):
    """The columns that the notes name as read and as not read."""
    both = []
    for what in ("columns read: ", "columns not read: "):
        (found,) = [n.split(what)[1] for n in read.notes if what in n] or [""]
        both.append(re.findall(r"'([^']*)'", found))
    return both


@pytest.mark.parametrize(
    "name",
    ["prompt", "Prompt", "text", "instruction", "question", "behavior", "request", "user_prompt", "goal"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("label", ("unsafe", "safe")),
        ("Label", ("Unsafe", " SAFE ")),
        ("label", ("harmful", "harmless")),
        ("label", ("jailbreak", "benign")),
        ("is_harmful", ("1", "0")),
        ("Is Harmful", ("true", "false")),
        ("is_safe", ("False", "True")),
        ("harmless", ("no", "yes")),
        ("class", ("unsafe", "safe")),
    ],
)
def test_the_names_and_words_that_people_use_are_understood_and_said_back(
    prompt_file, name, label, words
):
    other = "benign" if "benign" in words else "safe"
    read = read_prompts(prompt_file(as_csv([name, label], ["a", words[0]], ["b", words[1]])))
    assert [(p.goal, p.label) for p in read.prompts] == [("a", "unsafe"), ("b", other)]
    assert columns_said(read) == [[name.lower(), label.lower()], []]
    assert any("as label" in note for note in read.notes) is (label.lower() != "label")


def test_other_columns_are_named_as_not_read(prompt_file):
    read = read_prompts(
        prompt_file(as_csv(["prompt", "target", "Source", "label"], ["a", "Sure", "me", "safe"]))
    )
    assert columns_said(read) == [["prompt", "label"], ["target", "source"]]


@pytest.mark.parametrize(
    ("header", "row", "label"),
    [
        (["goal", "target", "label"], ["a", "Sure", "safe"], "safe"),
        (["forbidden_prompt", "category", "label"], ["a", "c", "benign"], "benign"),
        (["Index", "Goal", "Target", "Behavior", "Category", "Label"],
         ["0", "a", "t", "b", "c", "safe"], "safe"),
    ],
)  # fmt: skip
def test_a_label_beside_a_benchmarks_columns_makes_rows_with_labels(
    prompt_file, header, row, label
):
    read = read_prompts(prompt_file(as_csv(header, row)))
    assert read.format is PromptFormat.ROWS
    assert [(p.goal, p.label, texts([p])) for p in read.prompts] == [("a", label, ["a"])]


def test_a_split_is_read_from_any_layout(prompt_file):
    for header, row in (
        (["goal", "target", "split"], ["a", "Sure", "test"]),
        (["goal", "target", "Set"], ["a", "Sure", "test"]),
        (["forbidden_prompt", "Split"], ["a", "TEST"]),
        (["behavior", "behaviorid", "fold"], ["a", "b", "test"]),
        (["prompt", "label", "subset"], ["a", "safe", "testing"]),
    ):
        (prompt,) = read_prompts(prompt_file(as_csv(header, row))).prompts
        assert prompt.split is Split.TEST, header


def test_a_set_that_is_no_split_is_named_as_not_read(prompt_file):
    read = read_prompts(prompt_file(as_csv(["goal", "target", "set"], ["a", "Sure", "A"])))
    assert read.prompts[0].split is None
    assert columns_said(read)[1] == ["target", "set"]


def test_a_system_turn_of_its_own_column_is_put_first(prompt_file):
    for name in ("system", "System Prompt"):
        path = prompt_file(
            as_csv([name, "prompt", "label"], ["Be brief.", "a", "safe"], ["", "b", "safe"])
        )
        first, second = read_prompts(path).prompts
        assert [turn["role"] for turn in first.messages] == ["system", "user"]
        assert first.messages[0]["content"] == "Be brief."
        assert [turn["role"] for turn in second.messages] == ["user"]
    row = {"system": "x", "messages": [{"role": "system", "content": "y"}], "label": "safe"}
    row["messages"].append({"role": "user", "content": "z"})
    assert "field 'system'" in message_of(prompt_file([row]))


def test_loosely_named_ids_and_pairs_are_read(prompt_file):
    path = prompt_file(
        as_csv(
            ["Prompt ID", "Pair-ID", "Categories", "prompt", "label"], ["x", "7", "c", "a", "safe"]
        )
    )
    (prompt,) = read_prompts(path).prompts
    assert (prompt.prompt_id, prompt.pair_id, prompt.category) == ("x", "7", "c")


@pytest.mark.parametrize(
    ("header", "rows", "column"),
    [
        (["goal", "target", "system"], [["a", "t", "x"]], "system"),
        (["goal", "target", "pair_id"], [["a", "t", "1"]], "pair_id"),
        (["goal", "target", "messages"], [["a", "t", "[]"]], "messages"),
        (["forbidden_prompt", "category", "original_prompt"], [["a", "c", "x"]], "original_prompt"),
        (["prompt", "label", "jailbroken"], [["a", "safe", "1"]], "jailbroken"),
        (["goal", "behavior", "category", "success"], [["a", "b", "c", "0"]], "success"),
    ],
)  # fmt: skip
def test_a_column_that_seems_to_be_ours_and_is_not_read_is_refused_with_the_way_out(
    prompt_file, header, rows, column
):
    path = prompt_file(as_csv(header, *rows))
    text = message_of(path)
    assert f"'{column}' seems to hold" in text
    assert f"'{path}:ignore={column}'" in text
    assert columns_said(read_prompts(f"{path}:ignore={column}"))[1][-1] == column


@pytest.mark.parametrize(
    ("columns", "same"),
    [
        ({"prompt": "a", "question": "b"}, False),
        ({"prompt": "a", "question": "a"}, True),
        ({"prompt": "a", "question": ""}, True),
        ({"text": "a", "jailbreak_prompt": "b"}, False),
        ({"prompt": "a", "label": "unsafe", "is_harmful": "0"}, False),
        ({"prompt": "a", "label": "unsafe", "is_harmful": "1"}, True),
        ({"prompt": "a", "split": "train", "set": "test"}, False),
        ({"prompt": "a", "pair_id": "1", "Pair ID": "2"}, False),
    ],
)
def test_two_columns_for_one_thing_must_hold_the_same(prompt_file, columns, same):
    row = {"label": "unsafe", **columns}
    path = prompt_file(lines(row))
    if same:
        (prompt,) = read_prompts(path).prompts
        assert (prompt.goal, prompt.label) == ("a", Label.UNSAFE)
    else:
        text = message_of(path)
        assert "may both hold" in text
        option = re.search(rf"'{re.escape(str(path))}:([^']*)'", text)[1]
        assert len(read_prompts(f"{path}:{option}").prompts) == 1


@pytest.mark.parametrize("reply", ["response", "completion", "output_text", "Answer"])
def test_a_label_that_may_be_that_of_a_reply_is_asked_about(prompt_file, reply):
    rows = ["a", "x", "1"], ["b", "y", "0"]
    path = prompt_file(as_csv(["question", reply, "is_harmful"], *rows))
    assert "'is_harmful' may be said of" in message_of(path)
    read = read_prompts(f"{path}:label=is_harmful")
    assert [prompt.label for prompt in read.prompts] == ["unsafe", "safe"]
    assert len(read_prompts(f"unsafe:{path}:ignore=is_harmful").prompts) == 2
    path = prompt_file(as_csv(["question", reply, "label"], ["a", "x", "unsafe"]))
    assert len(read_prompts(path).prompts) == 1


def test_a_jailbreak_may_be_a_name_or_a_success_and_is_never_a_label(prompt_file):
    path = prompt_file(as_csv(["goal", "target", "jailbreak"], ["a", "Sure", "AIM"]))
    assert columns_said(read_prompts(path))[1] == ["target", "jailbreak"]
    path = prompt_file(as_csv(["goal", "target", "jailbreak"], ["a", "Sure", "0"]))
    assert "'jailbreak' seems to hold whether an attack succeeded" in message_of(path)
    rows = [
        {"goal": f"goal {i}", "all_prompt": [{"role": "user", "content": "x"}], "jailbreak": i}
        for i in (0, 1)
    ]
    path = prompt_file(rows)
    assert "':success=jailbreak" in message_of(path).replace(str(path), "")
    read = read_prompts(f"{path}:success=jailbreak,format=jailbreak")
    assert {prompt.goal for prompt in read.prompts} == {"goal 1"}


def test_behaviours_are_names_of_goals_and_not_prompts(prompt_file):
    (prompt,) = read_prompts(
        prompt_file(as_csv(["behavior", "goal", "label"], ["Theft", "Pick a lock", "unsafe"]))
    ).prompts
    assert texts([prompt]) == ["Pick a lock"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("num_prompt_tokens", None),
        ("prompt_length", None),
        ("response_harm_label", None),
        ("model_prompt", None),
        ("jailbroken_prompt", "prompt"),
        ("Prompt", "prompt"),
        ("harm label", "label"),
        ("judge_success_dict", "success"),
        ("target", None),
        ("type", None),
    ],
)
def test_what_a_name_means(name, expected):
    assert meaning(name) == expected
