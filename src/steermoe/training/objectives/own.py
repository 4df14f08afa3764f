"""An objective of the user's own: made, checked, and its failures told from ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from steermoe.config import TrainSection
from steermoe.contracts import Objective
from steermoe.errors import ConfigError, SteerMoEError, TrainingError, on_one_line
from steermoe.training.dataset import Example, TrainingRow
from steermoe.training.forward_plan import Forward


def checked(
    setting: str,
    maker: Callable[[TrainSection], Any],
    settings: TrainSection,
    shipped: Mapping[str, Callable[[TrainSection], Objective]],
) -> Objective:
    """Make an objective of the user's own.

    Args:
        setting: How the settings name it.
        maker: Makes it from the settings of training.
        settings: Of training.
        shipped: What makes the shipped objectives. An own objective that has the name of one and no method `row`
            trains on the rows of that one.

    Raises:
        ConfigError: It cannot be made, or is no objective.
    """
    try:
        made = maker(settings)
    except SteerMoEError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise ConfigError(
            f"the objective {setting!r} failed with {type(error).__name__}: {on_one_line(error)}; it is called with "
            "the settings of training and must return an objective"
        ) from error
    name, weight = getattr(made, "name", None), getattr(made, "weight", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"the objective {setting!r} has no name: give it one, a text")
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not 0 <= weight < math.inf
    ):
        raise ConfigError(
            f"the objective {setting!r} has weight {weight!r}: give it a number of 0 or more"
        )
    if not callable(getattr(made, "loss", None)):
        raise ConfigError(f"the objective {setting!r} has no method loss(batch, forward)")
    row = getattr(made, "row", None)
    if row is None and name in shipped:
        row = shipped[name](settings).row
    if not callable(row):
        raise ConfigError(
            f"the objective {setting!r} has no method row(example, position), and no shipped objective is called "
            f"{name!r}"
        )
    return OwnObjective(setting, made, row)


class OwnObjective:
    """An objective of the user's own, with an error of one line where it fails."""

    def __init__(
        self, setting: str, made: Any, row: Callable[[Example, int], TrainingRow | None]
    ) -> None:
        self.name: str = made.name
        self.weight = float(made.weight)
        self.needs_base = bool(getattr(made, "needs_base", False))
        self.log_name = str(getattr(made, "log_name", f"{self.name}_loss"))
        self._setting, self._made, self._row = setting, made, row

    def row(self, example: Example, position: int) -> TrainingRow | None:
        """What a prompt of the train split trains as, if it belongs to this objective."""
        made: Any = self._guarded(self._row, example, position)
        if made is not None and (not isinstance(made, TrainingRow) or made.objective != self.name):
            raise TrainingError(
                f"row of the objective {self._setting!r} returned {type(made).__name__}; return None or a TrainingRow "
                f"whose objective is {self.name!r}"
            )
        row: TrainingRow | None = made
        return row

    def row_weight(self, row: TrainingRow) -> float:
        """The weight that a row has in the mean: the number of its tokens, unless the objective says otherwise."""
        weigh = getattr(self._made, "row_weight", None)
        if weigh is None:
            return float(len(row.completion_token_ids))
        return float(self._guarded(weigh, row))

    def loss(self, batch: Mapping[str, Any], forward: Forward) -> Tensor:
        """The mean loss of its rows."""
        loss: Any = self._guarded(self._made.loss, batch, forward)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TrainingError(
                f"loss of the objective {self._setting!r} returned {shown}; return one number, a tensor without "
                "dimensions"
            )
        return loss

    def _guarded(self, method: Callable[..., Any], *given: Any) -> Any:
        try:
            return method(*given)
        except (SteerMoEError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # the user's code may fail in any way
            raise TrainingError(
                f"the objective {self._setting!r} failed with {type(error).__name__}: {on_one_line(error)}"
            ) from error
