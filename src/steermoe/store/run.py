"""A run, for reading: its batches, its tables, its experts and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steermoe.analysis.counts import RoutingCounts, separate_prompt_and_generation_routings
from steermoe.config import Config, validate
from steermoe.errors import RunDirectoryError
from steermoe.records import IntArray, Label, MixedBatch, Output, Prompt
from steermoe.store.directory import RISK, RISK_PER_BATCH, RUN_JSON, RunDirectory


class Run:
    """What a run directory holds; each part is read when it is asked for."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @cached_property
    def state(self) -> dict[str, Any]:
        """`run.json`: config, seed, package versions, model, stages.

        Raises:
            RunDirectoryError: It was damaged: something that every run has is missing.
        """
        state = self.directory.read_run()
        if missing := _missing(state):
            raise RunDirectoryError(
                f"{RUN_JSON} in {self.path} is damaged: it lacks {missing}; choose another with --run"
            )
        return state

    @cached_property
    def config(self) -> Config:
        """The settings it was made with."""
        return validate(self.state["config"])

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The resolved prompts, with their splits."""
        return self.directory.read_prompts()

    @cached_property
    def responses(self) -> pd.DataFrame:
        """One row a response."""
        return self.directory.read_responses()

    @cached_property
    def counts(self) -> RoutingCounts:
        """Activation counts of every response, in the order of `responses`."""
        return self.directory.read_counts()

    @cached_property
    def batches(self) -> list[MixedBatch]:
        """The mixed batches, as `process_mixed_batches` returns them."""
        by_batch: dict[int, list[tuple[int, bool, Output]]] = {}
        for row, output in self.directory.iter_outputs():
            if row["batch_idx"] >= 0:
                entry = (row["in_batch_idx"], row["label"] == Label.UNSAFE, output)
                by_batch.setdefault(row["batch_idx"], []).append(entry)
        return [_mixed_batch(i, by_batch[i]) for i in sorted(by_batch)]

    @cached_property
    def risk_diff(self) -> pd.DataFrame:
        """The aggregated risk table, largest risk difference first."""
        return self.directory.read_table(RISK)

    @cached_property
    def risk_diff_per_batch(self) -> pd.DataFrame:
        """The risk tables of the mixed batches, one under the other."""
        return self.directory.read_table(RISK_PER_BATCH)

    @property
    def unsafe_experts(self) -> list[tuple[int, int]]:
        """The selected `(layer, expert)` pairs, largest risk difference first."""
        rows = self.directory.read_unsafe_experts()["unsafe_experts"]
        return [(int(row["layer"]), int(row["expert"])) for row in rows]

    @property
    def trained_experts(self) -> list[tuple[int, int]]:
        """The `(layer, expert)` pairs that the hardened model was trained on; empty for a baseline, or without one.

        A selection that was made after training has no part in it.
        """
        figures = self.state["stages"].get("train", {}).get("figures", {})
        return [(int(layer), int(expert)) for layer, expert in figures.get("trained_experts", [])]

    @property
    def evaluation(self) -> dict[str, Any]:
        """`evaluation.json`."""
        return self.directory.read_evaluation()


def load_run(run_dir: str | Path) -> Run:
    """Open a run directory for reading.

    Args:
        run_dir: The directory.

    Returns:
        The run; `.batches`, `.risk_diff`, `.unsafe_experts`, `.evaluation` and the rest are read on demand.

    Raises:
        RunDirectoryError: There is no run, or it has another schema version.

    Example:
        >>> run = load_run("runs/smollm2-moe")  # doctest: +SKIP
        >>> run.batches[0].unsafe_indices  # doctest: +SKIP
    """
    run = Run(RunDirectory(run_dir))
    _ = run.state
    return run


def _missing(state: Mapping[str, Any]) -> str:
    """The first thing that `run.json` lacks of what every run has; empty where it is whole."""
    for key in ("config", "model", "stages"):
        if not isinstance(state.get(key), Mapping):
            return key
    for name, stage in state["stages"].items():
        status = stage.get("status") if isinstance(stage, Mapping) else None
        needed = ("seconds", "peak_memory_bytes") if status == "done" else ("status",)
        for key in needed:
            if not isinstance(stage, Mapping) or key not in stage:
                return f"stages.{name}.{key}"
    return ""


def _mixed_batch(batch_idx: int, entries: list[tuple[int, bool, Output]]) -> MixedBatch:
    entries = sorted(entries, key=lambda entry: entry[0])
    outputs = [output for _, _, output in entries]
    is_unsafe = np.array([unsafe for _, unsafe, _ in entries])
    return make_mixed_batch(batch_idx, outputs, is_unsafe.tolist(), outputs[0].layer_indices)


def make_mixed_batch(
    batch_idx: int, outputs: list[Output], is_unsafe: list[bool], layer_indices: tuple[int, ...]
) -> MixedBatch:
    """Assemble a batch from its outputs."""
    safe = [i for i, unsafe in enumerate(is_unsafe) if not unsafe]
    unsafe = [i for i, unsafe in enumerate(is_unsafe) if unsafe]

    def generation(positions: list[int]) -> list[IntArray]:
        return [separate_prompt_and_generation_routings(outputs[i])[1] for i in positions]

    return MixedBatch(
        batch_idx, outputs, safe, unsafe, generation(safe), generation(unsafe), layer_indices
    )
