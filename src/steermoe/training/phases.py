"""A phase of training."""

from __future__ import annotations

from dataclasses import dataclass

from steermoe.contracts import Objective
from steermoe.training.dataset import TrainingRow
from steermoe.training.trainables import Trainable


@dataclass(frozen=True, slots=True)
class Phase:
    """What trains, towards what, and for how long. A training is one or more, one after the other.

    Attributes:
        trainable: What changes; everything else stands still.
        objectives: The terms of the loss.
        epochs: Passes over the micro-batches.
        learning_rate: Its peak.
        rows: Rows that are in mixed batches.
        benign: Rows that are spread over them.
    """

    trainable: Trainable
    objectives: tuple[Objective, ...]
    epochs: float
    learning_rate: float
    rows: list[TrainingRow]
    benign: list[TrainingRow]
