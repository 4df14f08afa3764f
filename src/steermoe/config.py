"""Every setting, one model a stage. The field descriptions are the reference that users read.

Settings are layered, the later winning: the defaults here, the preset of the embedded model where that is
the model, the `--config` file, then `--set` and the command's own options.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from steermoe.errors import ConfigError

EMBEDDED_MODEL = "smollm2-moe"
BUILTIN_PROMPTS = "builtin:starter"

DEFAULT_REFUSALS = (
    "Sorry, but I can't help with that.",
    "Unfortunately, I'm not able to help with that.",
    "Sorry, but I have to decline this.",
    "Unfortunately, that's not something I'm able to help with.",
)
"""Short, and likely to a model once it has begun to refuse, so that training moves the decision and little else. They
begin with words that hardly any harmless reply begins with, so that the whole decision lies in the first token: after
an "I", which begins many harmless replies too, a model that has learned "I can't" goes on to refuse those as well. And
they begin with two words, because a greedy reply begins with the single likeliest token: an answer's beginnings are
many and share its chance, and a refusal that has only one would be begun where it is the less likely of the two."""


AMBIGUOUS_WORDS = ("yes", "no", "on", "off", "none", "null")
"""What some people write for true, false or nothing, and some chat templates take as a text."""


class Unquoted(str):
    """A text of the command line that stood without quotes, and so may have been meant as something else."""

    __slots__ = ()


RENAMED = {"collect.judge": "judge.main"}
"""Settings that have moved, by their old name. The old one is understood."""


class Section(BaseModel):
    """A part of the configuration: immutable, and refusing keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """What a person means: nothing empties a setting, one text is a list of one."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kind, parts = get_origin(annotation), get_args(annotation)
        if kind is dict:
            return {} if value == "" else _untyped(value)
        if value == "" and (NoneType in parts or kind is tuple):
            return None if NoneType in parts else ()
        if isinstance(value, str) and kind is tuple and parts[0] is str:
            return (str(value),)
        return str(value) if isinstance(value, Unquoted) else value


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
        "auto", description="Type of the weights in memory; auto keeps the checkpoint's own."
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


class PromptsSection(Section):
    """Where prompts come from and how they are split."""

    sources: tuple[str, ...] = Field(
        (BUILTIN_PROMPTS,), min_length=1, description="Prompt files, or builtin:starter."
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

    @field_validator("sources")
    @classmethod
    def _in_the_home_directory(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(expand_home(source) for source in sources)

    @model_validator(mode="after")
    def _fractions_add_up(self) -> PromptsSection:
        if min(self.split_fractions) < 0 or abs(sum(self.split_fractions) - 1) > 1e-6:
            raise ValueError(
                f"split_fractions {self.split_fractions} must be three shares that add up to 1"
            )
        return self


class CollectSection(Section):
    """Mixed batches and generation."""

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


class JudgeSection(Section):
    """Who says whether a reply refuses."""

    main: str = Field(
        "keyword",
        min_length=1,
        description="The judge that identification, training and every rate go by: keyword, classifier:ID, guard:ID, "
        "openai:MODEL, or package.module:callable.",
    )
    others: tuple[str, ...] = Field(
        (), description="More judges of the same replies, to see how far they agree."
    )
    device: str = Field(
        "auto", description="auto, cpu, cuda, cuda:1, mps: where a judge's model runs."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of its weights in memory; auto keeps the checkpoint's own."
    )
    batch_size: int = Field(8, ge=1, description="Replies that a model judges together.")
    label_map: dict[str, Literal["refused", "answered", "harmful", "harmless", "unscored"]] = Field(
        default_factory=dict,
        description="What each label of a classifier means; empty tells it by the labels' own words.",
    )
    classifier_reads: Literal["reply", "goal_and_reply"] = Field(
        "reply", description="What a classifier is shown."
    )
    guard_kind: (
        Literal["llama_guard", "wildguard", "shieldgemma", "granite_guardian", "harmbench"] | None
    ) = Field(
        None, description="Which guard a model is, where neither its config nor its name tells."
    )
    guard_template: str | None = Field(
        None,
        description="A text file with {prompt} and {reply}: what a guard is shown instead of its own template.",
    )
    base_url: str | None = Field(
        None,
        description="Address of a server that speaks OpenAI's protocol; empty is OpenAI's own.",
    )
    key_variable: str = Field(
        "OPENAI_API_KEY",
        min_length=1,
        description="Environment variable that holds the server's key. The key itself is no setting.",
    )
    concurrency: int = Field(8, ge=1, le=256, description="Requests to the server at once.")
    timeout: float = Field(
        60.0, gt=0, description="Seconds of silence after which a request counts as lost."
    )
    max_retries: int = Field(
        6, ge=0, description="Times that a request is sent again after a failure that may pass."
    )
    max_requests: int | None = Field(
        None,
        ge=1,
        description="Most requests of one call, repeated ones included; empty is no limit.",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens that the server may count in one call; empty is no limit.",
    )
    answer_tokens: int = Field(
        1024, ge=16, description="Most tokens of one judgement, a judge's reasoning included."
    )

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_the_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "must hold no user, password or query: it is written into the run; put the key into the "
                "environment variable that judge.key_variable names"
            )
        return value


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
    threshold: float = Field(
        0.05, ge=-1, le=1, description="Least risk difference of an unsafe expert."
    )
    top_k: int = Field(
        50, ge=1, description="Most experts that are selected, the largest risk differences."
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


class TrainSection(Section):
    """What is trained, towards what, and how."""

    experts: Literal["global", "union"] = Field(
        "global",
        description="Train the global selection, or the union of the selections of every batch.",
    )
    parameters: Literal["experts", "routers", "everything"] = Field(
        "experts",
        description="experts is the method; routers and everything are baselines to compare with.",
    )
    target_response: str | tuple[str, ...] = Field(
        DEFAULT_REFUSALS,
        description="The refusal to learn: a text, a list of texts, or package.module:callable of the prompt.",
    )
    epochs: float = Field(4, gt=0, description="Passes over the mixed batches.")
    batch_size: int | None = Field(
        None,
        ge=2,
        description="Most rows of a mixed batch in one micro-batch, benign ones beside them; empty takes a mixed batch "
        "whole. Lower it when memory runs out.",
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate of AdamW.")
    adam_epsilon: float = Field(
        1e-8,
        gt=0,
        allow_inf_nan=False,
        description="What AdamW adds to the root of the squared gradient's mean. Near the size of gradients (they are "
        "scaled to max_grad_norm before) it keeps weights that matter little from moving as far as the others.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Weight decay of the trained experts; nothing frozen decays."
    )
    lr_scheduler: str = Field(
        "linear", description="Schedule of the learning rate, as transformers names it."
    )
    lr_scheduler_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed to the schedule, for instance power = 2 for polynomial.",
    )
    warmup_ratio: float = Field(
        0.1, ge=0, le=1, description="Share of the steps that warm the learning rate up."
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Steps of warm-up instead of the ratio; fewer than the whole run has.",
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Micro-batches of one optimizer step."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: slower, much less memory."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    refusal_weight: float = Field(1.0, ge=0, description="Weight of the cross entropy on refusals.")
    retention_weight: float = Field(
        2.0,
        ge=0,
        description="Weight of KL(base || model) on the base model's own replies to harmless prompts.",
    )
    first_tokens: int = Field(
        4,
        ge=0,
        description="Leading reply tokens whose loss is weighted by first_tokens_weight: refusals are decided there.",
    )
    first_tokens_weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Weight of the leading tokens in both losses; later ones have 1.",
    )
    retention_first_tokens_weight: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Weight of the leading tokens of harmless replies; empty takes first_tokens_weight.",
    )
    retention_tokens: int | None = Field(
        None,
        ge=1,
        description="Leading tokens of a harmless reply that are trained on; empty takes all.",
    )
    benign_per_batch: int | None = Field(
        None,
        ge=0,
        description="Benign prompts added to each mixed batch, other ones each epoch; empty spreads all over an epoch.",
    )
    kept_change: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of what training changed that the hardened experts keep; a baseline keeps all of it.",
    )
    mask_scope: Literal["off", "unsafe", "all"] = Field(
        "off",
        description="Expert masking while training: not at all, for unsafe samples, or for every sample that learns a "
        "refusal.",
    )
    mask: Literal["global", "batch"] = Field(
        "global",
        description="Which mask is applied: the global selection's, or that of the micro-batch's own batch.",
    )
    save_steps: int = Field(10, ge=1, description="Steps between checkpoints to resume from.")
    report_to: tuple[str, ...] = Field(
        (), description="Experiment trackers, as transformers names them: tensorboard, wandb, ..."
    )

    def num_steps(self, num_micro_batches: int) -> int:
        """Optimizer steps of all epochs."""
        a_pass = math.ceil(num_micro_batches / self.gradient_accumulation_steps)
        return math.ceil(a_pass * self.epochs)


class EvaluateSection(Section):
    """Base against hardened, on held-out goals."""

    split: Literal["test", "dev"] = Field(
        "test",
        description="Goals to evaluate on: dev to choose settings, test for the final figures.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of every interval.")
    num_bootstrap: int = Field(10_000, ge=100, description="Draws of the cluster bootstrap.")


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
        description="Random sets of experts, matched by layer and activation frequency. No p-value can be below "
        "1 / (1 + draws).",
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

    def with_model_id(self, model_id: str) -> Config:
        """The same settings, with the model named otherwise."""
        return self.model_copy(update={"model": self.model.model_copy(update={"id": model_id})})

    @property
    def run_dir(self) -> Path:
        """Where the run is kept."""
        if self.run is not None:
            return Path(self.run)
        return Path("runs") / (Path(self.model.id).name or "model")


def load_config(
    config_file: str | Path | None = None,
    settings: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Layer the settings and validate every key.

    Args:
        config_file: A TOML file.
        settings: `section.key=value` strings; the value is read as TOML, or else as text. With no value, an
            optional setting is emptied.
        overrides: Nested mapping of a command's own options; None values are left out.
        base: What to start from instead of the defaults and the preset: the config stored in a run.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: A key is unknown (the nearest known one is named), or a value is not allowed.
    """
    layers = [_read_toml(config_file)] if config_file is not None else []
    layers.append(_parse_settings(settings))
    layers.append(_without_none(overrides or {}))
    given: dict[str, Any] = {}
    for layer in layers:
        given = _merge(given, by_new_names(layer))
    if base is not None:
        start = by_new_names(base)
    elif _model_id(given) == EMBEDDED_MODEL:
        start = preset(EMBEDDED_MODEL)
    else:
        start = {}
    return validate(_merge(start, given))


