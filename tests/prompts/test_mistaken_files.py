"""Files that would be read as something else than they are: what becomes of each."""

from __future__ import annotations

import json

import pytest

from prompt_files import ASSISTANT, USER, PromptFiles, as_csv, lines, message_of, texts
from steermoe.prompts.formats import read_prompts
from steermoe.records import Label

ASKED = "How do rivers form here?"
OTHER = "How do lakes form there?"


def read(path: object, label: str = "") -> list[str]:
    return texts(read_prompts(f"{label}:{path}" if label else path).prompts)


# ---- results of attacks -------------------------------------------------------------------------------


def attacks(**outcome: object) -> str:
    rows = [{"goal": g, "jailbreak_prompt": f"Imagine: {g}"} for g in (ASKED, OTHER)]
    values = zip(*outcome.values(), strict=True)
    more = [dict(zip(outcome, row, strict=True)) for row in values]
    return lines(*({**row, **extra} for row, extra in zip(rows, more, strict=True)))


@pytest.mark.parametrize(
    "name", ["is_jailbroken", "attack_successful", "successful", "jailbroken_by_gpt4"]
)
def test_what_says_that_an_attack_succeeded_is_read(prompt_file: PromptFiles, name: str) -> None:
    found = read(prompt_file(attacks(**{name: [1, 0]})))
    assert f"Imagine: {ASKED}" in found and f"Imagine: {OTHER}" not in found


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("score", [10, 1]),
        ("judge_score", [10.0, 1.0]),
        ("asr", [1, 0]),
        ("failed", [0, 1]),
        ("is_refusal", ["no", "yes"]),
        ("verdict", ["complied", "refused"]),
        ("outcome", ["success", "failure"]),
    ],
)
def test_what_may_say_it_is_refused_with_both_ways_out(
    prompt_file: PromptFiles, name: str, values: list[object]
) -> None:
    path = prompt_file(attacks(**{name: values}))
    message = message_of(path)
    assert f"{name!r} may tell which attacks succeeded" in message
    assert f"'{path}:success={name}'" in message
    assert len(read(f"{path}:ignore={name}")) == 4


def test_beside_a_column_that_says_it_others_are_left(prompt_file: PromptFiles) -> None:
    content = attacks(score=[10, 1], jailbroken=[True, False], judge=["gpt-4", "gpt-4"])
    assert len(read(prompt_file(content))) == 2
    assert len(read(prompt_file(attacks(judge=["gpt-4", "gpt-4"])))) == 4


@pytest.mark.parametrize("reply", [{"response": "No."}, {}])
def test_a_judges_label_is_not_taken_for_the_prompts(
    prompt_file: PromptFiles, reply: dict[str, str]
) -> None:
    rows = [
        {"goal": ASKED, "jailbreak_prompt": f"{i}: {ASKED}", "judge_label": label, **reply}
        for i, label in enumerate(("safe", "unsafe"))
    ]
    assert "'judge_label' may be said of" in message_of(prompt_file(lines(*rows)))


# ---- columns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pair", "Pair", "pair_idx", "Pair No", "pair number"])
def test_pairs_are_read_under_any_name(prompt_file: PromptFiles, name: str) -> None:
    path = prompt_file(as_csv(["prompt", "label", name], [ASKED, "safe", 1], [OTHER, "unsafe", 1]))
    assert {prompt.pair_id for prompt in read_prompts(path).prompts} == {"1"}


def test_a_pair_that_is_a_text_is_none(prompt_file: PromptFiles) -> None:
    path = prompt_file(as_csv(["prompt", "label", "pair"], [ASKED, "safe", "of a and b"]))
    assert read_prompts(path).prompts[0].pair_id == ""


@pytest.mark.parametrize("name", ["system_msg", "sys"])
def test_system_turns_are_read(prompt_file: PromptFiles, name: str) -> None:
    path = prompt_file(as_csv(["prompt", "label", name], [ASKED, "safe", "Answer in one word."]))
    assert [m["role"] for m in read_prompts(path).prompts[0].messages] == ["system", "user"]


