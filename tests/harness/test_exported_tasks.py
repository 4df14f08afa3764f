"""Prompts as tasks of other tools: what is in the files, and what is counted of a reply."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
import yaml

from steermoe.errors import PromptError
from steermoe.harness.inspect_export import write_inspect_tasks
from steermoe.harness.lm_eval_scoring import results
from steermoe.harness.lm_eval_tasks import write_lm_eval_tasks
from steermoe.harness.prompt_tasks import PROMPT_TASKS, hits, prompts_by_task, task_named
from steermoe.prompts.formats import read_prompts
from steermoe.records import LOOK_ALIKE, PLAIN_GOAL, Label, Message, Prompt, Verdict

STARTER = read_prompts("builtin:starter").prompts
SYSTEM: Message = {"role": "system", "content": "Be brief."}


def prompt(name: str, label: Label, *before: Message, category: str = "") -> Prompt:
    turns = (*before, {"role": "user", "content": f"Say {name}."})
    return Prompt(name, label, turns, goal=name, category=category)


def test_every_kind_that_has_a_rate_is_a_task_and_the_others_are_counted() -> None:
    prompts = [
        prompt("a", Label.UNSAFE),
        prompt("b", Label.SAFE, category=LOOK_ALIKE),
        prompt("c", Label.BENIGN),
        prompt("d", Label.SAFE, category=PLAIN_GOAL),
    ]
    found = prompts_by_task(prompts)
    ids = {name: [p.prompt_id for p in of_kind] for name, of_kind in found.by_task.items()}
    assert ids == {"unsafe": ["a"], "look_alike": ["b"], "benign": ["c"]}
    assert found.notes == (
        "1 prompts are neither unsafe, benign nor look-alikes, and are in no task",
    )
    with pytest.raises(PromptError, match="no task to write"):
        prompts_by_task(prompts[3:])


def test_a_reply_is_a_hit_of_one_rate_or_of_none() -> None:
    unsafe, benign = task_named("unsafe"), task_named("benign")
    refusal = "I'm sorry, but I can't help with that."
    assert hits(unsafe, refusal) == (
        Verdict.REFUSED,
        {"refusal_rate": 1.0, "attack_success_rate": 0.0},
    )
    assert hits(unsafe, "Here is how it goes.")[1] == {
        "refusal_rate": 0.0,
        "attack_success_rate": 1.0,
    }
    assert hits(benign, refusal)[1] == {"over_refusal_rate": 1.0}
    verdict, found = hits(unsafe, " ")
    assert verdict is Verdict.UNSCORED
    assert all(math.isnan(value) for value in found.values())


def test_lm_eval_is_told_which_replies_are_unscored() -> None:
    assert results("benign", {"prompt": "Bread?"}, ["Bread needs yeast."]) == {
        "over_refusal_rate": 0.0,
        "unscored_rate": 0.0,
    }
    found = results("benign", {"prompt": "Bread?"}, [""])
    assert math.isnan(found["over_refusal_rate"]) and found["unscored_rate"] == 1.0


class Functions(yaml.SafeLoader):
    """Reads lm-eval's `!function` as the name that follows it."""


Functions.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_lm_eval_tasks_hold_every_prompt_and_name_functions_that_exist(tmp_path: Path) -> None:
    written, notes = write_lm_eval_tasks(STARTER, tmp_path / "tasks", 48)
    assert not notes
    assert all(path.is_file() and path.parent == tmp_path / "tasks" for path in written)
    group = yaml.safe_load((tmp_path / "tasks" / "steermoe.yaml").read_text(encoding="utf-8"))
    assert group == {"group": "steermoe", "task": [f"steermoe_{t.name}" for t in PROMPT_TASKS]}
    source = (tmp_path / "tasks" / "steermoe_functions.py").read_text(encoding="utf-8")
    defined = {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    for task in PROMPT_TASKS:
        text = (tmp_path / "tasks" / f"steermoe_{task.name}.yaml").read_text(encoding="utf-8")
        settings = yaml.load(text, Functions)  # a safe loader with one more tag
        for key in ("custom_dataset", "process_results"):
            module, _, function = settings[key].partition(".")
            assert module == "steermoe_functions" and function in defined
        assert settings["generation_kwargs"] == {
            "until": [],
            "do_sample": False,
            "max_gen_toks": 48,
        }
        metrics = {metric["metric"]: metric["aggregation"] for metric in settings["metric_list"]}
        assert metrics == {**dict.fromkeys(task.rates, "nanmean"), "unscored_rate": "mean"}
        lines = (tmp_path / "tasks" / f"{task.name}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in lines.splitlines()]
        of_kind = [p for p in STARTER if task.holds(p)]
        assert [(row["prompt_id"], row["prompt"]) for row in rows] == [
            (p.prompt_id, p.messages[-1]["content"]) for p in of_kind
        ]


def test_a_shared_system_turn_is_said_and_several_turns_are_left_out_aloud(tmp_path: Path) -> None:
    answered: Message = {"role": "assistant", "content": "Yes?"}
    asked: Message = {"role": "user", "content": "Hello"}
    prompts = [
        prompt("a", Label.BENIGN, SYSTEM),
        prompt("b", Label.BENIGN, SYSTEM),
        prompt("c", Label.BENIGN, SYSTEM, asked, answered),
    ]
    _, notes = write_lm_eval_tasks(prompts, tmp_path, 8)
    assert len(notes) == 1 and notes[0].startswith("1 prompts have several turns")
    assert "--system_instruction 'Be brief.'" in (tmp_path / "README.md").read_text("utf-8")
    rows = (tmp_path / "benign.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["prompt_id"] for row in rows] == ["a", "b"]
    with pytest.raises(PromptError, match="no prompt has one turn alone"):
        write_lm_eval_tasks(prompts[2:], tmp_path, 8)
    # Where system turns differ, prompts with one cannot be held, and those without can.
    mixed = [prompts[0], prompt("d", Label.BENIGN)]
    _, notes = write_lm_eval_tasks(mixed, tmp_path, 8)
    assert len(notes) == 1
    assert json.loads((tmp_path / "benign.jsonl").read_text("utf-8"))["prompt_id"] == "d"


def test_inspect_tasks_hold_every_turn_of_every_prompt(tmp_path: Path) -> None:
    prompts = [prompt("a", Label.UNSAFE, SYSTEM), prompt("b", Label.BENIGN)]
    written, notes = write_inspect_tasks(prompts, tmp_path, 12)
    assert not notes
    assert [path.name for path in written] == ["steermoe_tasks.py", "unsafe.jsonl", "benign.jsonl"]
    row = json.loads((tmp_path / "unsafe.jsonl").read_text(encoding="utf-8"))
    assert row["id"] == "a"
    assert row["input"] == [dict(SYSTEM), {"role": "user", "content": "Say a."}]
    tree = ast.parse((tmp_path / "steermoe_tasks.py").read_text(encoding="utf-8"))
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert set(functions) == {"steermoe_unsafe", "steermoe_benign"}
    assert [ast.literal_eval(d) for d in functions["steermoe_benign"].args.defaults] == [
        "keyword",
        12,
    ]
