"""Fitting: the phases of a training one after the other, each from its last checkpoint if there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from steermoe.config import TrainSection
from steermoe.moe.description import MoEDescription
from steermoe.processes import ALONE, Processes
from steermoe.reporter import Bar, Reporter
from steermoe.training.arguments import training_arguments
from steermoe.training.checkpoints import PhaseCheckpoints, state_of
from steermoe.training.dataset import MicroBatch, MicroBatches, TrainingRow, collate
from steermoe.training.forward_plan import ExpertMasks
from steermoe.training.phases import Phase
from steermoe.training.planner import Planner
from steermoe.training.shares import own_share
from steermoe.training.spread import Spread
from steermoe.training.trainables import Trainable, train_only
from steermoe.training.trainer import ExpertMaskingTrainer, checkpoint_metadata, load_trained

FEW_STEPS = 20
"""Half of what the embedded model takes; fewer are worth a word."""

SEEDS = 2**32
"""Seeds are below it: numpy takes none from there on."""

History = list[dict[str, float]]
"""What the trainer logged of each step, by name."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What the phases of one training share.

    Attributes:
        model: The model, with what trains chosen by `trainables_of`.
        description: Its MoE layers.
        trained: All that any phase trains.
        masks: The expert masks, if rows are fed under any.
        pad_token_id: For padding.
        load_base: Loads another copy of the base model, where what is trained cannot be switched off.
        settings: Of training.
        seed: Of the run; each phase has one of its own.
        folder: Where checkpoints go.
        reporter: Where to print.
        spread: How it is spread over several processes, if it is.
    """

    model: nn.Module
    description: MoEDescription
    trained: Trainable
    masks: ExpertMasks | None
    pad_token_id: int
    load_base: Callable[[], nn.Module]
    settings: TrainSection
    seed: int
    folder: Path
    reporter: Reporter
    spread: Spread | None = None

    def run(self, phases: Sequence[Phase]) -> History:
        """Train all phases.

        Returns:
            The figures of every step. Of several phases each entry names its own, and steps are counted through.

        Raises:
            TrainingError: A warm-up is as long as its phase, there is nothing to train on, or a checkpoint belongs to
                another training.
            ConfigError: `train.arguments` cannot be used.
        """
        data = [self.micro_batches(phase) for phase in phases]
        arguments = [self._arguments(i, phases[i], data[i]) for i in range(len(phases))]
        num_steps = [
            self.settings.num_steps(len(batches), phase.epochs)
            for phase, batches in zip(phases, data, strict=True)
        ]
        if sum(num_steps) < FEW_STEPS:
            self.reporter.note(
                f"{sum(num_steps)} training steps are few; raise train.epochs ({self.settings.epochs:g} now) if too "
                "little is refused"
            )
        planner = Planner(
            self.model,
            self.description,
            self.trained,
            self.masks,
            self.pad_token_id,
            self.load_base,
            self.reporter.line,
            is_sharded=self.spread is not None and self.spread.is_sharded,
        )
        history: History = []
        for index, phase in enumerate(phases):
            steps = _OnePhase(self, index, len(phases), num_steps[index]).train(
                phase, data[index], arguments[index], planner
            )
            if len(phases) > 1:
                offset = sum(num_steps[:index])
                steps = [{**x, "step": x["step"] + offset, "phase": index} for x in steps]
            history += steps
        return history

    def micro_batches(self, phase: Phase) -> MicroBatches:
        """The training set of a phase."""
        settings = self.settings
        return MicroBatches(
            phase.rows, phase.benign, settings.batch_size, settings.benign_per_batch, self.seed
        )

    def _arguments(self, index: int, phase: Phase, data: MicroBatches) -> TrainingArguments:
        return training_arguments(
            self.settings,
            phase,
            (self.seed + index) % SEEDS,
            PhaseCheckpoints(self.folder, index).folder,
            self.settings.num_steps(len(data), phase.epochs),
            use_cpu=next(self.model.parameters()).device.type == "cpu",
            leads=self.processes.is_first,
        )

    @property
    def processes(self) -> Processes:
        """Those that train."""
        return ALONE if self.spread is None else self.spread.processes

    def collate(self, phase: Phase) -> Callable[[Sequence[Sequence[TrainingRow]]], MicroBatch]:
        """How the rows of a micro-batch become tensors: all of them, or this process's share."""
        processes, pad = self.processes, self.pad_token_id
        if processes.count == 1:
            return partial(collate, pad_token_id=pad)

        def collate_share(items: Sequence[Sequence[TrainingRow]]) -> MicroBatch:
            rows = [row for item in items for row in item]
            own, factors = own_share(rows, phase.objectives, processes.rank, processes.count)
            return {**collate([own], pad), "shares": factors}

        return collate_share


