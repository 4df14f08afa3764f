"""`steermoe prompts`: what would be read, without a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prompt_files import PromptFiles, as_csv, lines
from steermoe.config import Config, load_config
from steermoe.prompts.describe import describe
from tiny import CommandLine


def config_of(*sources: object, **prompts: object) -> Config:
    return load_config(overrides={"prompts": {"sources": list(map(str, sources)), **prompts}})


LABELLED = [
    {"prompt": f"{label} request {i}", "label": label, "pair_id": i if label != "benign" else None}
    for i in range(9)
    for label in ("safe", "unsafe", "benign")
]


def test_counts_splits_and_notes_are_shown_and_no_prompt(
    steermoe: CommandLine, prompt_file: PromptFiles
) -> None:
    path = prompt_file([*LABELLED, LABELLED[0]], "mine.json")
    assert steermoe("prompts", path) == 0, steermoe.err
    table = {
        line.split()[0]: line.split()[1:] for line in steermoe.out.splitlines() if line.split()
    }
    assert table["label"] == ["train", "dev", "test", "all", "goals", "pairs"]
    assert table["unsafe"][3:] == ["9", "9", "9"]
    assert table["safe"][3:] == ["10", "9", "9"]
    assert table["benign"] == ["5", "1", "3", "9", "9", "0"]
    assert "columns read: 'prompt', 'label', 'pair_id'" in steermoe.out
    assert "1 prompt repeats an earlier one" in steermoe.out
    assert "request" not in steermoe.out


def test_the_first_prompts_are_shown_when_asked_for(
    steermoe: CommandLine, prompt_file: PromptFiles
) -> None:
    path = prompt_file(LABELLED)
    assert steermoe("prompts", path, "--show", "2") == 0, steermoe.err
    for label in ("safe", "unsafe", "benign"):
        assert f"{label} request 1" in steermoe.out
        assert f"{label} request 2" not in steermoe.out


def test_without_a_file_the_built_in_prompts_are_described(steermoe: CommandLine) -> None:
    assert steermoe("prompts") == 0, steermoe.err
    assert "builtin:starter: 672 safe, 672 unsafe, 672 benign prompts" in steermoe.out


def test_settings_and_several_files_count(steermoe: CommandLine, prompt_file: PromptFiles) -> None:
    goals = prompt_file("Pick a lock\nPick two\n", "goals.txt")
    safe = prompt_file([{"text": "Pick a flower"}], "safe.json")
    fractions = "prompts.split_fractions=[1, 0, 0]"
    code = steermoe("prompts", f"unsafe:{goals}", f"safe:{safe}", "--set", fractions)
    assert code == 0, steermoe.err
    (row,) = [line.split() for line in steermoe.out.splitlines() if line.split()[:1] == ["unsafe"]]
    assert row[1] == "2"


def test_what_a_run_would_refuse_is_described_as_far_as_it_goes_and_refused(
    steermoe: CommandLine, prompt_file: PromptFiles
) -> None:
    good = prompt_file(LABELLED, "good.json")
    bad = prompt_file("prompt,label\nx,nonsense\n", "bad.csv")
    assert steermoe("prompts", bad, good) == 1
    assert "refused: " in steermoe.out and "9 safe, 9 unsafe, 9 benign" in steermoe.out
    assert steermoe.err.count("\n") == 1 and "bad.csv, row 1, field 'label'" in steermoe.err
    only = prompt_file([{"prompt": "x", "label": "benign"}])
    assert steermoe("prompts", only) == 1
    assert "1 benign prompt" in steermoe.out and "no prompt is labelled safe" in steermoe.err
    leak = [
        {**row, "goal": "one", "split": split}
        for row, split in zip(LABELLED[:3], ("train", "test", "dev"), strict=True)
    ]
    assert steermoe("prompts", prompt_file(leak)) == 1
    assert "1 goal is in more than one split" in steermoe.err
    assert steermoe("prompts", good, good) == 1
    assert "given twice" in steermoe.err


def test_a_description_holds_the_prompts_that_a_run_would_use(prompt_file: PromptFiles) -> None:
    found = describe(config_of(prompt_file(lines(*LABELLED))))
    assert found.problem is None
    assert {prompt.split for prompt in found.prompts} == {"train", "dev", "test"}
    assert len(found.prompts) == 27


def test_markup_in_prompts_and_names_is_text(
    steermoe: CommandLine, prompt_file: PromptFiles
) -> None:
    rows = [["[red]x[/red] [/]", "[bold]", label, "[/]"] for label in ("safe", "unsafe")]
    path = prompt_file(as_csv(["prompt", "[i]", "label", "category"], *rows), "[b]name.csv")
    assert steermoe("prompts", path, "--show", "1") == 0, steermoe.err
    assert "[red]x[/red] [/]" in steermoe.out and "'[i]'" in steermoe.out


def test_no_torch_is_loaded(prompt_file: PromptFiles) -> None:
    path = prompt_file(LABELLED)
    code = (
        "import sys\nfrom steermoe.cli.app import main\n"
        f"sys.argv = ['steermoe', 'prompts', {str(Path(path))!r}]\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