def _model_id(given: Mapping[str, Any]) -> Any:
    """The model that is asked for; a `model` that is no section is left for the validation to refuse."""
    section = given.get("model", {})
    return section.get("id", EMBEDDED_MODEL) if isinstance(section, Mapping) else None


def preset(name: str) -> dict[str, Any]:
    """The settings that ship with the package for one model."""
    text = resources.files("steermoe").joinpath("presets", f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def validate(values: Mapping[str, Any]) -> Config:
    """Turn a nested mapping into a `Config`, with one line for the first thing that is wrong."""
    try:
        return Config.model_validate(by_new_names(values))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def old_names(values: Mapping[str, Any]) -> list[str]:
    """The settings of a nested mapping that go by an old name, for a note."""
    return [old for old in RENAMED if _get(values, old) is not None]


def by_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping in which settings that have moved go by their new names.

    Raises:
        ConfigError: It holds both names of a setting, with different values.
    """
    result = dict(values)
    for old in old_names(values):
        new, value = RENAMED[old], _get(values, old)
        if _get(values, new) not in (None, value):
            raise ConfigError(
                f"setting {old} is the old name of {new}, and both are given: keep {new}"
            )
        section, name = old.split(".")
        result[section] = {k: v for k, v in values[section].items() if k != name}
        section, name = new.split(".")
        result = _merge(result, {section: {name: value}})
    return result


def _get(values: Mapping[str, Any], key: str) -> Any:
    """The value of `section.name`, None where there is none."""
    section, name = key.split(".")
    inside = values.get(section)
    return inside.get(name) if isinstance(inside, Mapping) else None


def fields_of(section: type[Section]) -> list[tuple[str, str, Any, str]]:
    """Every setting below a section as `(dotted key, type, default, description)`."""
    rows: list[tuple[str, str, Any, str]] = []
    for name, info in section.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            rows += [(f"{name}.{key}", *rest) for key, *rest in fields_of(annotation)]
            continue
        default = info.get_default(call_default_factory=True)
        shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        rows.append((name, shown.replace("typing.", ""), default, info.description or ""))
    return rows


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(expand_home(str(path))).read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"config file {path} cannot be read: {error.strerror}; check the path"
        ) from None


def _parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting!r} is not of the form section.key=value")
        nested = _value_of(text)
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        parsed = _merge(parsed, nested)
    return parsed


def _value_of(text: str) -> Any:
    """A value of the command line: TOML, or JSON, which writes tables with colons; else a text.

    A bare word is a text, because quotes would have to survive the shell.
    """
    with suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"value = {text}")["value"]
    if text.startswith(("{", "[")):
        with suppress(json.JSONDecodeError):
            return json.loads(text)
    return Unquoted(text if text.strip() else "")


def _untyped(value: Any) -> Any:
    """A value of a table whose settings have no type: a bare `False` is false, and no word that is true.

    Raises:
        ValueError: It may be meant as a truth value or as a text.
    """
    if isinstance(value, Mapping):
        return {key: _untyped(entry) for key, entry in value.items()}
    if not isinstance(value, Unquoted):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.lower() in AMBIGUOUS_WORDS:
        raise ValueError(
            f"{value} may be a truth value or a text; write true or false, or put the text in quotes "
            f"that reach the program: '\"{value}\"'"
        )
    return str(value)


def expand_home(path: str) -> str:
    """A path with its leading `~` replaced by the home directory.

    Raises:
        ConfigError: It is somebody's home directory that is not known here.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ConfigError(
            f"{path} begins with a home directory that is not known; write the path in full"
        ) from None


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = _without_none(value)
        elif value is not None:
            kept[key] = value
    return kept


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        near = _nearest(path)
        hint = f"did you mean {near}?" if near else "see docs/settings.md for the known keys"
        return f"unknown setting {key}: {hint}"
    value = json.dumps(first["input"], default=str)
    if len(value) > 80:
        value = value[:77] + "..."
    if key == "judge.base_url":
        value = "..."  # an address may hold a password
    return f"setting {key or 'of the run'} = {value}: {first['msg'].removeprefix('Value error, ')}"


def _nearest(path: Sequence[str]) -> str | None:
    """The setting that was probably meant: one of that name, else one of those initials, else one spelt alike."""
    settings = [name for name, *_ in fields_of(Config)]
    *section, name = path
    names = {setting.rsplit(".", 1)[-1]: setting for setting in settings}
    if name in names:
        return names[name]
    for setting in settings:
        *parents, other = setting.split(".")
        if parents == section and name == "".join(word[0] for word in other.split("_")):  # lr
            return setting
    known = settings if section else [*settings, *Config.model_fields]
    near = difflib.get_close_matches(".".join(path), known, n=1, cutoff=0.6)
    near = near or [names[n] for n in difflib.get_close_matches(name, names, n=1, cutoff=0.7)]
    return near[0] if near else None
