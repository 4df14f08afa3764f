"""What the files of a run are called. No other room knows."""

from __future__ import annotations

RUN_JSON = "run.json"
PROMPTS = "prompts.jsonl"
RESPONSES = "responses.parquet"
TOKENS = "tokens.parquet"
ROUTING = "routing.safetensors"
VERDICTS = "verdicts.parquet"
RISK_PER_BATCH = "risk_diff_per_batch.parquet"
RISK = "risk_diff.parquet"
RISK_HELD_OUT = "risk_diff_heldout.parquet"
SCORES = "scores.parquet"
UNSAFE_EXPERTS = "unsafe_experts.json"
FORECAST = "forecast.json"
SFT_DATASET = "sft_dataset.jsonl"
MODEL = "model"
MODEL_CARD = f"{MODEL}/README.md"
REPLIES = "replies"
SCORED = "scored"
SETS = "sets"
TEXTS = "texts"
SCORE_SUMS = "score_sums"
CAPABILITY = "capability"
BENCHMARKS = "benchmarks"
MEASURES = "measures.parquet"
EVALUATION = "evaluation.json"
ABLATION = "ablation.json"
ABLATION_FIGURES = "ablation.parquet"
REPORT = "report.html"
SHARDS = "shards"
CHECKPOINTS = "checkpoints"
CONTROLS = "controls"
CONTROL_CHECKPOINTS = "checkpoints-controls"
CONTROL_FIGURES = "controls.json"
JUDGE_ANSWERS = "judge_answers.jsonl"
JUDGE_LABELS = "judge_labels.parquet"
LOCK = ".lock"
SIGN = ".sign"

HARDENED_RESPONSES = "hardened_responses.parquet"
"""Of the layout before this one: now the replies of the variant `hardened`."""

RESULTS = (
    RESPONSES,
    TOKENS,
    ROUTING,
    VERDICTS,
    RISK,
    RISK_PER_BATCH,
    RISK_HELD_OUT,
    SCORE_SUMS,
    SCORES,
    UNSAFE_EXPERTS,
    FORECAST,
    SFT_DATASET,
    MODEL,
    REPLIES,
    SCORED,
    SETS,
    TEXTS,
    CAPABILITY,
    BENCHMARKS,
    MEASURES,
    EVALUATION,
    REPORT,
    CONTROLS,
    CONTROL_FIGURES,
    ABLATION,
    ABLATION_FIGURES,
    HARDENED_RESPONSES,
)
"""What a run leaves beside its prompts."""


def replies_of(variant: str) -> str:
    """The table of a variant's replies; the base model's are the responses that were collected."""
    return RESPONSES if variant == BASE else f"{REPLIES}/{variant}.parquet"


def scored_of(variant: str) -> str:
    """The table of what was measured of a variant by feeding it texts."""
    return f"{SCORED}/{variant}.parquet"


def on_set(variant: str, name: str) -> str:
    """A variant on a set of prompts of its own, as tables of replies and verdicts name it."""
    return f"{variant}{ON}{name}"


def set_of(variant: str) -> str:
    """The set of a variant that `on_set` named; empty of one on the run's own prompts."""
    return variant.partition(ON)[2]


def set_prompts_of(name: str) -> str:
    """The resolved prompts of a set."""
    return f"{SETS}/{name}.jsonl"


def text_of(variant: str) -> str:
    """How likely a variant finds the user's text, window by window."""
    return f"{TEXTS}/{variant}.parquet"


def score_sums_of(name: str) -> str:
    """The sums that a pass over the model leaves of every response; the name of a user's own score may have a colon."""
    return f"{SCORE_SUMS}/{name.replace(':', '.')}.safetensors"


def score_shard_of(name: str, index: int) -> str:
    """One piece of an unfinished pass for scores."""
    return f"{SHARDS}/score-{name.replace(':', '.')}-{index:05d}.safetensors"


def capability_of(variant: str) -> str:
    """The table of which tasks a variant has solved."""
    return f"{CAPABILITY}/{variant}.parquet"


def benchmarks_of(variant: str) -> str:
    """The table of what other tools found of a variant; their logs are in the folder of the same name."""
    return f"{BENCHMARKS}/{variant}.parquet"


def shard_of(prefix: str, index: int) -> str:
    """One piece of unfinished work."""
    return f"{SHARDS}/{prefix}-{index:05d}.parquet"


BASE, HARDENED = "base", "hardened"
"""The two variants that every run has."""

WITHOUT = "-without-"
"""In the name of an ablated variant, between the model and the set of experts that is switched off."""

ON = "@"
"""In the name of a variant on a set of prompts of its own, between the two."""
CONTROL = "control-"
"""How the names of variants begin in which other experts were trained than those that were selected."""


def control_of(variant: str) -> str:
    """What training has changed in a control: a delta."""
    return f"{CONTROLS}/{variant}.safetensors"


COMMAND_OF = {
    PROMPTS: "collect",
    RESPONSES: "collect",
    TOKENS: "collect",
    ROUTING: "collect",
    VERDICTS: "judge",
    JUDGE_LABELS: "judge",
    RISK: "identify",
    RISK_PER_BATCH: "identify",
    RISK_HELD_OUT: "identify",
    SCORE_SUMS: "identify",
    SCORES: "identify",
    UNSAFE_EXPERTS: "identify",
    FORECAST: "identify",
    SFT_DATASET: "train",
    MODEL: "train",
    REPLIES: "evaluate",
    SCORED: "evaluate",
    SETS: "evaluate",
    TEXTS: "evaluate",
    CAPABILITY: "evaluate",
    BENCHMARKS: "evaluate",
    MEASURES: "evaluate",
    EVALUATION: "evaluate",
    CONTROLS: "train",
    CONTROL_FIGURES: "evaluate",
    REPORT: "report",
    ABLATION: "ablate",
    ABLATION_FIGURES: "ablate",
}
"""Which command makes a file."""


def command_for(name: str) -> str:
    """The command that makes a file."""
    return COMMAND_OF.get(name.partition("/")[0], "run")
