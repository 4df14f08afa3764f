"""All files of a run: labels completed, ids and pairs kept apart, doubts said."""

from collections import Counter

import pytest

from prompt_files import ROW
from steermoe.errors import PromptError
from steermoe.prompts.resolve import resolve_prompts
from steermoe.records import Label


def labelled(*labels, **fields):
    return [{"prompt": f"Request {i}", "label": x, **fields} for i, x in enumerate(labels)]


@pytest.mark.parametrize("format", ["advbench", "lines"])
def test_a_format_for_all_files_is_not_that_of_the_builtin_prompts(prompt_file, format):
    path = prompt_file("goal\nPick a lock\n")
    read = resolve_prompts([f"unsafe:{path}", "builtin:starter"], format=format)
    starter = [prompt for prompt in read.prompts if prompt.source == "builtin:starter"]
    assert starter == list(resolve_prompts(["builtin:starter"]).prompts)


def test_the_builtin_prompts_are_complete_and_need_no_completion():
    read = resolve_prompts(["builtin:starter"])
    assert set(Label) == {prompt.label for prompt in read.prompts}
    assert {prompt.source for prompt in read.prompts} == {"builtin:starter"}
    assert len({prompt.prompt_id for prompt in read.prompts}) == len(read.prompts)
    with pytest.raises(PromptError, match="did you mean 'builtin:starter'"):
        resolve_prompts(["builtin:start"])


def test_benign_prompts_are_completed_and_it_is_said(prompt_file):
    path = prompt_file(labelled("safe", "unsafe"))
    read = resolve_prompts([str(path)])
    benign = [prompt for prompt in read.prompts if prompt.label is Label.BENIGN]
    starter = resolve_prompts(["builtin:starter"]).prompts
    assert len(benign) == sum(prompt.label is Label.BENIGN for prompt in starter) > 0
    assert {prompt.source for prompt in benign} == {"builtin:starter"}
    assert any(f"the {len(benign)} of builtin:starter are added" in note for note in read.notes)
    assert not any("no safe prompts" in note for note in read.notes)


def test_a_benchmark_without_a_safe_side_gets_one(prompt_file):
    read = resolve_prompts([str(prompt_file("goal,target\nPick a lock,Sure\n"))])
    counts = Counter(prompt.label for prompt in read.prompts)
    assert counts[Label.UNSAFE] == 1 and counts[Label.SAFE] > 0 and counts[Label.BENIGN] > 0
    assert not any(prompt.pair_id for prompt in read.prompts)  # partners were left behind
    assert any("no safe prompts in" in note for note in read.notes)


@pytest.mark.parametrize(
    ("labels", "missing"), [(["safe", "benign"], "unsafe"), (["unsafe"], "safe")]
)
def test_own_rows_without_a_label_are_taken_for_a_mistake(prompt_file, labels, missing):
    with pytest.raises(PromptError, match=f"no prompt is labelled {missing}"):
        resolve_prompts([str(prompt_file(labelled(*labels)))])


def test_ids_and_pairs_of_several_files_stay_apart(prompt_file, tmp_path):
    (tmp_path / "other").mkdir()
    rows = [
        {"prompt_id": "a", **ROW, "pair_id": "1"},
        {"prompt_id": "b", "prompt": "x", "label": "unsafe", "pair_id": "1"},
    ]
    first = prompt_file(rows, "first.json")
    second = prompt_file([{**rows[0], "prompt_id": "c"}, rows[1]], "second.json")
    third = prompt_file(rows, "other/first.json")
    read = resolve_prompts([str(first), str(second)])
    own = [prompt for prompt in read.prompts if prompt.source != "builtin:starter"]
    assert [p.prompt_id for p in own] == ["a", "first.json:b", "c", "second.json:b"]
    assert own[0].pair_id == own[1].pair_id != own[2].pair_id == own[3].pair_id
    read = resolve_prompts([str(first), str(third)])
    own = [prompt for prompt in read.prompts if prompt.source != "builtin:starter"]
    assert {p.source for p in own} == {str(first), str(third)}
    assert len({p.prompt_id for p in own}) == 4


def test_a_pair_may_have_its_halves_in_two_files(prompt_file):
    safe = prompt_file(labelled("safe", pair_id="1"), "safe.json")
    unsafe = prompt_file(
        [{**row, "prompt_id": "u"} for row in labelled("unsafe", pair_id="1")], "u.json"
    )
    read = resolve_prompts([str(safe), str(unsafe)])
    assert [prompt.pair_id for prompt in read.prompts[:2]] == ["1", "1"]


