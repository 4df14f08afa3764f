"""Which steps each command does, and which settings can be given to it."""

from __future__ import annotations

from steermoe.config import Config
from steermoe.pipeline.control_steps import (
    COMPARE_CONTROLS,
    JUDGE_CONTROLS,
    REPLY_CONTROLS,
    TRAIN_CONTROLS,
)
from steermoe.pipeline.step import Step
from steermoe.pipeline.steps import (
    ABLATE,
    ABLATION,
    CAN_STILL,
    COLLECT,
    EVALUATE,
    FORECAST,
    IDENTIFY,
    JUDGE,
    JUDGE_ABLATED,
    JUDGE_HARDENED,
    REPLY,
    REPORT,
    SCORE,
    TRAIN,
)

RUN = (
    *(COLLECT, JUDGE, SCORE, IDENTIFY, FORECAST, TRAIN, TRAIN_CONTROLS, REPLY, JUDGE_HARDENED),
    *(REPLY_CONTROLS, JUDGE_CONTROLS, *CAN_STILL, EVALUATE, COMPARE_CONTROLS, REPORT),
)
"""What `steermoe run` does, in order."""

COMMANDS: dict[str, tuple[tuple[Step, ...], tuple[Step, ...]]] = {
    "run": ((), RUN),
    "collect": ((), (COLLECT, JUDGE)),
    "judge": ((), (JUDGE, JUDGE_HARDENED, JUDGE_ABLATED)),
    "identify": ((JUDGE,), (SCORE, IDENTIFY, FORECAST)),
    "train": ((JUDGE,), (TRAIN, TRAIN_CONTROLS)),
    "evaluate": (
        (JUDGE,),
        (
            *(REPLY, JUDGE_HARDENED, REPLY_CONTROLS, JUDGE_CONTROLS),
            *(*CAN_STILL, EVALUATE, COMPARE_CONTROLS),
        ),
    ),
    "ablate": ((JUDGE,), (ABLATE, JUDGE_ABLATED, EVALUATE, ABLATION)),
    "report": ((), (REPORT,)),
    "labels": ((), (EVALUATE, REPORT)),
}
"""Of each command the cheap steps that it brings up to date first, and those that it is there for.

`labels` is what `steermoe judge --labels` does when the labels are in the run.
"""


def settings_of(command: str) -> tuple[str, ...]:
    """The settings that can be given to a command; those that begin a run take all, for the steps to come."""
    if command in ("run", "collect"):
        return tuple(Config.model_fields)
    steps = [step for part in COMMANDS[command] for step in part]
    asked = (step.settings if step.asks is None else step.asks for step in steps)
    return ("run", *dict.fromkeys(key for keys in asked for key in keys))
