"""The steps of every run, and those of capability, benchmarks and ablation.

A step is handed the settings and the files that it declares here, and gets nothing else. It is done again only where
one of them has changed. What a step runs is imported when it runs: one that needs no model loads no torch.
"""

from __future__ import annotations

from dataclasses import replace

from steermoe.config import Config
from steermoe.pipeline import inputs
from steermoe.pipeline.checks import (
    asks_for_capability,
    asks_for_other_tools,
    asks_for_passes,
    check_benchmarks,
    check_collect,
    check_identify,
    check_train,
    doubts_about_training,
)
from steermoe.pipeline.judged import are_ablated_judged, is_judged, judging
from steermoe.pipeline.step import Step, stage
from steermoe.report.page import report
from steermoe.store import names

MODEL_ASIDE = ("model.id", "model.revision", "model.device", "model.device_map")
"""The model is known by its weights, and where it runs is no part of a result."""

GENERATION = (
    "collect.batch_size",
    "collect.safe_ratio",
    "collect.num_batches",
    "collect.generation_batch_size",
    "collect.max_new_tokens",
    "collect.temperature",
)
"""How replies are generated, and which together: the same for every variant."""

ENGINE = ("collect.engine", "collect.engine_args")
"""What generates; how it uses the machine is no part of a result."""

INTERVALS = ("seed", "evaluate.confidence", "evaluate.num_bootstrap")

WHAT_IS_EVALUATED = (
    *("collect.max_new_tokens", "evaluate.max_new_tokens"),
    *("evaluate.sets", "evaluate.text_file"),
)
"""They name tables that an evaluation reads, which are inputs of it; see `pipeline.own_steps`."""

PROMPTS = inputs.whole_file(names.PROMPTS)
BASE_REPLIES = inputs.replies(names.BASE)
TOKENS = inputs.whole_file(names.TOKENS)
ROUTING = inputs.whole_file(names.ROUTING)
RISK = inputs.whole_file(names.RISK)

ABLATED_FILES = tuple(
    f"{folder}/*{names.WITHOUT}*.parquet" for folder in (names.REPLIES, names.SCORED)
)
ABLATED = tuple(
    inputs.family(f"{folder} of ablated variants", pattern)
    for folder, pattern in zip((names.REPLIES, names.SCORED), ABLATED_FILES, strict=True)
)
INTACT = names.scored_of(f"{names.BASE}{names.WITHOUT}none")
"""What there is of an ablation as soon as anything of it is done."""

COLLECT = Step(
    "collect",
    stage("collect", "collect"),
    settings=("seed", "model", "prompts", "collect"),
    aside=(*MODEL_ASIDE, "collect.engine_args", "prompts.sources"),
    reads=(inputs.BASE_MODEL, inputs.PROMPT_FILES),
    writes=(names.PROMPTS, names.RESPONSES, names.TOKENS, names.ROUTING),
    goes_on_from=(f"{names.SHARDS}/*responses-*",),
    check=check_collect,
    needs_model=True,
    by_all=True,
)

JUDGE = judging(
    "judge", stage("judge", "judge_base"), BASE_REPLIES, TOKENS, is_there=is_judged(names.BASE)
)

SCORE_SUMS = f"{names.SCORE_SUMS}/*.safetensors"

SCORE = Step(
    "score",
    stage("score", "score"),
    settings=(
        *("seed", "model", "judge.main", "train.target_response"),
        *(f"identify.{key}" for key in ("rank_by", "scores", "forecast", "score_prompts")),
        *("identify.filter_by_verdict", "identify.replicate_on"),
    ),
    # Which passes they ask for is what is read of them.
    aside=(*MODEL_ASIDE, "identify.rank_by", "identify.scores", "identify.forecast"),
    reads=(
        inputs.BASE_MODEL,
        inputs.PASSES,
        PROMPTS,
        BASE_REPLIES,
        TOKENS,
        ROUTING,
        inputs.verdicts_on(names.BASE),
    ),
    writes=(SCORE_SUMS,),
    goes_on_from=(f"{names.SHARDS}/score-*", SCORE_SUMS),
    check=check_identify,
    needs_model=True,
    is_asked_for=asks_for_passes,
)

