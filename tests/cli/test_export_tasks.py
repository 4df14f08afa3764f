"""Prompts as tasks of other tools, from the command line: those of a run, and those of a file without one."""

from __future__ import annotations

import json
from pathlib import Path

from steermoe.prompts.formats import read_prompts
from steermoe.records import Label, Split
from steermoe.store.run import load_run
from tiny import CommandLine


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_evaluated_prompts_of_a_run_become_tasks_of_both_tools(
    steermoe: CommandLine, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tasks"
    formats = ("--format", "lm-eval", "--format", "inspect")
    assert steermoe("export", "--run", finished, *formats, "-o", out) == 0, steermoe.err
    run = load_run(finished)
    unsafe = [p for p in run.prompts if p.split is Split.TEST and p.label is Label.UNSAFE]
    assert len(unsafe) == 4
    assert [row["id"] for row in rows(out / "inspect" / "unsafe.jsonl")] == [
        p.prompt_id for p in unsafe
    ]
    assert [row["prompt"] for row in rows(out / "lm-eval" / "unsafe.jsonl")] == [
        p.messages[-1]["content"] for p in unsafe
    ]
    length = run.config.collect.max_new_tokens
    assert f"max_gen_toks: {length}" in (out / "lm-eval" / "steermoe_unsafe.yaml").read_text()
    assert f"max_tokens: int = {length}" in (out / "inspect" / "steermoe_tasks.py").read_text()
    written = steermoe.out.splitlines()
    assert str(out / "lm-eval" / "steermoe.yaml") in written
    assert all(Path(path).is_file() for path in written)


def test_the_starter_prompts_need_no_run(steermoe: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "tasks"
    assert steermoe("export", "--prompts", "builtin:starter", "-o", out) == 0, steermoe.err
    test = [p for p in read_prompts("builtin:starter").prompts if p.split is Split.TEST]
    for name, chosen in (
        ("unsafe", [p for p in test if p.label is Label.UNSAFE]),
        ("benign", [p for p in test if p.label is Label.BENIGN]),
        ("look_alike", [p for p in test if p.is_look_alike]),
    ):
        for tool in ("inspect", "lm-eval"):
            assert len(rows(out / tool / f"{name}.jsonl")) == len(chosen) > 0


def test_a_file_of_prompts_is_no_run_to_export_tables_from(
    steermoe: CommandLine, tmp_path: Path
) -> None:
    said = steermoe.refusal("export", "--prompts", "builtin:starter", "--format", "csv")
    assert said == "--prompts builtin:starter goes with --format lm-eval or inspect, not csv"


def test_prompts_of_no_kind_that_has_a_rate_are_refused(
    steermoe: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "safe.csv"
    file.write_text("prompt,label\nHow tall is a tree?,safe\n", encoding="utf-8")
    said = steermoe.refusal("export", "--prompts", file, "--format", "inspect", "-o", tmp_path)
    assert "there is no task to write" in said
