"""The terms of the training loss, one file each, and how settings name them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from steermoe.config import TrainSection
from steermoe.contracts import Kind, Objective, named
from steermoe.errors import ConfigError
from steermoe.training.objectives.own import checked
from steermoe.training.objectives.refusal import Refusal
from steermoe.training.objectives.retention import Retention

Maker = Callable[[TrainSection], Objective]

SHIPPED: dict[str, Maker] = {"refusal": Refusal.of, "retention": Retention.of}

OBJECTIVE = Kind(
    "objective",
    "train.objectives",
    {"refusal": lambda _: Refusal.of, "retention": lambda _: Retention.of},
)
"""Shipped objectives, and those of users: either is made by a callable of the settings of training."""


def objectives_of(settings: TrainSection, names: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives of those names, in order.

    Args:
        settings: Of training: an objective takes its weight and all else from there.
        names: `refusal`, `retention`, or `package.module:callable`, which is called with the settings and returns an
            objective.

    Raises:
        ConfigError: There is none of that name, what a callable returns is no objective, or two have one name.
    """
    found: list[Objective] = []
    for name in names:
        maker: Maker = named(OBJECTIVE, name)
        made = maker(settings) if name in SHIPPED else checked(name, maker, settings, SHIPPED)
        if made.name in [other.name for other in found]:
            raise ConfigError(
                f"train.objectives names {made.name!r} twice: a row belongs to one objective, by its name"
            )
        found.append(made)
    return tuple(found)
