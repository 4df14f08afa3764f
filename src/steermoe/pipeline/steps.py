"""Every step: what it does, what it reads, and what it leaves.

A step is handed the settings and the files that it declares here, and gets nothing else. It is done again only where
one of them has changed. What a step runs is imported when it runs: one that needs no model loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module

from steermoe.analysis.selection import resolve_rule
from steermoe.capability.items import BUILTIN_CAPABILITY
from steermoe.config import Config
from steermoe.errors import ConfigError
from steermoe.judges.kinds import judges_named
from steermoe.pipeline import inputs
from steermoe.pipeline.inputs import Input
from steermoe.processes import launched
from steermoe.report.page import report
from steermoe.reporter import Reporter, silent
from steermoe.store import names
from steermoe.store.directory import RunDirectory
from steermoe.store.state import Figures

StepFunction = Callable[[RunDirectory, Config, Reporter], Figures]


def stage(module: str, name: str) -> StepFunction:
    """A function of `stages`, imported when it is called."""

    def function(run: RunDirectory, config: Config, reporter: Reporter) -> Figures:
        found: StepFunction = getattr(import_module(f"steermoe.stages.{module}"), name)
        return found(run, config, reporter)

    return function


def _nothing_to_check(config: Config) -> None:
    """Of a step whose settings name nothing."""


def _nothing_to_doubt(config: Config) -> list[str]:
    """Of a step whose settings can always mean something."""
    return []


def _always(config: Config) -> bool:
    """Of a step that belongs to every run."""
    return True


def _nothing_is_shared(run: RunDirectory, config: Config) -> bool:
    """Of a step that writes files of its own."""
    return True


def _asks_for_passes(config: Config) -> bool:
    from steermoe.stages.scoring import passes_of

    return bool(passes_of(config))


def _asks_for_controls(config: Config) -> bool:
    return config.train.controls > 0


def _check_controls(config: Config) -> None:
    from steermoe.stages.controls import check_controls

    check_controls(config)


def _are_controls_judged(run: RunDirectory, config: Config) -> bool:
    variants = [path.stem for path in run.file(names.REPLIES).glob(f"{names.CONTROL}*.parquet")]
    return all(is_judged(variant)(run, config) for variant in variants)


def is_judged(variant: str) -> Callable[[RunDirectory, Config], bool]:
    """Whether all judges of a run have judged a variant's replies, as a function."""

    def judged(run: RunDirectory, config: Config) -> bool:
        return all(
            run.has_verdicts(variant, judge) for judge in (config.judge.main, *config.judge.others)
        )

    return judged


