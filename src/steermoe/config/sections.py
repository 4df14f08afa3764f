"""The settings of a run, one model a stage. The field descriptions are the reference that users read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from steermoe.config.evaluate import EvaluateSection
from steermoe.config.judge import JudgeSection
from steermoe.config.section import Section, check_address, expand_home
from steermoe.config.train import TrainSection

EMBEDDED_MODEL = "smollm2-moe"
BUILTIN_PROMPTS = "builtin:starter"


class ModelSection(Section):
    """Which model, and how it is loaded."""

    id: str = Field(
        EMBEDDED_MODEL,
        min_length=1,
        description="The embedded model's name, a local directory, or a hub id. Naming a hub id is what allows the "
        "download; HF_HUB_OFFLINE=1 forbids it.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Type of the weights in memory; auto keeps the checkpoint's own, or float32 "
        "where the processor has no arithmetic for that.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps: where the model runs.")
    device_map: str | None = Field(
        None,
        description="Spread one model over several devices (auto, balanced, ...); overrides device.",
    )
    attn_implementation: str | None = Field(
        None,
        description="Attention kernel: eager, sdpa, flash_attention_2, ...; empty leaves the model's choice.",
    )
    experts_implementation: str = Field(
        "grouped_mm",
        description="Kernel of the routed experts while generating: grouped_mm, batched_mm or eager.",
    )
    trust_remote_code: bool = Field(
        False, description="Run code that a hub repository brings along."
    )
    dequantize: bool = Field(
        False,
        description="Unpack a quantised checkpoint (MXFP4, FP8) into ordinary weights; packed ones cannot train.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed to the chat template, for instance enable_thinking = false.",
    )

    @field_validator("id")
    @classmethod
    def _in_the_home_directory(cls, model: str) -> str:
        return expand_home(model)

    @property
    def name(self) -> str:
        """The model as files and pages call it: a hub id whole, a directory by its last part alone."""
        path = Path(self.id)
        is_hub_id = self.id.count("/") == 1 and not self.id.startswith((".", "/"))
        return self.id if is_hub_id and not path.is_dir() else path.name or self.id


PromptLabel = Literal["unsafe", "safe", "benign"]


class PromptsSection(Section):
    """Where prompts come from and how they are split."""

    sources: tuple[str, ...] = Field(
        (BUILTIN_PROMPTS,),
        min_length=1,
        description="Prompt files, or builtin:starter. unsafe:FILE (or safe:, benign:) gives all rows one label; "
        "FILE:column=NAME,... says how a file is read.",
    )
    format: str | None = Field(
        None, description="Overrides the format found from a file's content."
    )
    system_prompt: str | None = Field(
        None,
        min_length=1,
        description="System turn put before every conversation that brings none; empty leaves them as they are.",
    )
    include_failed: bool = Field(
        False, description="Keep jailbreak rows whose success field says no."
    )
    split_fractions: tuple[float, float, float] = Field(
        (5 / 9, 1 / 9, 3 / 9),
        description="Shares of goals for train, dev and test, where a file brings no split.",
    )
    limits: dict[Literal["train", "dev", "test"], dict[PromptLabel, NonNegativeInt]] = Field(
        default_factory=dict,
        description="Most prompts of each label that are taken of a split, as {dev = 0}, or of one label alone, as "
        "{train = {benign = 96}}; drawn by the seed, pairs kept together. What is not named is taken whole.",
    )

    @field_validator("sources")
    @classmethod
    def _in_the_home_directory(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(expand_home(source) for source in sources)

    @field_validator("limits", mode="before")
    @classmethod
    def _of_every_label(cls, limits: Any) -> Any:
        """One number is that of each label."""
        if not isinstance(limits, Mapping):
            return limits
        return {
            split: most if isinstance(most, Mapping) else dict.fromkeys(get_args(PromptLabel), most)
            for split, most in limits.items()
        }

    @model_validator(mode="after")
    def _fractions_add_up(self) -> PromptsSection:
        if min(self.split_fractions) < 0 or abs(sum(self.split_fractions) - 1) > 1e-6:
            raise ValueError(
                f"split_fractions {self.split_fractions} must be three shares that add up to 1"
            )
        return self


class CollectSection(Section):
    """Mixed batches and generation."""

    engine: str = Field(
        "transformers",
        description="What generates: transformers, vllm, openai:ADDRESS of a server, or package.module:callable.",
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed to the engine: for vllm to vllm.LLM, for instance tensor_parallel_size = 4; for a server "
        "model, key_variable, concurrency, timeout and max_retries.",
    )
    batch_size: int = Field(16, ge=2, description="Prompts of a mixed batch.")
    safe_ratio: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of safe prompts in a mixed batch, at least one of each kind.",
    )
    num_batches: int | None = Field(
        None, ge=1, description="Mixed batches to make; empty makes as many as the prompts fill."
    )
    max_new_tokens: int = Field(48, ge=1, description="Most tokens of a reply.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy; above it replies are sampled.")
    generation_batch_size: int = Field(
        32,
        ge=1,
        description="Prompts generated together, rounded to whole mixed batches. Lower it when memory runs out.",
    )

    @field_validator("engine")
    @classmethod
    def _is_an_engine(cls, engine: str) -> str:
        head, colon, rest = engine.partition(":")
        if head == "openai":
            check_address(rest, "collect.engine_args.key_variable")
        elif head in ("transformers", "vllm"):
            if colon:
                raise ValueError(f"{head} takes nothing after a colon")
        elif not colon:
            raise ValueError("use transformers, vllm, openai:ADDRESS or package.module:callable")
        return engine


class IdentifySection(Section):
    """From counts to unsafe experts."""

    segment: Literal["generation", "prompt"] = Field(
        "generation",
        description="Tokens that are compared: those of the replies, or of the prompts.",
    )
    rule: str = Field(
        "threshold",
        min_length=1,
        description="Selection rule: threshold, fdr, stability, combined, lowest, random, or package.module:callable.",
    )
    rank_by: str = Field(
        "risk_diff",
        min_length=1,
        description="Score that experts are ranked by: risk_diff, gate_mass, contribution, taylor, selectivity, "
        "selective_gain, projection, or package.module:callable.",
    )
    rank_within: Literal["model", "layer"] = Field(
        "model",
        description="Rank the experts of all layers together, or take the first of every layer, then the second.",
    )
    scores: tuple[str, ...] = Field(
        (),
        description="Scores to compute beside the one that experts are ranked by and those that come with collecting. "
        "taylor, selectivity, selective_gain and projection take passes of the model.",
    )
    score_prompts: int = Field(
        32,
        ge=1,
        description="Prompts of each kind that passes for scores and forecast are made over, picked by the seed.",
    )
    forecast: bool = Field(
        True,
        description="Say before training what the selection is expected to cost: the interference of the selected "
        "experts, beside random ones. It takes one pass of the model.",
    )
    threshold: float = Field(
        0.05,
        allow_inf_nan=False,
        description="Least risk difference of an unsafe expert; of another score, its least value in its own unit.",
    )
    top_k: int = Field(
        50,
        ge=1,
        description="Most experts that are selected, the largest risk differences or scores.",
    )
    first_layer: int = Field(
        0,
        ge=0,
        description="Lowest decoder layer to select from. Layers below the lowest trained one cost nothing in later "
        "passes.",
    )
    last_layer: int | None = Field(
        None,
        ge=0,
        description="Highest decoder layer to select from; empty means the model's last.",
    )
    filter_by_verdict: bool = Field(
        True,
        description="Count a pair of plain harmful goal and jailbreak only if the plain one was refused and the "
        "jailbreak was not.",
    )
    estimator: Literal["mean_over_batches", "pooled", "mean_over_responses", "equal_length"] = (
        Field(
            "mean_over_batches", description="The estimate that the uncertainty columns belong to."
        )
    )
    replicate_on: tuple[Literal["dev", "test"], ...] = Field(
        ("dev", "test"),
        min_length=1,
        description="Held-out goals on which the selection is looked at again: dev, test or both. Leave dev out where "
        "settings were chosen on it.",
    )
    num_permutations: int = Field(
        2000,
        ge=0,
        description="Permutations behind the p-values; 0 leaves the uncertainty columns out.",
    )
    num_bootstrap: int = Field(2000, ge=0, description="Bootstrap draws behind the intervals.")
    num_subsamples: int = Field(
        200,
        ge=0,
        description="Random halves of the goals behind the stability column; 0 leaves it out.",
    )
    max_q_value: float = Field(
        0.05, gt=0, le=1, description="False discovery rate that the rules fdr and combined allow."
    )
    min_stability: float = Field(
        0.75,
        gt=0.5,
        le=1,
        description="Share of halves that must select an expert, for the rules stability and combined.",
    )

    @model_validator(mode="after")
    def _threshold_of_a_share(self) -> IdentifySection:
        if self.rank_by == "risk_diff" and not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold:g} is no risk difference: give -1 to 1")
        return self


class AblateSection(Section):
    """Switching the selected experts off, against random ones: a measurement of how much hangs on them."""

    num_prompts: int = Field(
        24,
        ge=1,
        description="Held-out prompts of each kind: unsafe, look-alike, benign. Fewer where there are no more.",
    )
    num_draws: int = Field(
        20,
        ge=1,
        description="Random sets of experts, matched by layer and activation frequency, at most: as many as there are "
        "different ones. No p-value can be below 1 / (1 + draws).",
    )
    num_generated_draws: int = Field(
        3, ge=0, description="Of the random sets, those that replies are generated with."
    )
    max_tokens: int = Field(
        16,
        ge=1,
        description="Leading tokens of the base model's replies whose log-probability and divergence are measured.",
    )


class ReportSection(Section):
    """The HTML page."""

    show_harmful: bool = Field(
        False, description="Print replies to unsafe prompts in the report; hidden unless asked for."
    )
    top_experts: int = Field(20, ge=1, description="Rows of the table of experts.")


class Config(Section):
    """All settings of a run."""

    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,  # numpy takes no larger one
        description="Seeds batches, splits, sampling, training and resampling.",
    )
    run: str | None = Field(None, description="The run directory; empty is runs/<model name>.")
    model: ModelSection = Field(default_factory=ModelSection)
    prompts: PromptsSection = Field(default_factory=PromptsSection)
    collect: CollectSection = Field(default_factory=CollectSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    identify: IdentifySection = Field(default_factory=IdentifySection)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    ablate: AblateSection = Field(default_factory=AblateSection)
    report: ReportSection = Field(default_factory=ReportSection)

    @field_validator("run")
    @classmethod
    def _in_the_home_directory(cls, run: str | None) -> str | None:
        return expand_home(run) if run is not None else None

    @model_validator(mode="after")
    def _there_is_something_to_evaluate_on(self) -> Config:
        split = self.evaluate.split
        limits = self.prompts.limits.get(split, {})
        if all(limits.get(label) == 0 for label in get_args(PromptLabel)):
            raise ValueError(
                f"evaluate.split is {split}, and prompts.limits takes none of its prompts; set prompts.limits.{split}"
            )
        return self

    def with_model_id(self, model_id: str) -> Config:
        """The same settings, with the model named otherwise."""
        return self.model_copy(update={"model": self.model.model_copy(update={"id": model_id})})

    @property
    def evaluated_tokens(self) -> int:
        """Most tokens of a reply that is evaluated."""
        return self.evaluate.max_new_tokens or self.collect.max_new_tokens

    @property
    def evaluates_other_replies(self) -> bool:
        """Whether the replies that were collected are not those that are evaluated."""
        return self.evaluated_tokens != self.collect.max_new_tokens

    @property
    def run_dir(self) -> Path:
        """Where the run is kept."""
        if self.run is not None:
            return Path(self.run)
        return Path("runs") / (Path(self.model.id).name or "model")
