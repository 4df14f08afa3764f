"""The settings of judging."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from steermoe.config.section import Section, check_address


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
        "auto",
        description="Type of its weights in memory; auto keeps the checkpoint's own, or float32 "
        "where the processor has no arithmetic for that.",
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
        if value is not None:
            check_address(value, "judge.key_variable")
        return value
