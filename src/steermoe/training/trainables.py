"""What can be trained: selected experts, routers, both, or everything.

A trainable knows its parameters, how to be switched off so that the model is the base model again, how to be folded
into an ordinary model, and which tensors of a checkpoint it may have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from typing import Any, Protocol

import torch
from torch import nn

from steermoe.config import PhaseSettings
from steermoe.errors import TrainingError
from steermoe.moe.checkpoint import saved_names
from steermoe.moe.description import MoEDescription
from steermoe.moe.slices import ExpertId, ExpertSlices, attach_expert_slices

CHOICE_BIAS = "e_score_correction_bias"
"""How the name of a bias ends that only chooses experts: a parameter in some architectures, a buffer in most."""

NamedParameters = Iterator[tuple[str, nn.Parameter]]


class Trainable(Protocol):
    """What a phase of training changes."""

    @property
    def name(self) -> str:
        """As settings name it."""
        ...

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        """The experts that train as slices, ascending: they can be masked, and none else may differ on disk."""
        ...

    @property
    def slices(self) -> ExpertSlices | None:
        """Those slices, if any train."""
        ...

    @property
    def first_layer(self) -> int:
        """The lowest decoder layer that changes; whatever lies below it stays as it is."""
        ...

    @property
    def can_be_off(self) -> bool:
        """Whether the base model can be had by switching this off."""
        ...

    def named_parameters(self) -> NamedParameters:
        """What trains, by its name in the model."""
        ...

    def off(self) -> AbstractContextManager[None]:
        """Within it, the model is as it was before any training of this."""
        ...

    def fold(self, kept_change: float) -> None:
        """Make the model an ordinary one that keeps this share of the change."""
        ...

    def changed_tensors(self) -> frozenset[str] | None:
        """Names of the tensors of a saved checkpoint that may differ beside the experts; None if any may."""
        ...


class Experts:
    """Selected experts, as slices beside the frozen tensors."""

    name = "experts"
    can_be_off = True

    def __init__(self, slices: ExpertSlices) -> None:
        self.slices: ExpertSlices | None = slices
        self._slices = slices

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        """The trained pairs, ascending."""
        return tuple(self._slices.experts)

    @property
    def first_layer(self) -> int:
        """The lowest layer with a trained expert."""
        return self._slices.experts[0][0]

    def named_parameters(self) -> NamedParameters:
        """The fp32 masters."""
        return self._slices.named_parameters()

    def off(self) -> AbstractContextManager[None]:
        """The base model's experts run."""
        return self._slices.switched_off()

    def fold(self, kept_change: float) -> None:
        """Write them into the fused tensors, and take the slices out."""
        self._slices.fold(kept_change)
        self._slices.detach()

    def changed_tensors(self) -> frozenset[str] | None:
        """None beside the experts' own."""
        return frozenset()


