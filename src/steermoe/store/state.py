"""`run.json`, typed: how a run was made, and how far it is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2

Figures = dict[str, Any]
"""What a step tells of its work: numbers, and lists of them, for `run.json`."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileRecord(_Record):
    """A file or folder that a step left.

    Attributes:
        step: Which one.
        sha256: Hash of its content.
        stamp: Size and time of change of each file in it, by which an untouched one is known without reading it.
    """

    step: str
    sha256: str
    stamp: dict[str, tuple[int, int]]


class StepRecord(_Record):
    """What is known of one step.

    Attributes:
        status: `running` from its first line to its last; `done` only when all it writes is there.
        fingerprint: Hash of the settings and inputs below: the step is done again where it differs.
        settings: The settings that shape its result, as it was really done.
        inputs: Hash of everything that it read, by name.
        files: What it left.
        seconds: How long it took; where it went on from attempts that were interrupted, the last one alone.
        interrupted: How many such attempts there were before it.
        peak_memory_bytes: Largest resident memory meanwhile.
        figures: What it told of its work.
    """

    status: Literal["running", "done"]
    fingerprint: str
    settings: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    files: list[str] = Field(default_factory=list)
    seconds: float | None = None
    interrupted: int = 0
    peak_memory_bytes: int | None = None
    figures: Figures = Field(default_factory=dict)

    @property
    def attempts(self) -> str:
        """What to say beside its seconds; nothing where it was not interrupted."""
        return f" (last of {self.interrupted + 1} attempts)" if self.interrupted else ""


class ModelRecord(_Record):
    """Which model the run is of.

    Attributes:
        id: The embedded model's name, a directory, or a hub id.
        revision: What was asked for of a hub model.
        commit: Which commit of a hub model that was; None of a local one.
        hash: Hash of a local checkpoint's content; empty of a hub model.
        stamp: Size and time of change of each file of a local checkpoint, by which it is known without hashing it.
        files: Hash of each file of a local checkpoint that shapes replies beside the weights: config, generation
            config, tokenizer, chat template. Empty of a run that was made before they were kept.
    """

    id: str
    revision: str | None = None
    commit: str | None = None
    hash: str = ""
    stamp: dict[str, tuple[int, int]] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


class RunState(_Record):
    """All of `run.json`.

    Attributes:
        schema_version: Of the layout of the run directory.
        config: The resolved settings of the last command.
        seed: Its seed.
        packages: Versions of what computed it.
        model: The model.
        stages: Each step that was begun, in the order in which they were.
        files: Each file that is a result, by name.
    """

    schema_version: int = SCHEMA_VERSION
    config: dict[str, Any]
    seed: int
    packages: dict[str, str]
    model: ModelRecord
    stages: dict[str, StepRecord] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)

    def figures_of(self, step: str) -> Figures:
        """What a finished step told of its work; nothing of one that is not done."""
        record = self.stages.get(step)
        return record.figures if record is not None else {}
