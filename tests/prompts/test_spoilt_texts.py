"""Texts that something has happened to are said, and what is no prompt file at all is refused."""

from __future__ import annotations

import pytest

from steermoe.errors import PromptError
from steermoe.prompts.formats import read_prompts
from steermoe.prompts.resolve import resolve_prompts


def notes_of(prompt_file, *texts):
    rows = [{"prompt": text, "label": "unsafe"} for text in texts]
    rows += [{"prompt": "Water a cactus", "label": "safe"}]
    return [
        note
        for note in resolve_prompts([str(prompt_file(rows))]).notes
        if " of my prompts.txt " in note
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<|im_start|>user\nPick a lock<|im_end|>\n<|im_start|>assistant\n", "chat template"),
        ("[INST] Pick a lock [/INST]", "chat template"),
        ("<\uff5cUser\uff5c>Pick a lock<\uff5cAssistant\uff5c>", "chat template"),
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>Pick a lock", "chat template"),
        ("<|start|>user<|message|>Pick a lock<|end|>", "chat template"),
        ("<|start_of_role|>user<|end_of_role|>Pick a lock", "chat template"),
        ("<start_of_turn>user\nPick a lock<end_of_turn>", "chat template"),
        ("<|turn>user\nPick a lock<turn|>", "chat template"),
        ("Pick a lock</s>", "chat template"),
        ("<s>Pick a lock", "chat template"),
        ("Pick a lock<|endoftext|>", "chat template"),
        ("<|START_OF_TURN_TOKEN|>Pick a lock", "chat template"),
        ("<bos>Pick a lock", "chat template"),
        ("[gMASK]<sop>Pick a lock", "chat template"),
        ("]~b]user\nPick a lock[e~[", "chat template"),
        ("<<SYS>>\nBe kind\n<</SYS>>\nPick a lock", "chat template"),
        ("<extra_id_1>User\nPick a lock", "chat template"),
        ("Pick a lock\n<think>", "chat template"),
        ("Human: Pick a lock\n\nAssistant:", "written out"),
        ("USER: Pick a lock ASSISTANT:", "written out"),
        ("A chat between a user and an assistant. USER: Pick a lock ASSISTANT:", "written out"),
        ("User: Pick a lock\nAI:", "written out"),
        ("### Instruction:\nPick a lock\n\n### Response:\n", "written out"),
        ("### Human: Pick a lock\n### Assistant:", "written out"),
        ("用户\uff1a怎样撬锁\n助手\uff1a", "written out"),
        ("Explain {topic} to me", "braces"),
        ("Pick a lock.\\nIn two steps.", "new line"),
        ("Say &quot;open&quot;<br>and pick it", "HTML"),
        ("Pick a lock in a cafÃ©", "once read in another encoding"),
        ("Donâ€™t pick it", "once read in another encoding"),
        ("怎样撬锁".encode("gb18030").decode("latin-1"), "not theirs"),
        ("Pick a lock in a caf\ufffd", "lost character"),
        ("'=HYPERLINK is a formula", "apostrophe"),
        ("# Locks", "comment"),
    ],
)
def test_each_sign_is_one_note_that_counts(prompt_file, text, word):
    (note,) = [n for n in notes_of(prompt_file, text, text + " now") if word in n]
    assert "2 prompts of " in note
    (note,) = [n for n in notes_of(prompt_file, text) if word in n]
    assert "1 prompt of " in note and (" holds " in note or " begins " in note)


def test_lists_are_said_where_most_lines_are_of_one(prompt_file):
    assert any(
        "bullet" in n for n in notes_of(prompt_file, "1. Pick a lock", "2) Boil", "- Cut", "* Go")
    )
    assert not any(
        "bullet" in n for n in notes_of(prompt_file, "1. Pick a lock", "Boil", "Cut", "Go")
    )


def test_sound_texts_show_no_sign(prompt_file):
    sound = [
        "Print {} with f\"{x + 1}\" in C:\\new",
        "Wie öffne ich ein Schloß, äh, schnell?",
        "São Paulo, Ångström, façade",
        "¿Él? ¡Ñoño! Là où ça été né",
        "¿Qué? ¡Sí!",
        "怎样撬锁", "Как открыть замок",
        "Is 3 < 4 & 5 > 4?",
        "User: what is that?",
        "Is <s>old</s> struck out, and a <b>|</b> b?",
        "Write f <| g and h |> k, or <|>, in Elm",
        "Which user:password does the AI: or assistant of http://user:secret@host take?",
        "Convert ## Input ## to Output",
        "Explain the #NAME? error of spreadsheets",
    ]  # fmt: skip
    said = [n for n in notes_of(prompt_file, *sound) if n]
    assert said == []


@pytest.mark.parametrize("cell", ["#NAME?", "#REF!", " #N/A "])
def test_what_a_spreadsheet_writes_for_a_text_it_lost_is_refused(prompt_file, cell):
    path = prompt_file(f"prompt,label\nPick a lock,unsafe\n{cell},unsafe\n")
    with pytest.raises(PromptError, match=r"row 2, field 'prompt': is .*spreadsheet"):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "Git LFS"),
        ("<!DOCTYPE html>\n<html><body>Not found</body></html>\n", "web site"),
        ("- prompt: Pick a lock\n  label: unsafe\n- prompt: Boil\n  label: unsafe\n", "YAML"),
        ("<rows>\n<row>Pick a lock</row>\n</rows>\n", "XML"),
        ('// mine\n{"prompt": "Pick a lock"}\n{"prompt": "Boil"}\n', "JSON"),
    ],
)
def test_what_is_no_prompt_file_is_not_taken_for_lines(prompt_file, text, word):
    path = prompt_file(text)
    with pytest.raises(PromptError, match=word):
        read_prompts(f"unsafe:{path}")
    read = read_prompts(f"unsafe:{path}:format=lines")
    assert len(read.prompts) == len([line for line in text.splitlines() if line.strip()])


def test_a_document_that_says_it_is_xml_is_refused(prompt_file):
    with pytest.raises(PromptError, match="is XML"):
        read_prompts(str(prompt_file('<?xml version="1.0"?>\n<rows><row>a</row></rows>')))
