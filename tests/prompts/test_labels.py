"""Words of labels and splits, as far as they can mean one thing only."""

import pytest

from prompt_files import as_csv, lines, message_of
from steermoe.prompts.formats import read_prompts
from steermoe.records import Label, Split


def labels_of(prompt_file, words, name="label"):
    rows = [{"prompt": f"p {i}", name: word} for i, word in enumerate(words)]
    return [prompt.label for prompt in read_prompts(prompt_file(lines(*rows))).prompts]


U, S, B = Label.UNSAFE, Label.SAFE, Label.BENIGN


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("label", ["unsafe", "Safe", " BENIGN "], [U, S, B]),
        ("label", ["harmful", "harmless", "benign"], [U, S, B]),
        ("label", ["harmful", "safe", "benign"], [U, S, B]),
        ("label", ["jailbreak", "harmful", "benign"], [U, U, B]),
        ("label", ["harmful", "unharmful"], [U, S]),
        ("is_harmful", [1, 0], [U, S]),
        ("is_harmful", [1.0, 0.0], [U, S]),
        ("is_harmful", ["1.0", "0.0"], [U, S]),
        ("is_harmful", [True, False], [U, S]),
        ("is_harmful", ["yes", "NO"], [U, S]),
        ("harmful", ["1", "0"], [U, S]),
        ("is_safe", [1, 0], [S, U]),
        ("safe", [True, False], [S, U]),
        ("is_benign", [1, 0], [B, U]),
        ("is_jailbreak", [True, False], [U, S]),
        ("is_harmful", ["unsafe", "0"], [U, S]),
    ],
)
def test_words_that_mean_one_thing(prompt_file, name, words, expected):
    assert labels_of(prompt_file, words, name) == expected


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([1, 0], "1 may mean either side"),
        (["0"], "'0' may mean either side"),
        (["1.0"], "'1.0' may mean either side"),
        (["1.5"], "'1.5' is not one of"),
        ([True], "True may mean either side"),
        (["safe", "harmless", "unsafe"], "one of them must mean benign"),
        (["toxic"], "'toxic' is not one of"),
        (["safe", ""], "is missing"),
        (["safe", None], "is missing"),
        ([["safe"]], "is not one of"),
        (["safe or unsafe"], "is not one of"),
    ],
)
def test_words_that_do_not_are_refused(prompt_file, words, problem):
    rows = [{"prompt": f"p {i}", "label": word} for i, word in enumerate(words)]
    assert problem in message_of(prompt_file(lines(*rows)))


def test_the_refusal_says_the_option_that_reads_it(prompt_file):
    path = prompt_file(as_csv(["prompt", "label"], ["a", "1"], ["b", "0"]))
    assert f"'{path}:unsafe=1,safe=0'" in message_of(path)
    assert [p.label for p in read_prompts(f"{path}:unsafe=1,safe=0").prompts] == [U, S]
    path = prompt_file(as_csv(["prompt", "bad"], ["a", "1"], ["b", "0"]))
    assert f"'{path}:label=bad,unsafe=1,safe=0'" in message_of(f"{path}:label=bad")
    assert [p.label for p in read_prompts(f"{path}:label=bad,unsafe=1,safe=0").prompts] == [U, S]


def test_harmless_beside_safe_can_be_said_to_mean_benign(prompt_file):
    path = prompt_file(as_csv(["prompt", "label"], ["a", "safe"], ["b", "harmless"]))
    assert f"'{path}:benign=harmless'" in message_of(path)
    assert [p.label for p in read_prompts(f"{path}:benign=harmless").prompts] == [S, B]


def test_how_words_were_read_is_said_with_counts(prompt_file):
    path = prompt_file(
        as_csv(["prompt", "label"], ["a", "harmful"], ["b", "harmful"], ["c", "safe"])
    )
    notes = read_prompts(path).notes
    assert any("'harmful' as unsafe (2 rows)" in note for note in notes)
    plain = prompt_file(as_csv(["prompt", "label"], ["a", "unsafe"], ["c", "Safe"]))
    assert not any("is read:" in note for note in read_prompts(plain).notes)


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", Split.TRAIN),
        ("Train", Split.TRAIN),
        (" training", Split.TRAIN),
        ("dev", Split.DEV),
        ("validation", Split.DEV),
        ("val", Split.DEV),
        ("TEST", Split.TEST),
        ("", None),
        (None, None),
    ],
)
def test_words_of_splits(prompt_file, word, split):
    row = {"prompt": "a", "label": "safe", "split": word}
    assert read_prompts(prompt_file(lines(row))).prompts[0].split is split


@pytest.mark.parametrize("word", ["eval", "holdout", "train_sft", 1, True])
def test_other_words_of_splits_are_refused(prompt_file, word):
    text = message_of(prompt_file(lines({"prompt": "a", "label": "safe", "split": word})))
    assert "row 1, field 'split'" in text and "not one of train, dev, test" in text
