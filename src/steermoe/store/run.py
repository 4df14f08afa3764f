"""A run, for reading: its batches, its tables, its experts and its figures."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from steermoe.analysis.counts import RoutingCounts, separate_prompt_and_generation_routings
from steermoe.config import Config, validate
from steermoe.errors import RunDirectoryError
from steermoe.metrics import Evaluation, MeasureRow
from steermoe.records import Expert, IntArray, Label, MixedBatch, Output, Prompt, Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.names import BASE, RISK, RISK_PER_BATCH, VERDICTS
from steermoe.store.old_layout import open_state
from steermoe.store.selection_file import ExpertSet
from steermoe.store.state import RunState


class Run:
    """What a run directory holds; each part is read when it is asked for."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @cached_property
    def state(self) -> RunState:
        """`run.json`: config, seed, package versions, model, steps and files.

        Raises:
            RunDirectoryError: There is none, or it was damaged.
        """
        return open_state(self.directory)

    @cached_property
    def config(self) -> Config:
        """The settings it was made with."""
        return validate(self.state.config)

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The resolved prompts, with their splits."""
        return self.directory.read_prompts()

    @cached_property
    def responses(self) -> pd.DataFrame:
        """One row a response of the base model, with the verdict of the run's judge."""
        return self.replies(BASE)

    def replies(self, variant: str) -> pd.DataFrame:
        """One row a reply of a variant, with the verdict of the run's judge; `unscored` where there is none yet."""
        replies = self.directory.read_replies(variant)
        verdicts: dict[str, str] = {}
        if self.directory.has(VERDICTS):
            with suppress(RunDirectoryError):  # it has not judged this variant yet
                verdicts = self.directory.read_verdicts(variant, self.config.judge.main)
        judged = [verdicts.get(i, str(Verdict.UNSCORED)) for i in replies["prompt_id"]]
        return replies.assign(verdict=judged)

    @cached_property
    def selection(self) -> ExpertSet:
        """The selected experts, with the rule that selected them."""
        return self.directory.read_selection()

    @cached_property
    def measures(self) -> list[MeasureRow]:
        """Every figure of every variant."""
        return self.directory.read_measures()

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
    def unsafe_experts(self) -> list[Expert]:
        """The selected `(layer, expert)` pairs, largest risk difference first."""
        return self.selection.chosen("global")

    @property
    def trained_experts(self) -> list[Expert]:
        """The `(layer, expert)` pairs that the hardened model was trained on; empty for a baseline, or without one.

        A selection that was made after training has no part in it.
        """
        pairs = self.state.figures_of("train").get("trained_experts", [])
        return [Expert(int(layer), int(expert)) for layer, expert in pairs]

    def is_current(self, step: str) -> bool:
        """Whether the files that a finished step has read are still what the run holds."""
        record = self.state.stages.get(step)
        if record is None:
            return False
        held = {name: found.sha256 for name, found in self.state.files.items()}
        return all(
            held[name] == digest
            for name, digest in record.inputs.items()
            if digest and name in held
        )

    @property
    def evaluation(self) -> Evaluation:
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
