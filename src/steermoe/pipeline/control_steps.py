"""The steps of controls: other experts, trained, replied with, judged and compared as the selected ones are."""

from __future__ import annotations

from dataclasses import replace

from steermoe.pipeline import inputs
from steermoe.pipeline.checks import asks_for_controls, check_controls
from steermoe.pipeline.judged import are_controls_judged, judging
from steermoe.pipeline.step import Step, stage
from steermoe.pipeline.steps import (
    BASE_REPLIES,
    INTERVALS,
    MODEL_ASIDE,
    PROMPTS,
    REPLY,
    RISK,
    ROUTING,
    TOKENS,
    TRAIN,
)
from steermoe.store import names

SELECTABLE = ("identify.rank_within", "identify.first_layer", "identify.last_layer")

CONTROL_DELTAS = f"{names.CONTROLS}/*.safetensors"

CONTROL_REPLIES, CONTROL_SCORED = (
    f"{folder}/{names.CONTROL}*.parquet" for folder in (names.REPLIES, names.SCORED)
)

OF_CONTROLS = tuple(
    inputs.family(f"{what} of controls", pattern)
    for what, pattern in (("replies", CONTROL_REPLIES), ("values", CONTROL_SCORED))
)

TRAIN_CONTROLS = Step(
    "train controls",
    stage("controls", "train_controls"),
    settings=(*TRAIN.settings, "identify.rank_by", *SELECTABLE),
    aside=tuple(key for key in TRAIN.aside if key != "train.controls"),
    reads=(*TRAIN.reads, RISK, inputs.whole_file(names.SCORES), inputs.HARDENED_MODEL),
    writes=(CONTROL_DELTAS,),
    goes_on_from=(CONTROL_DELTAS, names.CONTROL_CHECKPOINTS),
    check=check_controls,
    needs_model=True,
    by_all=True,
    is_asked_for=asks_for_controls,
)

REPLY_CONTROLS = Step(
    "reply controls",
    stage("controls", "reply_controls"),
    settings=REPLY.settings,
    aside=MODEL_ASIDE,
    reads=(
        inputs.BASE_MODEL,
        inputs.family("controls", CONTROL_DELTAS),
        PROMPTS,
        BASE_REPLIES,
        TOKENS,
        ROUTING,
    ),
    writes=(CONTROL_REPLIES, CONTROL_SCORED),
    goes_on_from=(CONTROL_REPLIES, CONTROL_SCORED, f"{names.SHARDS}/*{names.CONTROL}*"),
    needs_model=True,
    is_asked_for=asks_for_controls,
)

JUDGE_CONTROLS = replace(
    judging(
        "judge controls",
        stage("judge", "judge_controls"),
        OF_CONTROLS[0],
        is_there=are_controls_judged,
    ),
    is_asked_for=asks_for_controls,
)

COMPARE_CONTROLS = Step(
    "compare controls",
    stage("controls", "summarise_controls"),
    settings=(*INTERVALS, "evaluate.split", "judge.main"),
    reads=(
        PROMPTS,
        inputs.replies(names.HARDENED),
        inputs.scored(names.HARDENED),
        inputs.verdicts_on(names.HARDENED),
        inputs.family("controls", CONTROL_DELTAS),
        *OF_CONTROLS,
        inputs.VERDICTS_ON_CONTROLS,
    ),
    writes=(names.CONTROL_FIGURES,),
    is_asked_for=asks_for_controls,
)
