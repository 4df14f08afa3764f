"""All files of a run: labels completed, ids and pairs kept apart, doubts said."""

from collections import Counter

import pytest

from prompt_files import ROW
from steermoe.errors import PromptError
from steermoe.prompts.resolve import resolve_prompts
from steermoe.records import Label


def labelled(*labels, **fields):
    return [{"prompt": f"Request {i}", "label": x, **fields} for i, x in enumerate(labels)]


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
