"""The settings of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from steermoe.config.section import Section, untyped

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

Parameters = Literal["experts", "routers", "experts+routers", "everything"]
"""What can be trained."""


class ArgumentsSection(Section):
    """What training hands on to `transformers.TrainingArguments`, which knows more than what is read here."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _read_what_has_no_type(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = {k: v for k, v in values.items() if k in cls.model_fields}
        # What is emptied is left to transformers.
        return known | {k: untyped(v, k) for k, v in values.items() if k not in known and v != ""}

    gradient_accumulation_steps: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    warmup_steps: int | None = Field(None, ge=0)
    save_steps: int = Field(10, ge=1)
    report_to: tuple[str, ...] = ()


class PhaseSection(Section):
    """One phase of training; what is missing is as in `[train]`."""

    parameters: Parameters | None = None
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, slots=True)
class PhaseSettings:
    """The settings of one phase of training, with nothing left open.

    Attributes:
        parameters: What trains.
        objectives: The terms of its loss.
        epochs: Passes over the mixed batches.
        learning_rate: Its peak.
    """

    parameters: Parameters
    objectives: tuple[str, ...]
    epochs: float
    learning_rate: float

    @property
    def trains_experts(self) -> bool:
        """Whether the selected experts are among what trains."""
        return self.parameters in ("experts", "experts+routers")

    @property
    def trains_routers(self) -> bool:
        """Whether the routers are, and not everything else with them."""
        return self.parameters in ("routers", "experts+routers")


class TrainSection(Section):
    """What is trained, towards what, and how."""

    experts: Literal["global", "union"] = Field(
        "global",
        description="Train the global selection, or the union of the selections of every batch.",
    )
    parameters: Parameters = Field(
        "experts",
        description="experts is the method, and experts+routers trains the routers of all layers beside them; routers "
        "alone and everything are baselines to compare with.",
    )
    objectives: tuple[str, ...] = Field(
        ("refusal", "retention"),
        min_length=1,
        description="The terms of the loss, added up: refusal, retention, or package.module:callable.",
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
    arguments: ArgumentsSection = Field(
        default_factory=ArgumentsSection,
        description="What transformers.TrainingArguments is given beside the settings here, and checks: adam_epsilon, "
        "weight_decay, lr_scheduler_type, lr_scheduler_kwargs, max_grad_norm, optim, ... Of its own: warmup_ratio is "
        "the share of a phase's steps that warm the learning rate up, where no warmup_steps are given; save_steps are "
        "those between checkpoints to resume from.",
    )
    sharding: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="Of several processes (torchrun), each has the whole model and its rows of every batch (ddp), or a "
        "part of the model too, for what is larger than one device (fsdp2: selected experts alone, in one phase).",
    )
    controls: int = Field(
        0,
        ge=0,
        description="Random selections, matched by layer and activity, that are trained and evaluated with the same "
        "settings, and the lowest one: did the selection matter? Each takes as long as the training itself.",
    )
    phases: tuple[PhaseSection, ...] = Field(
        (),
        description="Phases that are trained one after the other, each a table of parameters, objectives, epochs and "
        "learning_rate, of which a missing one is that of [train]; empty is one phase with the settings of [train].",
    )

    def all_phases(self) -> tuple[PhaseSettings, ...]:
        """The phases of the run, with nothing left open."""
        return tuple(
            PhaseSettings(
                phase.parameters or self.parameters,
                phase.objectives or self.objectives,
                phase.epochs or self.epochs,
                phase.learning_rate or self.learning_rate,
            )
            for phase in self.phases or (PhaseSection(),)
        )

    @property
    def all_parameters(self) -> str:
        """What all phases together train, as `parameters` names it."""
        parts = {part for phase in self.all_phases() for part in phase.parameters.split("+")}
        return "+".join(sorted(parts))

    @property
    def trains_experts(self) -> bool:
        """Whether any phase trains the selected experts: if none does, the run is a baseline."""
        return any(phase.trains_experts for phase in self.all_phases())

    @model_validator(mode="after")
    def _parts_can_be_told_apart(self) -> TrainSection:
        trained = {phase.parameters for phase in self.all_phases()}
        if "everything" in trained and len(trained) > 1:
            raise ValueError(
                "phases that train everything cannot be mixed with others: what experts or routers have learned "
                "could no longer be told from the rest"
            )
        return self

    def num_steps(self, num_micro_batches: int, epochs: float | None = None) -> int:
        """Optimizer steps of some epochs over a training set; of all phases if it is not said of how many."""
        a_pass = math.ceil(num_micro_batches / self.arguments.gradient_accumulation_steps)
        each = [phase.epochs for phase in self.all_phases()] if epochs is None else [epochs]
        return sum(math.ceil(a_pass * one) for one in each)
