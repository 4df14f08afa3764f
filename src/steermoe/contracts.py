"""The five things that can be added to: an engine, a judge, a score, an objective, a measure.

Each is a protocol, so an implementation need not inherit anything: one file in the folder of its kind, or a callable of
the user's own that is named as `package.module:callable`. `named` turns either into the thing itself.

Shape legend: N responses, L MoE layers, E experts, B rows of a micro-batch, C completion tokens, V vocabulary.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from steermoe.errors import ConfigError, on_one_line
from steermoe.metrics import MeasureRow
from steermoe.records import (
    Continuation,
    Exchange,
    Judgement,
    Message,
    Output,
    ResponseSums,
    Sampling,
)


@runtime_checkable
class Engine(Protocol):
    """Anything that replies to conversations and returns the routed experts of every token it was fed."""

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Decoder-layer index of each MoE layer."""
        ...

    @property
    def num_experts(self) -> int:
        """Routed experts of one MoE layer."""
        ...

    @property
    def top_k(self) -> int:
        """Experts chosen for each token."""
        ...

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        texts: Sequence[str] | None = None,
    ) -> list[Output]:
        """Reply to each conversation; one output each, in order.

        `texts` are the conversations as they were rendered before, for a template may print the date.
        """
        ...


class ScoringEngine(Engine, Protocol):
    """An engine that can also say how likely a text is: what is measured of a model beside its own replies."""

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[Continuation, Any]]:
        """Feed each continuation to the model.

        Returns:
            Each that has tokens, in order, with the logits `(C, V)` that predict them, on the model's device.
        """
        ...


class Judge(Protocol):
    """Says of replies whether they refuse."""

    @property
    def name(self) -> str:
        """As settings and tables name it, for instance `keyword` or `openai:gpt-5`."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same reply may be judged otherwise: of its phrases, its rubric, its weights."""
        ...

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        """Judge a batch of replies: one judgement each, in order.

        A judge that cannot tell says `unscored` with the reason; it never guesses.
        """
        ...


class Score(Protocol):
    """A number per expert by which experts are ranked: a mean over tokens, unsafe responses less safe ones."""

    @property
    def name(self) -> str:
        """As `identify.rank_by` names it."""
        ...

    @property
    def needs(self) -> str:
        """`counts` where collecting has recorded all it needs, `model` where it takes passes of its own."""
        ...

    def sums(self, source: Any) -> ResponseSums:
        """Its sum over the tokens of every response, from which means, intervals and replication all come."""
        ...


class Objective(Protocol):
    """One term of the training loss.

    It may also have `needs_base`, true where its loss reads the base model's logits, `log_name`, what its figure is
    called in the history of a training, and `row_weight(row)`, the weight of a row's tokens in its mean where that is
    not their number: by it, several processes share a micro-batch.
    """

    @property
    def name(self) -> str:
        """As training rows name it: a row belongs to one objective."""
        ...

    @property
    def weight(self) -> float:
        """Its factor in the sum of all objectives."""
        ...

    def row(self, example: Any, position: int) -> Any:
        """What a prompt of the train split trains as: a `TrainingRow` of this name, or None if it is not of this.

        `example` is a `training.dataset.Example`; `position` counts the rows that were made before it.
        """
        ...

    def loss(self, batch: Mapping[str, Any], forward: Any) -> Any:
        """The mean loss of the rows of a micro-batch that belong to this objective, as a tensor with gradient.

        `forward` is a `training.forward_plan.Forward`.
        """
        ...


class Measure(Protocol):
    """One figure of a variant, and what people need to know of it. Listed in `measures.MEASURES`."""

    @property
    def name(self) -> str:
        """As in `measures.parquet`."""
        ...

    @property
    def title(self) -> str:
        """A few words, for tables."""
        ...

    @property
    def meaning(self) -> str:
        """One sentence: what is counted, and of what."""
        ...

    @property
    def unit(self) -> str:
        """`share`, `nats`, `tokens` or another; shares are printed as percentages."""
        ...

    @property
    def better(self) -> str:
        """`higher`, `lower`, or empty where neither is better."""
        ...

    def of(self, evidence: Any) -> list[MeasureRow]:
        """Its rows for one variant: the figure itself, and its change against the base model; none if undefined."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing that settings name.

    Attributes:
        what: What it is called in messages: `judge`.
        setting: The setting that names it: `judge.main`.
        known: Those that ship, by name, each a function that makes it from what follows the name after a colon.
    """

    what: str
    setting: str
    known: Mapping[str, Callable[[str], Any]]


def named(kind: Kind, name: str) -> Any:
    """The thing of that name.

    Args:
        kind: What is named.
        name: `keyword`, `classifier:ID` (one that ships, with an argument), or `package.module:callable`.

    Returns:
        What the factory of that name makes, or the user's own callable as it is.

    Raises:
        ConfigError: There is none, or it cannot be imported, or it is not callable.
    """
    head, colon, argument = name.partition(":")
    if head in kind.known:
        return kind.known[head](argument)
    if not colon:
        raise ConfigError(
            f"{kind.setting} = {name!r} is not known: use one of {', '.join(kind.known)}, or package.module:callable"
        )
    return own_callable(kind.what, name)


def own_callable(what: str, name: str) -> Callable[..., Any]:
    """Import what a user names as `package.module:callable`.

    Args:
        what: What it is, for messages: `judge`, `selection rule`.
        name: Where it is.

    Raises:
        ConfigError: It cannot be imported, or is not callable.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the user's module may fail in any way while it is imported
        raise ConfigError(
            f"cannot import the {what} {name!r} ({type(error).__name__}: {error}); write package.module:callable and "
            "see that the package is installed or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"the {what} {name!r} is a {type(found).__name__}; name a callable")
    made: Callable[..., Any] = found
    return made


def made_of(what: str, name: str, found: Any) -> Any:
    """An object of a class of the user's own; anything else as it is.

    Raises:
        ConfigError: The class cannot be made without arguments.
    """
    if not inspect.isclass(found):
        return found
    try:
        return found()
    except Exception as error:  # the user's code may fail in any way
        raise ConfigError(
            f"the {what} {name!r} cannot be made ({type(error).__name__}: {on_one_line(error)}); it must need no "
            "arguments"
        ) from error


def check_takes(
    what: str,
    name: str,
    function: Callable[..., Any],
    *arguments: str,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Refuse a callable of a user's own that cannot be called as it will be, without calling it.

    Args:
        what: What it is, for messages: `judge`, `selection rule`.
        name: Where it is.
        function: It; code without a signature (built in, or compiled) is let through.
        arguments: What it will be called with, in words.
        settings: What it will be called with by name.

    Raises:
        ConfigError: It takes fewer arguments, or needs more.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments, **settings)
    except TypeError as error:
        called_with = ", ".join((*arguments, *settings))
        raise ConfigError(
            f"the {what} {name!r} takes {signature}, but is called with {called_with} ({error})"
        ) from None