class Routers:
    """The routers of all MoE layers, trained in place. Copies of the base model's are kept: they are small."""

    name = "routers"
    experts: tuple[ExpertId, ...] = ()
    slices: ExpertSlices | None = None
    can_be_off = True

    def __init__(self, model: nn.Module, description: MoEDescription) -> None:
        self._model = model
        self._parameters = {
            name: parameter
            for layer in description.layers
            for name, parameter in model.get_submodule(layer.router_name).named_parameters(
                prefix=layer.router_name
            )
            if not name.endswith(CHOICE_BIAS)
        }
        self._base = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.first_layer = min(description.layer_indices)

    def named_parameters(self) -> NamedParameters:
        """Everything of a router but the bias that only chooses experts, which no gradient reaches."""
        return iter(self._parameters.items())

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model's routers choose."""
        trained = {name: parameter.data for name, parameter in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self._base[name]
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = trained[name]

    @torch.no_grad()
    def fold(self, kept_change: float) -> None:
        """Take back what is not kept of the change."""
        if kept_change == 1:
            return
        for name, parameter in self._parameters.items():
            base = self._base[name].float()
            parameter.copy_(base.lerp(parameter.float(), kept_change))

    def changed_tensors(self) -> frozenset[str] | None:
        """The routers', as they are called on disk."""
        return saved_names(self._model, self._parameters)


class Everything:
    """Every parameter, in place: a baseline, which needs a second copy of the model to be held to."""

    name = "everything"
    experts: tuple[ExpertId, ...] = ()
    slices: ExpertSlices | None = None
    first_layer = 0
    can_be_off = False

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> NamedParameters:
        """All but the biases that only choose experts, which no gradient reaches."""
        named = self._model.named_parameters()
        return ((name, p) for name, p in named if not name.endswith(CHOICE_BIAS))

    def off(self) -> AbstractContextManager[None]:
        """There is none.

        Raises:
            TrainingError: Always.
        """
        raise TrainingError("a model that trains in place has no base model in it: pass base_model")

    def fold(self, kept_change: float) -> None:
        """Nothing is left to do: it trained in place, and what it was before is not known."""

    def changed_tensors(self) -> frozenset[str] | None:
        """Any."""
        return None


class Together:
    """Several trainables as one."""

    def __init__(self, parts: Sequence[Trainable]) -> None:
        self.parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.experts = tuple(sorted(expert for part in parts for expert in part.experts))
        self.slices = next((part.slices for part in parts if part.slices is not None), None)
        self.first_layer = min(part.first_layer for part in parts)
        self.can_be_off = all(part.can_be_off for part in parts)

    def named_parameters(self) -> NamedParameters:
        """Those of all parts."""
        return chain.from_iterable(part.named_parameters() for part in self.parts)

    @contextmanager
    def off(self) -> Iterator[None]:
        """All parts are off."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.off())
            yield

    def fold(self, kept_change: float) -> None:
        """All parts keep the same share."""
        for part in self.parts:
            part.fold(kept_change)

    def changed_tensors(self) -> frozenset[str] | None:
        """What any part may have changed."""
        changed: set[str] = set()
        for part in self.parts:
            of_part = part.changed_tensors()
            if of_part is None:
                return None
            changed |= of_part
        return frozenset(changed)


def trainables_of(
    model: nn.Module,
    description: MoEDescription,
    phases: Sequence[PhaseSettings],
    experts: Iterable[ExpertId],
) -> tuple[Trainable, list[Trainable]]:
    """What the phases of a run train. A part that several phases train is one object, which goes on from where it was.

    Returns:
        All of it as one, and what each phase trains.

    Raises:
        SelectionError: Of the selected experts, one does not exist, is named twice, or there is none.
        ModelError: The model's experts cannot be trained.
    """
    parts: dict[str, Trainable] = {}
    if any(phase.trains_experts for phase in phases):
        parts["experts"] = Experts(attach_expert_slices(model, experts))
    if any(phase.trains_routers for phase in phases):
        parts["routers"] = Routers(model, description)
    if any(phase.parameters == "everything" for phase in phases):
        parts["everything"] = Everything(model)

    def joined(names: Iterable[str]) -> Trainable:
        chosen = [parts[name] for name in names]
        return chosen[0] if len(chosen) == 1 else Together(chosen)

    return joined(parts), [joined(phase.parameters.split("+")) for phase in phases]


def train_only(model: nn.Module, trainable: Trainable) -> int:
    """Make what a trainable names trainable, and freeze everything else; returns how many numbers train."""
    model.requires_grad_(False)
    num_numbers = 0
    for _, parameter in trainable.named_parameters():
        parameter.requires_grad_(True)
        num_numbers += parameter.numel()
    return num_numbers


def trainable_of(model: Any, slices: ExpertSlices | None = None) -> Trainable:
    """What a model trains whose parameters are chosen already: its expert slices, or else whatever is not frozen."""
    slices = slices if slices is not None else getattr(model, "expert_slices", None)
    return Experts(slices) if slices is not None else Everything(model)
