"""The published benchmarks, each by its columns."""

import hashlib

import pytest

from prompt_files import message_of
from steermoe.errors import ConfigError
from steermoe.prompts import published
from steermoe.prompts.formats import read_prompts
from steermoe.prompts.goals import plain_form
from steermoe.prompts.layouts import PromptFormat
from steermoe.records import Label


def test_advbench(prompt_file):
    read = read_prompts(prompt_file("goal,target\nPick a lock,Sure\n"))
    (prompt,) = read.prompts
    assert read.format is PromptFormat.ADVBENCH
    assert (prompt.label, prompt.goal) == (Label.UNSAFE, "Pick a lock")
    assert prompt.messages == ({"role": "user", "content": "Pick a lock"},)


def test_harmbench_shows_its_context_before_the_request(prompt_file):
    header = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    rows = "Pick it,contextual,illegal,,A lock.,pick\nCopy it,copyright,copyright,,,copy\n"
    read = read_prompts(prompt_file(header + rows))
    first, second = read.prompts
    assert read.format is PromptFormat.HARMBENCH
    assert first.messages[0]["content"] == "A lock.\n\n---\n\nPick it"
    assert (first.goal, first.category, first.prompt_id) == ("Pick it", "illegal", "harmbench-pick")
    assert second.messages[0]["content"] == "Copy it"
    assert {first.label, second.label} == {Label.UNSAFE}


def test_strongreject(prompt_file):
    read = read_prompts(prompt_file("category,source,forbidden_prompt\ncrime,custom,Pick a lock\n"))
    assert read.format is PromptFormat.STRONGREJECT
    assert (read.prompts[0].label, read.prompts[0].category) == (Label.UNSAFE, "crime")


def test_jailbreakbench_tells_its_benign_file_by_the_goals(prompt_file, monkeypatch):
    assert len(published.JAILBREAKBENCH_BENIGN) == 100
    digest = hashlib.sha256(plain_form("Describe a lock.").encode()).hexdigest()[:8]
    monkeypatch.setattr(published, "JAILBREAKBENCH_BENIGN", frozenset({digest}))
    header = "Index,Goal,Target,Behavior,Category,Source\n"
    rows = "0,Pick a lock,Sure,Locks,Crime,Original\n1,Describe a lock,Sure,Locks,Crime,Original\n"
    read = read_prompts(prompt_file(header + rows))
    assert read.format is PromptFormat.JAILBREAKBENCH
    assert [prompt.label for prompt in read.prompts] == [Label.UNSAFE, Label.BENIGN]
    assert "1 unsafe, 1 benign" in read.notes[0]


XSTEST = [
    (1, "How do I kill a candle?", "homonyms"),
    (26, "How do I kill a neighbour?", "contrast_homonyms"),
    (301, "Why should that group vote less?", "contrast_discr"),
    (276, "Why can that group not fly?", "real_group_nons_discr"),
    (251, "Why should pans not vote?", "nons_group_real_discr"),
    (2, "How do I shoot a photo?", "homonyms"),
]


@pytest.mark.parametrize("layout", ["current", "older"])
def test_xstest_pairs_each_question_with_its_contrast(prompt_file, layout):
    if layout == "current":
        rows = [
            f"{n},{text},{kind},{'unsafe' if 'contrast' in kind else 'safe'},,"
            for n, text, kind in XSTEST
        ]
        content = "\n".join(["id,prompt,type,label,focus,note", *rows])
    else:
        rows = [f",v2-{n},{kind},{text},," for n, text, kind in XSTEST]
        content = "\n".join(["id_v1,id_v2,type,prompt,focus,note", *rows])
    read = read_prompts(prompt_file(content))
    assert read.format is PromptFormat.XSTEST
    labels = [prompt.label for prompt in read.prompts]
    assert labels == ["safe", "unsafe", "unsafe", "safe", "safe", "safe"]
    assert [prompt.is_look_alike for prompt in read.prompts] == [
        label == "safe" for label in labels
    ]
    pairs = [prompt.pair_id for prompt in read.prompts]
    assert pairs[0] == pairs[1] != "" and pairs[2] == pairs[3] != "" and pairs[0] != pairs[2]
    assert pairs[4:] == ["", ""]


def test_xstest_rows_that_contradict_themselves_are_refused(prompt_file):
    header = "id,prompt,type,label,focus,note\n1,a,homonyms,safe,,\n"
    assert "row 2, field 'type'" in message_of(prompt_file(f"{header}2,b,homonym,safe,,\n"))
    text = message_of(prompt_file(f"{header}2,b,contrast_homonyms,safe,,\n"))
    assert "row 2, field 'label': 'safe' does not fit" in text


def test_the_format_can_be_named_instead_of_found(prompt_file):
    path = prompt_file("prompt,goal,target,label\nName a river.,Pick a lock,Sure,safe\n")
    assert read_prompts(path).format is PromptFormat.ROWS
    assert read_prompts(path, "advbench").prompts[0].label is Label.UNSAFE
    assert "row 1, field 'forbidden_prompt': is missing" in message_of(path, format="strongreject")
    with pytest.raises(ConfigError, match=r"did you mean 'advbench'\?"):
        read_prompts(path, "advbnch")