@dataclass(frozen=True, slots=True)
class _OnePhase:
    """One phase of a training, which may have been finished or begun before."""

    fit: Fit
    index: int
    num_phases: int
    num_steps: int

    @property
    def checkpoints(self) -> PhaseCheckpoints:
        return PhaseCheckpoints(self.fit.folder, self.index)

    @property
    def is_last(self) -> bool:
        return self.index == self.num_phases - 1

    @property
    def name(self) -> str:
        return (
            "train"
            if self.num_phases == 1
            else f"train, phase {self.index + 1} of {self.num_phases}"
        )

    def train(
        self, phase: Phase, data: MicroBatches, arguments: TrainingArguments, planner: Planner
    ) -> History:
        """Train it, or take it as it was finished; returns the figures of its steps."""
        train_only(self.fit.model, phase.trainable)
        finished = self._found(self._finished)
        if finished is not None:
            planner.skip(phase.trainable)
            return self._take(finished)
        if self.fit.processes.is_first:
            for later in range(self.index + 1, self.num_phases):
                PhaseCheckpoints(self.fit.folder, later).remove()  # they build on another training
        history = self._train(phase, data, arguments, planner)
        finished = self._found(self._finished)
        if finished is not None and self.fit.processes.is_first:
            self.checkpoints.remove_all_but(finished)
        return history

    def _found(self, find: Callable[[], Path | None]) -> Path | None:
        """A checkpoint that rank 0 finds: looking removes what was not written to its end."""

        def look() -> str | None:
            found = find()
            return None if found is None else str(found)

        path = self.fit.processes.from_first(look)
        return None if path is None else Path(path)

    def _finished(self) -> Path | None:
        """The checkpoint of the last step of a phase that others build on, if it came so far."""
        return None if self.is_last else self.checkpoints.finished(self.num_steps)

    def _take(self, finished: Path) -> History:
        load_trained(finished, self.fit.model, checkpoint_metadata(self.fit.trained, self.index))
        self.fit.reporter.line(f"{self.name}: done already")
        return _steps(state_of(finished).log_history)

    def _train(
        self, phase: Phase, data: MicroBatches, arguments: TrainingArguments, planner: Planner
    ) -> History:
        model, reporter = self.fit.model, self.fit.reporter
        plan = planner.plan(phase.trainable, phase.objectives, phase.epochs, data.rows())
        config: Any = model.config
        use_cache = getattr(config, "use_cache", None)
        trainer = ExpertMaskingTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=self.fit.collate(phase),
            objectives=phase.objectives,
            plan=plan,
            phase=self.index,
            spread=self.fit.spread,
        )
        last = self._found(self.checkpoints.last)
        if last is not None:
            reporter.line(f"{self.name}: going on from {last.name}")
        with reporter.bar(self.num_steps, self.name) as bar:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_BarCallback(bar))
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        model.eval()
        # The trainer switches it off, and the hardened checkpoint would say so for good.
        config.use_cache = use_cache
        # The last entry sums up this process alone, and a resumed run has had another before it.
        return _steps(trainer.state.log_history)


def _steps(log: History) -> History:
    return [entry for entry in log if "loss" in entry]


class _BarCallback(TrainerCallback):
    """Moves the progress bar, and shows the loss beside it."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.find_done(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.advance(state.global_step - self.bar.done, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.note = f"loss {logs['loss']:.3f}"