@pytest.mark.parametrize("name", ["is_train", "is_test", "holdout"])
def test_a_split_of_yes_and_no_is_refused(prompt_file: PromptFiles, name: str) -> None:
    path = prompt_file(as_csv(["prompt", "label", name], [ASKED, "safe", 1], [OTHER, "safe", 0]))
    message = message_of(path)
    assert f"{name!r} seems to hold a split" in message and "train, dev, test" in message


@pytest.mark.parametrize(("yes", "no"), [("yes", "no"), ("True", "False"), ("1", "0"), ("t", "f")])
def test_the_words_that_are_advised_read_the_file(
    prompt_file: PromptFiles, yes: str, no: str
) -> None:
    path = prompt_file(as_csv(["prompt", "label"], [ASKED, yes], [OTHER, no]))
    advised = f"{path}:unsafe={yes.casefold()},safe={no.casefold()}"
    assert advised in message_of(path)
    assert [p.label for p in read_prompts(advised).prompts] == [Label.UNSAFE, Label.SAFE]


def test_what_a_question_is_about_is_not_advised_as_the_prompt(prompt_file: PromptFiles) -> None:
    path = prompt_file(as_csv(["question", "passage"], [ASKED, "Rivers begin in hills."]))
    advised = f"benign:{path}:input=passage"
    assert advised in message_of(f"benign:{path}")
    assert read(advised) == [f"{ASKED}\n\nRivers begin in hills."]


# ---- conversations ------------------------------------------------------------------------------------


def test_a_harmless_bench_of_turns_is_no_sorry_bench(prompt_file: PromptFiles) -> None:
    path = prompt_file(lines({"question_id": 1, "category": "writing", "turns": [ASKED]}))
    assert "has no 'label'" in message_of(path)
    found = read_prompts(f"benign:{path}")
    assert texts(found.prompts) == [ASKED]
    assert any("one turn without a role" in note for note in found.notes)


def test_a_turn_by_itself_and_one_without_a_role_are_the_users(prompt_file: PromptFiles) -> None:
    path = prompt_file(lines({"turns": [{"content": ASKED}]}, {"turns": [OTHER]}))
    assert read(path, "benign") == [ASKED, OTHER]
    for cell in (json.dumps(USER), str(USER)):
        path = prompt_file(as_csv(["prompt", "label"], [cell, "safe"]))
        assert read(path) == [USER["content"]]
    text = '{"role": "admin"} is what my file says. What does it mean?'
    assert read(prompt_file(as_csv(["prompt", "label"], [text, "safe"]))) == [text]


@pytest.mark.parametrize("cell", [f"array([{USER}], dtype=object)", f"({USER}, {ASSISTANT})"])
def test_turns_that_cannot_be_read_back_are_refused(prompt_file: PromptFiles, cell: str) -> None:
    path = prompt_file(as_csv(["prompt", "label"], [cell, "safe"]))
    assert "as numpy or a tuple is printed" in message_of(path)


def test_rows_that_are_turns_are_refused(prompt_file: PromptFiles) -> None:
    rows = [{"text": ASKED, "role": "prompter"}, {"text": "By rain.", "role": "assistant"}]
    assert "each row is one turn" in message_of(f"benign:{prompt_file(lines(*rows))}")
    path = prompt_file(as_csv(["role", "content"], ["user", ASKED], ["assistant", "By rain."]))
    assert "each row is one turn" in message_of(f"{path}:column=content,label=benign")


def test_turns_of_several_conversations_in_one_list_are_refused(prompt_file: PromptFiles) -> None:
    turns = [{**turn, "conv_id": i} for i in (1, 2) for turn in (USER, ASSISTANT)]
    assert "as 'conv_id' says" in message_of(f"benign:{prompt_file(turns)}")
    same = [{**turn, "conv_id": 1} for turn in (USER, ASSISTANT, USER)]
    assert len(read(prompt_file(same), "benign")) == 1


