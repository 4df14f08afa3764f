"""Steps that only write down that they ran, and leave files of the right kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steermoe.config import Config, validate
from steermoe.errors import TrainingError
from steermoe.pipeline import run as pipeline
from steermoe.pipeline.commands import RUN
from steermoe.pipeline.step import Step
from steermoe.records import Expert, Judgement, Label, Prompt, Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, HARDENED, PROMPTS, UNSAFE_EXPERTS, VERDICTS, shard_of
from steermoe.store.selection_file import ExpertSet

NO_FORECAST = validate({"identify": {"forecast": False}})

ALL = [step.name for step in RUN if step.is_asked_for(NO_FORECAST)]
"""Those of a run that is asked for no forecast and no controls, as the settings below are."""


class Fakes:
    """Steps that leave the files of the real ones, can be told to fail, or to refuse before they write.

    Attributes:
        ran: The names of the steps that ran.
        failing: What a step raises after it has begun to write.
        refused: Steps that raise before they write.
        left_out: Files that are not written.
        numbers: Goes into what is written, so that each time it is something else.
        verdict: What the judge says.
        selected: Which experts are selected.
    """

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing: dict[str, BaseException] = {}
        self.refused: list[str] = []
        self.left_out: list[str] = []
        self.numbers: Iterator[int] = itertools.count()
        self.verdict = Verdict.REFUSED
        self.selected = [Expert(0, 1)]

    def step(self, real: Step) -> Step:
        def function(run: RunDirectory, config: Config, reporter: Any) -> dict[str, Any]:
            self.ran.append(real.name)
            if real.name in self.refused:
                raise TrainingError("no")
            if real.name == "collect":
                run.write_json(shard_of("responses", 0), {})
            if real.name in self.failing:
                raise self.failing[real.name]
            for name in real.writes:
                if name not in self.left_out and "*" not in name:
                    self._write(run, config, name, real)
            return {"ran": len(self.ran)}

        return replace(real, function=function, check=lambda config: None)

    def _write(self, run: RunDirectory, config: Config, name: str, step: Step) -> None:
        number = next(self.numbers)
        if name == PROMPTS:
            messages = ({"role": "user", "content": f"{number}"},)
            run.write_prompts([Prompt("p", Label.UNSAFE, messages, f"goal {number}")])
        elif name == VERDICTS:
            variant = HARDENED if step.name.endswith(HARDENED) else BASE
            found = Judgement(self.verdict, reason=f"{number}")
            run.write_verdicts({(variant, "p", config.judge.main): found}, [variant])
        elif name == UNSAFE_EXPERTS:
            overall = tuple((expert, number / 1000) for expert in self.selected)
            run.write_selection(ExpertSet({}, (0,), 8, overall, {}, (Expert(0, 0), 0.5)))
        else:
            run.write_json(name, {"number": number})

    def take(self) -> list[str]:
        """What ran since it was asked last."""
        ran, self.ran = self.ran, []
        return ran


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Fake steps in the place of the real ones."""
    made = Fakes()
    fake = {step.name: made.step(step) for step in RUN}
    commands = {
        command: tuple(tuple(fake.get(s.name, s) for s in steps) for steps in both)
        for command, both in pipeline.COMMANDS.items()
    }
    monkeypatch.setattr(pipeline, "COMMANDS", commands)
    monkeypatch.setattr(pipeline, "COLLECT", fake["collect"])
    monkeypatch.setattr(pipeline, "TRAIN", fake["train"])
    monkeypatch.setattr(pipeline, "release_memory", lambda: None)  # nothing to release, and slow
    monkeypatch.setattr("steermoe.loading.describe_model", lambda settings, source: None)
    monkeypatch.setattr(pipeline, "check_layers", lambda settings, source, bounds: None)
    return made


def settings_maker(tmp_path: Path) -> Callable[..., Config]:
    """Settings of a run of fake steps, on a checkpoint of three zeros."""
    import torch
    from safetensors.torch import save_file

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"w": torch.zeros(3)}, model / "model.safetensors")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,label\nx,safe\n")

    def make(**settings: Any) -> Config:
        own = {
            "run": str(tmp_path / "run"),
            "model": {"id": str(model)} | settings.pop("model", {}),
            "prompts": {"sources": [str(prompts)]} | settings.pop("prompts", {}),
            "identify": {"forecast": False} | settings.pop("identify", {}),
        }
        return validate(own | settings)

    return make
