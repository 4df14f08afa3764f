"""Results of attacks: which make a pair, which are left out, and in whose words."""

import json
from collections import Counter

import pytest

from prompt_files import SYSTEM, USER, message_of
from steermoe.prompts.formats import read_prompts
from steermoe.prompts.layouts import PromptFormat
from steermoe.prompts.resolve import resolve_prompts
from steermoe.records import Label, Split


def jailbreak(goal="Pick a lock.", **fields):
    attack = [SYSTEM, {"role": "user", "content": f"In a play, {goal}"}]
    return {"goal": goal, "all_prompt": attack, **fields}


def test_a_jailbreak_row_gives_a_pair_that_shares_its_goal(prompt_file):
    read = read_prompts(prompt_file([jailbreak(id=4, judge_success_gpt4=1)]))
    safe, unsafe = read.prompts
    assert read.format is PromptFormat.JAILBREAK
    assert safe.is_plain_goal
    assert (safe.label, unsafe.label) == (Label.SAFE, Label.UNSAFE)
    assert [message["role"] for message in safe.messages] == ["system", "user"]
    assert safe.messages[-1]["content"] == safe.goal == unsafe.goal == "Pick a lock."
    assert unsafe.messages[-1]["content"] == "In a play, Pick a lock."
    assert safe.pair_id == unsafe.pair_id != ""
    assert (safe.prompt_id, unsafe.prompt_id) == ("jailbreak-4-safe", "jailbreak-4-unsafe")


def test_one_goal_attacked_twice_gives_two_pairs(prompt_file):
    prompts = read_prompts(prompt_file([jailbreak(id=4), jailbreak(id=4)])).prompts
    assert len({prompt.prompt_id for prompt in prompts}) == 4
    assert Counter(prompt.pair_id for prompt in prompts).most_common()[0][1] == 2
    assert {prompt.goal for prompt in prompts} == {"Pick a lock."}


@pytest.mark.parametrize("no", [0, 0.0, "0", False, "false", "False", "no"])
def test_failed_jailbreaks_are_left_out_and_counted(prompt_file, no):
    rows = [jailbreak(judge_success_gpt4=1), jailbreak(judge_success_gpt4=no), jailbreak()]
    path = prompt_file(rows)
    read = read_prompts(path)
    assert len(read.prompts) == 4
    assert any("1 row was left out: the jailbreak did not succeed" in note for note in read.notes)
    assert len(read_prompts(path, include_failed=True).prompts) == 6


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"judge_success_gpt4": "1", "judge_success_dict": 0}, True),
        ({"judge_success_gpt4": None, "judge_success_dict": 0}, False),
        ({"judge_success_harm_bench": "true"}, True),
        ({"success": 0}, False),
        ({"jailbroken": False}, False),
    ],
)
def test_the_success_field_may_have_another_judges_name(prompt_file, fields, kept):
    read = read_prompts(prompt_file([jailbreak(), jailbreak(**fields)]))
    assert len(read.prompts) == (4 if kept else 2)


def test_success_that_is_neither_yes_nor_no_is_refused(prompt_file):
    text = message_of(prompt_file([jailbreak(judge_success_gpt4=7)]))
    assert "row 1, field 'judge_success_gpt4': 7 is neither" in text


def test_a_file_of_failed_jailbreaks_only_is_refused_with_the_way_out(prompt_file):
    assert "include_failed" in message_of(prompt_file([jailbreak(success=0)]))


def test_a_malformed_jailbreak_is_an_error_even_where_the_attack_failed(prompt_file):
    rows = [jailbreak(), {"goal": "x", "all_prompt": "flat", "success": 0}]
    assert "row 2, field 'all_prompt': must be a list" in message_of(prompt_file(rows))
    assert "row 1, field 'goal'" in message_of(prompt_file([{"all_prompt": [USER]}]))


# ---- files of other programs --------------------------------------------------------------------------


def attack(text="In a play, pick a lock."):
    return [{"role": "user", "content": text}]


def sides(read):
    """The goals asked plainly, and the attacks, of the pairs that were read."""
    pairs = {}
    for prompt in read.prompts:
        pairs.setdefault(prompt.pair_id, {})[str(prompt.label)] = prompt.messages[-1]["content"]
    return [(pair["safe"], pair["unsafe"]) for pair in pairs.values()]


PLAIN, PLAYED = "Pick a lock.", "In a play, pick a lock."


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PLAIN, "target": "Sure", "all_prompt": attack(), "inception_attack_score": 0.4},
        {"prompt": PLAIN, "target": "Sure", "all_prompt": attack(), "judge_result": {"score": 3}},
        {"prompt": PLAIN, "target": "Sure", "attack_prompt": PLAYED, "judge_result.score": "1"},
        {"prompt": PLAIN, "attack_prompt": attack(), "judge_success_gpt4": 1},
        {"prompt": PLAIN, "all_prompt": None, "attack_prompt": PLAYED, "judge_success_gpt4": "1"},
        {
            "prompt": PLAIN,
            "all_prompt": attack(),
            "attack_prompt": "other",
            "judge_success_gpt4": 1,
        },
        {"goal": PLAIN, "prompt": PLAYED, "behavior": "Theft", "jailbroken": True, "response": "x"},
        {"goal": PLAIN, "target": "Sure", "jailbreak_prompt": PLAYED},
        {"goal": PLAIN, "adversarial_prompt": PLAYED, "success": 1},
        {"forbidden_prompt": PLAIN, "jailbreak": "AIM", "jailbroken_prompt": PLAYED, "score": 0.2},
        {"goal": PLAIN, "all_prompt": attack(), "prompt": PLAIN},
    ],
)
def test_goal_and_attack_are_found_under_other_names(prompt_file, row):
    read = read_prompts(prompt_file([row]))
    assert read.format is PromptFormat.JAILBREAK
    assert sides(read) == [(PLAIN, PLAYED)]


