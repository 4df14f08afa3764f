"""Settings that people write, and runs that have nothing to show."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.cases.models import case
from benchmarks.cases.room import (
    LATE,
    SILENT,
    Outcome,
    Room,
    done,
    refused,
    rows,
    set_json,
)
from tiny import write_prompts


def config_of(room: Room, command: str, *more: str | Path) -> dict[str, Any]:
    """The settings in `run.json` after a command on a finished run."""
    room.run(*more, command=command)
    found: dict[str, Any] = room.json("run.json")["config"]
    return found


# ---- the settings are what they look like -----------------------------------------------------------------


@case("o80", "model.chat_template_kwargs.enable_thinking=False", SILENT)
def _(room: Room) -> Outcome:
    result = room.run(
        "--set", "model.chat_template_kwargs.enable_thinking=False", command="collect"
    )
    line = (
        (room.run_dir / "prompts.jsonl").read_text("utf-8").splitlines()[0]
        if not result.code
        else ""
    )
    return done(result, wrong="" if "</think>" in line else "thinking stays on")


@case("o81", "model.chat_template_kwargs.enable_thinking=off", SILENT)
def _(room: Room) -> Outcome:
    return refused(room.run("--set", "model.chat_template_kwargs.enable_thinking=off"), "off")


@case("o82", "an optional setting emptied: identify.last_layer=", LATE)
def _(room: Room) -> Outcome:
    return done(room.run("--set", "identify.last_layer=", command="collect"))


@case("o83", "prompts.system_prompt=none", SILENT)
def _(room: Room) -> Outcome:
    result = room.run("--set", "prompts.system_prompt=none", command="collect")
    if result.code:
        return refused(result, "system_prompt")
    line = (room.run_dir / "prompts.jsonl").read_text("utf-8").splitlines()[0]
    return done(result, wrong="'none' becomes the system prompt" if '"none"' in line else "")


@case("o84", "--run ''", LATE)
def _(room: Room) -> Outcome:
    return refused(room.run("--run", ""), "--run")


@case("o85", "--prompts '~/p.csv'", LATE)
def _(room: Room) -> Outcome:
    home = os.environ["HOME"]
    os.environ["HOME"] = str(room.folder)
    try:
        return (
            done(room.run("--prompts", f"~/{room.prompts.name}.copy"))
            if _copied(room)
            else done(room.run())
        )
    finally:
        os.environ["HOME"] = home


def _copied(room: Room) -> bool:
    more = [{**row, "prompt": f"{row['prompt']} again", "pair_id": ""} for row in rows()]
    write_prompts(room.prompts.with_name("prompts.csv.copy"), more)
    return True


@case("o86", "--set run=~/x", LATE)
def _(room: Room) -> Outcome:
    home = os.environ["HOME"]
    os.environ["HOME"] = str(room.folder)
    try:
        result = room.steermoe(
            "collect", "--quiet", "--model", room.model, "--prompts", room.prompts, "--set", "run=~/run",
            "--set", "collect.batch_size=8", "--set", "collect.max_new_tokens=4",
        )  # fmt: skip
    finally:
        os.environ["HOME"] = home
    return done(
        result, wrong="" if (room.run_dir / "run.json").exists() else "a folder named ~ is made"
    )


@case("o87", "train.arguments.report_to=wandb without wandb", LATE)
def _(room: Room) -> Outcome:
    return refused(room.run("--set", "train.arguments.report_to=wandb"), "wandb")


@case("o88", "chat_template_kwargs as JSON", LATE)
def _(room: Room) -> Outcome:
    value = json.dumps({"enable_thinking": False})
    result = room.run("--set", f"model.chat_template_kwargs={value}", command="collect")
    line = (
        (room.run_dir / "prompts.jsonl").read_text("utf-8").splitlines()[0]
        if not result.code
        else ""
    )
    return done(result, wrong="" if "</think>" in line else "thinking stays on")


@case("o89a", "train --set identify.top_k=2 on a finished run", SILENT)
def _(room: Room) -> Outcome:
    room.run()
    return refused(room.run("--set", "identify.top_k=2", command="train"), "identify.top_k")


@case("o89b", "report --set train.epochs=77 on a finished run", SILENT)
def _(room: Room) -> Outcome:
    room.run()
    return refused(room.run("--set", "train.epochs=77", command="report"), "train.epochs")


@case("o89c", "a settings file of another run given to one step", SILENT)
def _(room: Room) -> Outcome:
    room.run()
    file = room.folder / "settings.toml"
    file.write_text("[train]\nepochs = 77\n", "utf-8")
    result = room.run("--config", file, command="report")
    said = room.json("run.json")["config"]["train"]["epochs"]
    return (
        refused(result, "train.epochs")
        if result.code
        else done(
            result,
            wrong="" if said == 2 else "run.json says so, though nothing was trained with it",
        )
    )


# ---- the same thing, spelt otherwise ------------------------------------------------------------------------


@case("o73a", "the same model as DIR/ and by a link", LATE)
def _(room: Room) -> Outcome:
    room.run(command="collect")
    (room.folder / "link").symlink_to(room.model)
    first = room.run("--model", f"{room.model}/", command="collect")
    return done(room.run("--model", "link", command="collect")) if not first.code else done(first)


@case("o73b", "the same prompt file by another path", LATE)
def _(room: Room) -> Outcome:
    room.run(command="collect")
    settings = ["--set", f'prompts.sources=["./{room.prompts.name}"]']
    result = room.steermoe(
        "collect", "--quiet", "--run", room.run_dir, "--model", room.model, *_tiny(room), *settings
    )
    return done(result, "done already")


def _tiny(room: Room) -> list[str]:
    from tiny import as_arguments

    return as_arguments(room.settings)


@case("o74", "model.device=cpu on a finished run", LATE)
def _(room: Room) -> Outcome:
    room.run(command="collect")
    return done(room.run("--set", "model.device=cpu", command="collect"), "done already")


@case("o75", "seed changed on a finished run", LATE)
def _(room: Room) -> Outcome:
    room.run(command="collect")
    return refused(room.run("--seed", "3", command="collect"), "seed was 0 and is 3")


@case("o76", "evaluate.confidence changed on a finished run", LATE)
def _(room: Room) -> Outcome:
    room.run()
    result = room.run("--set", "evaluate.confidence=0.9")
    again = "reply: evaluate" in result.text or "train: evaluate" in result.text
    return done(result, wrong="replies are made again" if again else "")


@case("o77", "identify.num_bootstrap changed on a finished run", LATE)
def _(room: Room) -> Outcome:
    room.run()
    result = room.run("--set", "identify.num_bootstrap=30")
    return done(result, "train: done already")


# ---- degenerate runs ------------------------------------------------------------------------------------------


def replies(room: Room, unsafe: str, safe: str) -> None:
    """Have the base model's replies read so, by a judge of the user's own."""
    (room.folder / "judging.py").write_text(
        "from steermoe.records import Judgement, Verdict\n"
        "def judge(exchanges):\n"
        f"    said = {{'unsafe': {unsafe!r}, 'safe': {safe!r}}}\n"
        "    return [Judgement(Verdict(said['unsafe' if 'Unsafe' in e.goal else 'safe'])) for e in exchanges]\n",
        "utf-8",
    )


@case("o90", "base refuses every unsafe prompt", SILENT)
def _(room: Room) -> Outcome:
    replies(room, "refused", "answered")
    return judged(room, "refuses")


@case("o91", "all replies are unscored", LATE)
def _(room: Room) -> Outcome:
    replies(room, "unscored", "unscored")
    return judged(room, "unscored")


def judged(room: Room, *said: str) -> Outcome:
    """The run with the judge of `replies`."""
    import sys

    sys.path.insert(0, str(room.folder))
    sys.modules.pop("judging", None)
    try:
        result = room.run("--set", "judge.main=judging:judge")
    finally:
        sys.path.remove(str(room.folder))
    before = result.err.split("one trained turn")[0]
    missing = [words for words in said if words not in before]
    return done(result, wrong=f"nothing says {missing[0]!r} before training" if missing else "")


@case("o92", "one prompt is labelled unsafe and benign", SILENT)
def _(room: Room) -> Outcome:
    more = [
        *rows(),
        {"prompt": "Bake a loaf 1", "label": "unsafe", "pair_id": "", "split": "train"},
    ]
    write_prompts(room.prompts, more)
    return done(room.run(command="collect"), "more than one label")


@case("o93", "the whole file twice", SILENT)
def _(room: Room) -> Outcome:
    write_prompts(room.folder / "copy.csv", rows())
    return done(room.run("--prompts", room.folder / "copy.csv", command="collect"), "repeat")


@case("o94", "as many experts as top-k", LATE)
def _(room: Room) -> Outcome:
    set_json(room.model / "config.json", {"num_experts_per_tok": 8})
    result = room.run()
    return done(result, "8 of 8") if not result.code else refused(result, "8 of 8")


@case("o95", "refusal_weight = retention_weight = 0", LATE)
def _(room: Room) -> Outcome:
    weights = ["--set", "train.refusal_weight=0", "--set", "train.retention_weight=0"]
    result = room.run(*weights)
    return (
        done(result, "train.refusal_weight")
        if not result.code
        else refused(result, "train.refusal_weight")
    )


@case("o96", "collect.max_new_tokens=1", LATE)
def _(room: Room) -> Outcome:
    return refused(room.run("--set", "collect.max_new_tokens=1"), "collect.max_new_tokens")


@case("o97", "identify.rule=random under train.experts=union", SILENT)
def _(room: Room) -> Outcome:
    room.settings["identify"]["top_k"] = 2
    room.run("--set", "train.experts=union", "--set", "identify.threshold=-1")
    first = room.json("run.json")["stages"]["train"]["figures"]["trained_experts"]
    second_room = Room(room.folder / "second", room.settings)
    second_room.folder.mkdir()
    result = second_room.run(
        "--set",
        "train.experts=union",
        "--set",
        "identify.threshold=-1",
        "--set",
        "identify.rule=random",
    )
    second = second_room.json("run.json")["stages"]["train"]["figures"]["trained_experts"]
    same = sorted(map(tuple, first)) == sorted(map(tuple, second))
    return done(result, wrong="the same experts are trained" if same else "")


@case("o98", "evaluation.json edited by hand", SILENT)
def _(room: Room) -> Outcome:
    room.run()
    set_json(room.run_dir / "evaluation.json", {"note": "better"})
    return refused(room.run("--force", command="report"), "changed or damaged", after="never")