def test_a_list_of_turns_a_line_is_a_conversation_each(prompt_file: PromptFiles) -> None:
    assert len(read(prompt_file(lines([USER], [USER, ASSISTANT, USER])), "benign")) == 2


# ---- objects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"version": "1"}])
@pytest.mark.parametrize(("said", "key"), [("safe", "unsafe"), ("benign", "harmful")])
def test_a_label_that_the_keys_contradict_is_refused(
    prompt_file: PromptFiles, extra: dict[str, str], said: str, key: str
) -> None:
    path = prompt_file(json.dumps({key: [ASKED, OTHER], **extra}))
    assert f"not {said} alone" in message_of(f"{said}:{path}")


def test_what_stands_beside_lists_by_label_is_named(prompt_file: PromptFiles) -> None:
    found = read_prompts(
        prompt_file(json.dumps({"harmful": [ASKED], "harmless": [OTHER], "about": "x"}))
    )
    assert [p.label for p in found.prompts] == [Label.UNSAFE, Label.SAFE]
    assert any("not read beside them: 'about'" in note for note in found.notes)


def test_tags_of_one_row_are_not_taken_for_prompts(prompt_file: PromptFiles) -> None:
    path = prompt_file(json.dumps({"behavior_text": ASKED, "tags": ["food", "home"]}))
    assert "may be one row, or prompts under 'tags'" in message_of(f"unsafe:{path}")
    assert read(prompt_file(json.dumps({"name": "x", "data": [ASKED]})), "unsafe") == [ASKED]


def test_behaviours_that_nobody_attacked_hold_no_attacks(prompt_file: PromptFiles) -> None:
    attack = {"test_case": ASKED, "label": 1}
    assert read(prompt_file(json.dumps({"b1": [attack], "b2": []}))) == [ASKED]


# ---- lines --------------------------------------------------------------------------------------------


def test_texts_of_json_are_unescaped(prompt_file: PromptFiles) -> None:
    asked = ["\u5982\u4f55 form here?", 'Say "hello" to me.', "Two\nlines."]
    path = prompt_file("\n".join(json.dumps(text) for text in asked))
    assert read(path, "unsafe") == asked


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f'prompts = [\n"{ASKED}",\n"{OTHER}",\n]\n', "a list in a program"),
        (f"'{ASKED}',\n'{OTHER}',\n", "a list in a program"),
        (f"| prompt |\n| --- |\n| {ASKED} |\n", "a table in Markdown"),
        (f'"{ASKED}",1\n"{OTHER}",0\n', "a table of 2 columns without names"),
        (f"{ASKED}\n===\n{OTHER}\n", "line 2: '===' separates"),
        (f"{ASKED}\n- - -\n{OTHER}\n", "line 2: '- - -' separates"),
        (f"prompt,label\n{ASKED},safe\nprompt,label\n{OTHER},safe\n", "row 2: repeats the names"),
        (f"prompt\n{ASKED}\nprompt\n{OTHER}\n", "row 2: repeats the names"),
    ],
)
def test_lines_of_another_syntax_are_refused(
    prompt_file: PromptFiles, content: str, said: str
) -> None:
    assert said in message_of(f"unsafe:{prompt_file(content)}")


def test_a_text_that_begins_with_a_bracket_is_told_how_to_be_read(prompt_file: PromptFiles) -> None:
    path = prompt_file(f"[Roleplay] You are a river. {ASKED}\n{OTHER}\n")
    assert f"'unsafe:{path}:format=lines' reads it" in message_of(f"unsafe:{path}")
    assert len(read(f"unsafe:{path}:format=lines")) == 2
    broken = prompt_file('[{"prompt": "a"},')
    assert "format=lines" not in message_of(f"unsafe:{broken}")