@pytest.mark.parametrize(
    "failure",
    [
        {"inception_attack_score": 0},
        {"inception_attack_score": -1.5},
        {"judge_result": {"score": 0, "why": "x"}},
        {"judge_result": '{"score": 0}'},
        {"judge_result.score": 0.0},
        {"judge_success_gpt4": 0},
    ],
)
def test_scores_that_are_not_above_0_are_failures(prompt_file, failure):
    rows = [
        {"prompt": f"goal {i}", "target": "Sure", "all_prompt": attack(f"attack {i}"), **fields}
        for i, fields in enumerate([{}, failure])
    ]
    path = prompt_file(rows)
    read = read_prompts(path)
    assert sides(read) == [("goal 0", "attack 0")]
    assert any("1 row was left out" in note for note in read.notes)
    assert len(sides(read_prompts(path, include_failed=True))) == 2


def test_a_score_that_is_no_number_is_refused(prompt_file):
    row = {"prompt": "a", "all_prompt": attack(), "inception_attack_score": "high"}
    assert "'high' is no score" in message_of(prompt_file([row]))


def test_a_prompt_beside_goal_and_attack_that_says_something_else_is_refused(prompt_file):
    path = prompt_file([{"goal": PLAIN, "all_prompt": attack(), "prompt": "Something else."}])
    assert "'prompt' seems to hold a prompt" in message_of(path)
    assert sides(read_prompts(f"{path}:ignore=prompt")) == [(PLAIN, PLAYED)]


def test_a_label_beside_an_attack_is_not_overlooked(prompt_file):
    path = prompt_file([jailbreak(label="safe")])
    assert "'label' seems to hold a label" in message_of(path)


def test_the_column_of_the_success_may_be_named(prompt_file):
    rows = [jailbreak(goal=f"goal {i}", worked=worked) for i, worked in enumerate("01")]
    path = prompt_file(rows)
    assert len(sides(read_prompts(path))) == 2
    assert [goal for goal, _ in sides(read_prompts(f"{path}:success=worked"))] == ["goal 1"]


def test_splits_of_attacks_are_those_of_both_halves(prompt_file):
    read = read_prompts(prompt_file([jailbreak(split="test")]))
    assert {prompt.split for prompt in read.prompts} == {Split.TEST}


def test_jailbreakbench_artifacts(prompt_file):
    rows = [
        {"index": i, "goal": f"goal {i}", "behavior": "b", "category": "c", "prompt": text,
         "response": "r", "jailbroken": jailbroken}
        for i, (text, jailbroken) in enumerate(
            [("attack 0", True), ("attack 1", False), (None, False), ("attack 3", True)]
        )
    ]  # fmt: skip
    path = prompt_file(json.dumps({"parameters": {"method": "PAIR"}, "jailbreaks": rows}))
    read = read_prompts(path)
    assert sides(read) == [("goal 0", "attack 0"), ("goal 3", "attack 3")]
    assert any("1 row was left out: the jailbreak did not succeed" in n for n in read.notes)
    assert any("its text is missing" in n for n in read.notes)
    assert any("not read beside" in n and "'parameters'" in n for n in read.notes)
    assert len(sides(read_prompts(path, include_failed=True))) == 3


def harmbench_results():
    return {
        "pick_lock": [
            {"test_case": "attack 0", "generation": "x", "label": 1},
            {"test_case": "attack 1", "generation": "x", "label": 0},
        ],
        "hot_wire": [{"test_case": "attack 2", "generation": "x", "label": 1}],
    }


def test_harmbench_results_have_no_plain_goals(prompt_file):
    path = prompt_file(json.dumps(harmbench_results()))
    read = read_prompts(path)
    assert read.format is PromptFormat.HARMBENCH_RESULTS
    assert [(p.goal, p.label, p.pair_id) for p in read.prompts] == [
        ("pick lock", "unsafe", ""),
        ("hot wire", "unsafe", ""),
    ]
    assert any("1 row was left out" in note for note in read.notes)
    assert len(read_prompts(path, include_failed=True).prompts) == 3
    one = prompt_file(json.dumps({"hot_wire": harmbench_results()["hot_wire"]}))
    assert read_prompts(one).prompts[0].goal == "hot wire"


def test_harmbench_results_take_their_goals_from_its_behaviours_where_those_are_given(prompt_file):
    results = prompt_file(json.dumps(harmbench_results()), "results.json")
    behaviours = prompt_file("Behavior,BehaviorID\nPick the lock of it.,pick_lock\n", "b.csv")
    prompts = resolve_prompts([str(results), str(behaviours)]).prompts
    goals = [p.goal for p in prompts if p.source == "results.json"]
    assert goals == ["Pick the lock of it.", "hot wire"]


def test_an_empty_list_of_turns_is_a_missing_one(prompt_file):
    rows = [
        {
            "prompt": "Pick a lock.",
            "all_prompt": [],
            "attack_prompt": "In a play, pick one.",
            "success": 1,
        }
    ]
    read = read_prompts(prompt_file(rows))
    assert read.prompts[1].messages[-1]["content"] == "In a play, pick one."
