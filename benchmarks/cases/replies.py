"""Runs that are killed, packed weights, other families' turns, and what replies look like: each made here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases.models import case, sft_tokens, with_token
from benchmarks.cases.room import READ, SILENT, TRACEBACK, Outcome, Room, done
from conftest import save_with_tokenizer
from tiny import COMPARED, as_arguments


@case("c12", "kill -9 after the first checkpoint, and the same command again", READ)
def _(room: Room) -> Outcome:
    room.run()
    unbroken = {name: (room.run_dir / name).read_bytes() for name in compared(room)}
    room.run_dir.rename(room.folder / "unbroken")
    command = [
        sys.executable, "-m", "steermoe", "run", "--run", str(room.run_dir), "--quiet", "--model", str(room.model),
        "--prompts", str(room.prompts), *as_arguments(room.settings),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(room.run_dir.glob("checkpoints/**/optimizer.pt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    result = room.run()
    wrong = [name for name, held in unbroken.items() if (room.run_dir / name).read_bytes() != held]
    problem = f"{wrong[0]} differs" if wrong else "" if killed else "it ended before it was killed"
    return done(result, wrong=problem)


def compared(room: Room) -> list[str]:
    """The files that must be equal byte for byte."""
    return [
        name for name in (*COMPARED, "model/model.safetensors") if (room.run_dir / name).exists()
    ]


@case("c15", "MXFP4 and FP8, unpacked", TRACEBACK)
def _(room: Room) -> Outcome:
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "moe"))
    import test_quantization as packed

    from architectures import BY_NAME

    packed.BY_NAME = {
        name: replace(
            entry, options=entry.options | {"vocab_size": 260, "max_position_embeddings": 1024}
        )
        for name, entry in BY_NAME.items()
    }
    outcome = Outcome(READ)
    for pack in (packed.mxfp4_gpt_oss, packed.fp8_deepseek):
        own = Room(room.folder / pack.__name__, room.settings)
        own.folder.mkdir()
        pack(own.folder / "model")
        outcome = done(own.run("--set", "model.dequantize=true"))
        if outcome.kind != READ:
            break
    return outcome


@case("c17", "replies that go in circles", SILENT)
def _(room: Room) -> Outcome:
    from steermoe.measures.repetition import goes_in_circles

    result = room.run()
    if result.code or result.error:
        return done(result)
    measures = (room.run_dir / "report.html").read_text("utf-8")
    found = goes_in_circles(["one", "two", "one", "two", "one", "two", "one", "two", "one", "two"])
    return done(result, wrong="" if found and "in circles" in measures else "nothing tells it")


@case("c18", "marks of reasoning that are rare, and a refusal in other words", SILENT)
def _(_: Room) -> Outcome:
    import numpy as np

    from steermoe.judges.keyword import KeywordJudge
    from steermoe.reasoning import final_answer
    from steermoe.records import Output, Verdict

    user = {"role": "user", "content": "Hello"}
    wrong = []
    for opening, closing in (("[THINK]", "[/THINK]"), ("\u25c1think\u25b7", "\u25c1/think\u25b7")):
        answer = final_answer("", f"{opening}I can't help with that.{closing}Sure, like this.")
        if answer != "Sure, like this.":
            wrong.append(f"{opening}: {answer}")
    text = "I cannot and will not help with that."
    routes = np.zeros((0, 1, 1), np.uint8)
    reply = Output("", (user,), text, (1,), (2,), routes, answer=text)
    if KeywordJudge().judge([reply])[0].verdict is not Verdict.REFUSED:
        wrong.append("a refusal is not seen")
    return Outcome(SILENT, "; ".join(wrong)) if wrong else Outcome(READ)


@case("c21", "gpt-oss with its channels", SILENT)
def _(room: Room) -> Outcome:
    from architectures import BY_NAME
    from chat_templates import FAMILIES

    family = FAMILIES["gpt-oss"]
    tokenizer = family.tokenizer()
    architecture = BY_NAME["gpt_oss"]
    wide = replace(
        architecture,
        options=architecture.options
        | {"vocab_size": len(tokenizer), "max_position_embeddings": 1024},
    )
    model = wide.build()
    save_with_tokenizer(model, tokenizer, room.folder / "model")
    result = room.run()
    learned = sft_tokens(room)
    wrong = "" if learned == family.turn else f"learns {learned!r}"
    return done(result, wrong=wrong)


@case("c26", "padding is the end token; groups of 1 and of 32", READ)
def _(room: Room) -> Outcome:
    import pandas as pd

    texts: list[list[str]] = []
    for size, pad in ((16, False), (16, True), (1, True), (32, True)):
        if pad:
            with_token(room.model, lambda t: setattr(t, "pad_token", t.eos_token))
        own = room.folder / f"run-{size}-{pad}"
        result = room.run(
            "--run", own, "--set", f"collect.generation_batch_size={size}", command="collect"
        )
        if result.code or result.error:
            return done(result)
        replies: Any = pd.read_parquet(own / "responses.parquet").sort_values("prompt_id")
        texts.append(list(replies["generated_text"]))
    return done(result, wrong="" if all(t == texts[0] for t in texts) else "replies differ")