IDENTIFY = Step(
    "identify",
    stage("identify", "identify"),
    settings=("seed", "identify", "judge.main"),
    reads=(
        PROMPTS,
        BASE_REPLIES,
        TOKENS,
        ROUTING,
        inputs.verdicts_on(names.BASE),
        inputs.family("sums of passes", SCORE_SUMS),
    ),
    writes=(
        names.RISK,
        names.RISK_PER_BATCH,
        names.RISK_HELD_OUT,
        names.SCORES,
        names.UNSAFE_EXPERTS,
    ),
    check=check_identify,
)

FORECAST = Step(
    "forecast",
    stage("forecast", "forecast_selection"),
    settings=(*INTERVALS, "identify.forecast", "train.experts"),
    reads=(
        PROMPTS,
        BASE_REPLIES,
        RISK,
        inputs.SELECTION,
        ROUTING,
        inputs.whole_file(names.score_sums_of("gradient")),
    ),
    writes=(names.FORECAST,),
    is_asked_for=lambda config: config.identify.forecast,
)

TRAIN = Step(
    "train",
    stage("train", "train"),
    settings=("seed", "model", "train", "judge", "prompts.sources"),
    aside=(
        *MODEL_ASIDE,
        "train.arguments.save_steps",
        "train.arguments.report_to",
        "train.sharding",
        "judge",
        "prompts.sources",
        "train.controls",
    ),
    reads=(
        inputs.BASE_MODEL,
        inputs.SELECTION,
        inputs.PLAIN_GOALS,
        PROMPTS,
        BASE_REPLIES,
        TOKENS,
        ROUTING,
    ),
    writes=(names.SFT_DATASET, names.MODEL),
    goes_on_from=(names.CHECKPOINTS,),
    check=check_train,
    doubts=doubts_about_training,
    needs_model=True,
    by_all=True,
)

REPLY = Step(
    "reply",
    stage("reply", "reply"),
    settings=(
        *("seed", "model", *GENERATION, *ENGINE),
        *("evaluate.split", "evaluate.max_new_tokens"),
    ),
    aside=(*MODEL_ASIDE, "collect.engine_args"),
    reads=(
        inputs.BASE_MODEL,
        inputs.HARDENED_MODEL,
        PROMPTS,
        BASE_REPLIES,
        TOKENS,
        ROUTING,
    ),
    writes=(names.replies_of(names.HARDENED), names.scored_of(names.HARDENED)),
    goes_on_from=(f"{names.SHARDS}/*{names.HARDENED}-*",),
    needs_model=True,
    by_all=True,
)

JUDGE_HARDENED = judging(
    "judge hardened",
    stage("judge", "judge_hardened"),
    inputs.replies(names.HARDENED),
    only_where=names.replies_of(names.HARDENED),
    is_there=is_judged(names.HARDENED),
)

CAPABILITY = Step(
    "capability",
    stage("capability", "capability_base"),
    settings=("model", "prompts.system_prompt", "evaluate.benchmark_limit"),
    aside=(*MODEL_ASIDE, "evaluate.benchmark_limit"),
    reads=(inputs.BASE_MODEL, inputs.CAPABILITY_ITEMS),
    writes=(names.capability_of(names.BASE),),
    goes_on_from=(f"{names.SHARDS}/{names.BASE}_{names.CAPABILITY}-*",),
    needs_model=True,
    is_asked_for=asks_for_capability,
)

CAPABILITY_HARDENED = replace(
    CAPABILITY,
    name="capability hardened",
    function=stage("capability", "capability_hardened"),
    reads=(inputs.HARDENED_MODEL, inputs.CAPABILITY_ITEMS),
    writes=(names.capability_of(names.HARDENED),),
    goes_on_from=(f"{names.SHARDS}/{names.HARDENED}_{names.CAPABILITY}-*",),
    needs_model=False,
    only_where=names.MODEL,
)

BENCHMARKS = Step(
    "benchmarks",
    stage("benchmarks", "benchmarks_base"),
    settings=(
        *("model", "prompts.system_prompt", "evaluate.benchmarks", "evaluate.benchmark_limit"),
        "collect.generation_batch_size",
    ),
    aside=(*MODEL_ASIDE, "collect.generation_batch_size"),
    reads=(inputs.BASE_MODEL, inputs.TASKS_OF_BENCHMARKS),
    writes=(names.benchmarks_of(names.BASE),),
    check=check_benchmarks,
    needs_model=True,
    is_asked_for=asks_for_other_tools,
)