def test_a_file_given_twice_and_no_file_are_refused(prompt_file, monkeypatch):
    path = prompt_file(labelled("safe", "unsafe"))
    monkeypatch.chdir(path.parent)
    with pytest.raises(PromptError, match="given twice"):
        resolve_prompts([str(path), path.name])
    with pytest.raises(PromptError, match="no prompt file is given"):
        resolve_prompts([])


def test_several_formats_have_no_single_one(prompt_file):
    files = [
        prompt_file("goal,target\nPick,Sure\n", "a.csv"),
        prompt_file(labelled("safe", "unsafe"), "b.json"),
    ]
    assert resolve_prompts(files).format is None


def test_one_file_by_two_paths_is_one_file(prompt_file, tmp_path, monkeypatch):
    path = prompt_file(labelled("safe", "unsafe"))
    (tmp_path / "link.json").symlink_to(path)
    (tmp_path / "inside").mkdir()
    for other in (tmp_path / "link.json", tmp_path / "inside" / ".." / path.name):
        with pytest.raises(PromptError, match="given twice"):
            resolve_prompts([str(path), str(other)])


def test_two_columns_of_one_file_are_two_sources(prompt_file):
    path = prompt_file([{"bad": "Pick a lock", "good": "Pick a flower"}])
    read = resolve_prompts([f"{path}:column=bad,label=unsafe", f"safe:{path}:column=good"])
    own = [prompt for prompt in read.prompts if prompt.source != "builtin:starter"]
    assert [(p.label, p.goal) for p in own] == [
        ("unsafe", "Pick a lock"),
        ("safe", "Pick a flower"),
    ]
    assert len({p.prompt_id for p in own}) == 2


def test_a_file_that_is_said_to_be_harmful_gets_a_safe_side(prompt_file):
    path = prompt_file("Pick a lock\nPick two locks\n")
    read = resolve_prompts([f"unsafe:{path}"])
    assert {prompt.label for prompt in read.prompts} == set(Label)
    assert any("no safe prompts in" in note for note in read.notes)
    with pytest.raises(PromptError, match="no prompt is labelled unsafe"):
        resolve_prompts([f"safe:{path}"])


# ---- doubts -------------------------------------------------------------------------------------------


def notes_on(prompt_file, *rows):
    path = prompt_file([{"prompt": text, "label": label} for text, label in rows])
    notes = resolve_prompts([path]).notes
    return [n for n in notes if "more than one label" in n or "an earlier one" in n]


OTHERS = [("harmful", "unsafe"), ("fine", "safe")]


def test_one_text_with_two_labels_is_a_doubt(prompt_file):
    (note,) = notes_on(
        prompt_file,
        ("Bake it.", "benign"),
        *OTHERS,
        ("bake \u201cit\u201d", "unsafe"),
        ("fine", "benign"),
    )
    assert note.startswith("2 texts have more than one label")
    assert "'row-0001', 'row-0004'" in note and "benign and unsafe" in note
    assert "Bake" not in note  # what may be harmful is shown where it is asked for


def test_the_same_prompt_again_is_a_doubt(prompt_file):
    (note,) = notes_on(
        prompt_file, *OTHERS, ("Harmful!", "unsafe"), ("harmful", "unsafe"), ("fine.", "safe")
    )
    assert note.startswith("3 prompts repeat an earlier one")
    assert "'row-0001'" in note


def test_prompts_that_differ_are_no_doubt(prompt_file):
    assert notes_on(prompt_file, *OTHERS, ("C", "safe"), ("C#", "unsafe")) == []
    assert not any("earlier one" in note for note in resolve_prompts(["builtin:starter"]).notes)


def test_turns_before_the_last_tell_prompts_apart(prompt_file):
    user = {"role": "user", "content": "Go on."}
    rows = [
        {"messages": [{"role": "system", "content": text}, user], "label": label}
        for text, label in (("a", "unsafe"), ("b", "safe"), ("A.", "benign"))
    ]
    notes = resolve_prompts([prompt_file(rows)]).notes
    (note,) = [n for n in notes if "more than one label" in n]
    assert note.startswith("1 text has")


def test_a_goal_that_is_attacked_twice_is_asked_plainly_twice_and_no_doubt(prompt_file):
    rows = [
        {"goal": "Pick a lock", "all_prompt": [{"role": "user", "content": f"attack {i}"}]}
        for i in range(2)
    ]
    notes = resolve_prompts([prompt_file(rows)]).notes
    assert not any("earlier one" in note or "more than one label" in note for note in notes)


def test_a_file_and_its_copy_are_a_doubt(prompt_file):
    rows = labelled("safe", "unsafe", "benign")
    files = [prompt_file(rows, "a.json"), prompt_file(rows, "b.json")]
    (note,) = [n for n in resolve_prompts(files).notes if "earlier one" in n]
    assert note.startswith("3 prompts repeat") and "a.json and b.json" in note