def _are_ablated_judged(run: RunDirectory, config: Config) -> bool:
    from steermoe.stages.ablate import ablated_variants

    return all(is_judged(variant)(run, config) for variant in ablated_variants(run, names.REPLIES))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: As `run.json` and the terminal name it.
        function: What it does: it reads and writes files of the run, and returns figures for `run.json`.
        settings: The settings that it is handed.
        aside: Those of them that change nothing in its result: where a model lies, how often something is saved.
        asks: The settings that can be given to it alone; by default those that it is handed. What a page merely shows
            was decided by the steps before it.
        reads: What it reads.
        writes: The files that it may leave; `*` stands for any variant.
        goes_on_from: Which files an interrupted attempt leaves to go on from. What is no result of the step is removed
            once it is done.
        check: Refuses what can be told to be wrong before any step is run: names, prompt files.
        doubts: What to say of settings with which it can be done to no purpose, before any step is run.
        needs_model: Whether it reads the base model, and so whether that has to be there.
        only_where: It is left out, without a word, where this file is missing.
        is_asked_for: Whether the settings ask for it; else it is left out as well.
        is_there: Whether its part of a file that other steps write to as well is there.
        by_all: Whether all processes of a run call its function; else rank 0 alone does. It asks `processes.current`
            who does what; rank 0 writes all results, and its figures are the step's.
    """

    name: str
    function: StepFunction
    settings: tuple[str, ...]
    reads: tuple[Input, ...]
    writes: tuple[str, ...]
    aside: tuple[str, ...] = ()
    asks: tuple[str, ...] | None = None
    goes_on_from: tuple[str, ...] = ()
    check: Callable[[Config], object] = field(default=_nothing_to_check)
    doubts: Callable[[Config], list[str]] = field(default=_nothing_to_doubt)
    needs_model: bool = False
    only_where: str = ""
    is_asked_for: Callable[[Config], bool] = field(default=_always)
    is_there: Callable[[RunDirectory, Config], bool] = field(default=_nothing_is_shared)
    by_all: bool = False


def _check_collect(config: Config) -> None:
    from steermoe.stages.collect import plan_groups, prepare_prompts
    from steermoe.stages.opening import check_engine
    from steermoe.stages.ready import check_ready

    check_engine(config)
    prompts = prepare_prompts(config, silent())
    plan_groups(prompts, config)
    check_ready(config, prompts)


def check_judge(config: Config) -> None:
    """Refuse a judge that cannot be used.

    Raises:
        SteerMoEError: As the judge says.
    """
    for judge in judges_named(config.judge):
        check = getattr(judge, "check", None)
        if check is not None:  # a server that is not there, or takes no key, is found out now
            check()


def _check_identify(config: Config) -> None:
    from steermoe.stages.scoring import check_scores

    resolve_rule(config.identify.rule)
    check_scores(config)


def _asks_for_capability(config: Config) -> bool:
    return BUILTIN_CAPABILITY in config.evaluate.benchmarks


def _asks_for_other_tools(config: Config) -> bool:
    return bool(set(config.evaluate.benchmarks) - {BUILTIN_CAPABILITY})


def _check_benchmarks(config: Config) -> None:
    from steermoe.stages.benchmarks import check_benchmarks

    check_benchmarks(config)


def _check_train(config: Config) -> None:
    from steermoe.training.arguments import check_names
    from steermoe.training.spread import check_sharding
    from steermoe.training.targets import resolve_target

    if re.fullmatch(r"cuda:0*[1-9]\d*", config.model.device) and not config.model.device_map:
        raise ConfigError(
            f"model.device = {config.model.device!r}: training takes the first GPU that it sees; set "
            "model.device=cuda and CUDA_VISIBLE_DEVICES"
        )
    resolve_target(config.train.target_response)
    check_names(config.train)
    check_sharding(config.train, launched()[1])


def _doubts_about_training(config: Config) -> list[str]:
    from steermoe.stages.doubts import doubts_about_training

    return doubts_about_training(config.train)


SELECTABLE = ("identify.rank_within", "identify.first_layer", "identify.last_layer")


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
    check=_check_collect,
    needs_model=True,
    by_all=True,
)

JUDGE = Step(
    "judge",
    stage("judge", "judge_base"),
    settings=("judge",),
    reads=(inputs.JUDGES, PROMPTS, BASE_REPLIES, TOKENS),
    writes=(names.VERDICTS,),
    check=check_judge,
    is_there=is_judged(names.BASE),
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
    check=_check_identify,
    needs_model=True,
    is_asked_for=_asks_for_passes,
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
    check=_check_identify,
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
    check=_check_train,
    doubts=_doubts_about_training,
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

JUDGE_HARDENED = Step(
    "judge hardened",
    stage("judge", "judge_hardened"),
    settings=("judge",),
    reads=(inputs.JUDGES, PROMPTS, inputs.replies(names.HARDENED)),
    writes=(names.VERDICTS,),
    check=check_judge,
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
    is_asked_for=_asks_for_capability,
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
    check=_check_benchmarks,
    needs_model=True,
    is_asked_for=_asks_for_other_tools,
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

JUDGE_ABLATED = Step(
    "judge ablated",
    stage("judge", "judge_ablated"),
    settings=("judge",),
    reads=(inputs.JUDGES, PROMPTS, ABLATED[0]),
    writes=(names.VERDICTS,),
    check=check_judge,
    only_where=INTACT,
    is_there=_are_ablated_judged,
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
    check=_check_controls,
    needs_model=True,
    by_all=True,
    is_asked_for=_asks_for_controls,
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
    is_asked_for=_asks_for_controls,
)

JUDGE_CONTROLS = Step(
    "judge controls",
    stage("judge", "judge_controls"),
    settings=("judge",),
    reads=(inputs.JUDGES, PROMPTS, OF_CONTROLS[0]),
    writes=(names.VERDICTS,),
    check=check_judge,
    is_there=_are_controls_judged,
    is_asked_for=_asks_for_controls,
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
    is_asked_for=_asks_for_controls,
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