BENCHMARKS_HARDENED = replace(
    BENCHMARKS,
    name="benchmarks hardened",
    function=stage("benchmarks", "benchmarks_hardened"),
    reads=(inputs.HARDENED_MODEL, inputs.TASKS_OF_BENCHMARKS),
    writes=(names.benchmarks_of(names.HARDENED),),
    needs_model=False,
    only_where=names.MODEL,
)

EVALUATE = Step(
    "evaluate",
    stage("evaluate", "evaluate"),
    settings=(
        *(*INTERVALS, "evaluate.split", "evaluate.benchmarks", "judge.main"),
        *WHAT_IS_EVALUATED,
    ),
    aside=WHAT_IS_EVALUATED[:-1],  # the name of the text is the name of its set
    reads=(
        PROMPTS,
        BASE_REPLIES,
        TOKENS,
        inputs.replies(names.HARDENED),
        inputs.scored(names.HARDENED),
        inputs.verdicts_on(names.BASE),
        inputs.verdicts_on(names.HARDENED),
        inputs.whole_file(names.capability_of(names.BASE)),
        inputs.whole_file(names.capability_of(names.HARDENED)),
        inputs.whole_file(names.benchmarks_of(names.BASE)),
        inputs.whole_file(names.benchmarks_of(names.HARDENED)),
        inputs.whole_file(names.JUDGE_LABELS),
        *ABLATED,
        inputs.VERDICTS_ON_ABLATED,
    ),
    writes=(names.MEASURES, names.EVALUATION),
)

REPORT = Step(
    "report",
    report,
    settings=tuple(Config.model_fields),
    aside=("run", *MODEL_ASIDE[2:]),
    asks=("report", "model.id"),
    reads=(
        PROMPTS,
        BASE_REPLIES,
        RISK,
        inputs.whole_file(names.RISK_PER_BATCH),
        inputs.whole_file(names.RISK_HELD_OUT),
        inputs.whole_file(names.UNSAFE_EXPERTS),
        inputs.whole_file(names.SCORES),
        inputs.whole_file(names.FORECAST),
        inputs.whole_file(names.CONTROL_FIGURES),
        inputs.HARDENED_MODEL,
        inputs.replies(names.HARDENED),
        inputs.verdicts_on(names.BASE),
        inputs.verdicts_on(names.HARDENED),
        inputs.whole_file(names.MEASURES),
        inputs.whole_file(names.EVALUATION),
        inputs.whole_file(names.ABLATION),
    ),
    writes=(names.REPORT, f"{names.MODEL}/*.md"),
)

ABLATE = Step(
    "ablate",
    stage("ablate", "ablate"),
    settings=(
        *("seed", "model", "ablate", *GENERATION, "evaluate.split"),
        *("train.experts", "train.target_response"),
    ),
    aside=MODEL_ASIDE,
    reads=(
        inputs.BASE_MODEL,
        inputs.HARDENED_MODEL,
        inputs.SELECTION,
        RISK,
        PROMPTS,
        BASE_REPLIES,
        TOKENS,
        ROUTING,
    ),
    writes=ABLATED_FILES,
    goes_on_from=ABLATED_FILES,
    needs_model=True,
)

JUDGE_ABLATED = judging(
    "judge ablated",
    stage("judge", "judge_ablated"),
    ABLATED[0],
    only_where=INTACT,
    is_there=are_ablated_judged,
)

ABLATION = Step(
    "ablation",
    stage("ablation", "summarise_ablation"),
    settings=(*INTERVALS, "evaluate.split", "ablate", "train.experts", "judge.main"),
    reads=(
        PROMPTS,
        RISK,
        ROUTING,
        inputs.whole_file(names.UNSAFE_EXPERTS),
        *ABLATED,
        inputs.verdicts_on(names.BASE),
        inputs.VERDICTS_ON_ABLATED,
    ),
    writes=(names.ABLATION, names.ABLATION_FIGURES),
)

CAN_STILL = (CAPABILITY, CAPABILITY_HARDENED, BENCHMARKS, BENCHMARKS_HARDENED)
"""Whether both models can do what they could."""
