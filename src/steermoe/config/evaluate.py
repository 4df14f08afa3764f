"""What is evaluated: the held-out prompts, and further sets with a name of their own."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, field_validator, model_validator

from steermoe.config.section import Section, expand_home

RESERVED_NAMES = ("train", "dev", "test", "ablation")
"""Sets that every run may have."""


class SetSection(Section):
    """One more set of prompts that both models reply to; what is missing is as on the evaluated split."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)
    prompts: tuple[str, ...] = ()
    system: str | None = Field(None, min_length=1)
    follow_ups: tuple[str, ...] = ()
    temperature: float | None = Field(None, ge=0)
    samples: int = Field(1, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)

    @field_validator("prompts")
    @classmethod
    def _in_the_home_directory(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(expand_home(source) for source in prompts)

    @model_validator(mode="after")
    def _is_another_set(self) -> SetSection:
        if self.name in RESERVED_NAMES:
            raise ValueError(f"the name {self.name} is taken: {', '.join(RESERVED_NAMES)} are")
        if "-without-" in self.name:
            raise ValueError(
                f"the name {self.name} would be read as that of a model without some experts; leave -without- out"
            )
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"samples = {self.samples} of set {self.name} would all be the same reply; give it a temperature "
                "above 0"
            )
        if not (self.prompts or self.system or self.follow_ups or self.max_new_tokens) and (
            self.temperature is None
        ):
            raise ValueError(
                f"set {self.name} would be the evaluated split again; give it prompts, system, follow_ups, "
                "temperature or max_new_tokens"
            )
        return self


class EvaluateSection(Section):
    """Base against hardened, on held-out goals."""

    split: Literal["test", "dev"] = Field(
        "test",
        description="Goals to evaluate on: dev to choose settings, test for the final figures.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of every interval.")
    num_bootstrap: int = Field(10_000, ge=100, description="Draws of the cluster bootstrap.")
    benchmarks: tuple[str, ...] = Field(
        ("builtin:capability",),
        description="What both models are asked beside the prompts, to see whether they can still do what they could: "
        "builtin:capability, lm_eval:TASKS, inspect:TASK.",
    )
    benchmark_limit: int | None = Field(
        None,
        ge=1,
        description="Most samples of each benchmark, of builtin:capability as large a share of each category; all "
        "where it is empty.",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of a reply that is evaluated; empty is collect.max_new_tokens. With another number "
        "the base model replies to the evaluated split once more.",
    )
    text_file: str | None = Field(
        None,
        min_length=1,
        description="A plain text, UTF-8, whose perplexity is measured before and after.",
    )
    sets: tuple[SetSection, ...] = Field(
        (),
        description="More sets of prompts to evaluate on, each a table: name; prompts (files; empty is the evaluated "
        "split); system (a system turn in the place of theirs); follow_ups (user turns, each after the model's own "
        "reply; the last reply counts); temperature and samples (replies to each prompt); max_new_tokens.",
    )

    @field_validator("text_file")
    @classmethod
    def _in_the_home_directory(cls, path: str | None) -> str | None:
        return expand_home(path) if path is not None else None

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluateSection:
        # Some file systems take Jailbreaks and jailbreaks for one file.
        counts = Counter(one.name.lower() for one in self.sets)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"two sets have the name {twice[0]}; give each its own")
        return self
