"""Which accelerators a phase of training may use: what the phase makes invalid is left out, and said.

What leaves the layers below the lowest trained one is the same in every step of a phase, and from one phase to the next
as long as none trains below it. What the base model predicts never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from steermoe.contracts import Objective
from steermoe.moe.description import MoEDescription
from steermoe.moe.partial_passes import LowerLayers
from steermoe.training.base_replies import BaseReplies
from steermoe.training.dataset import TrainingRow
from steermoe.training.forward_plan import ExpertMasks, ForwardPlan
from steermoe.training.lower_states import LowerStates
from steermoe.training.trainables import Trainable


class Planner:
    """Makes the plan of each phase, and keeps from one to the next what stays valid.

    Args:
        model: The model, in evaluation mode whenever a plan is made.
        description: Its MoE layers.
        trained: All that any phase trains.
        masks: The expert masks, if rows are fed under any.
        pad_token_id: For padding.
        load_base: Loads another copy of the base model, where what is trained cannot be switched off.
        say: Prints a line.
        is_sharded: Whether each of several processes has a part of the model: then it runs as a whole alone.
    """

    def __init__(
        self,
        model: nn.Module,
        description: MoEDescription,
        trained: Trainable,
        masks: ExpertMasks | None,
        pad_token_id: int,
        load_base: Callable[[], nn.Module],
        say: Callable[[str], None],
        is_sharded: bool = False,
    ) -> None:
        self._model, self._description, self._trained = model, description, trained
        self._masks, self._pad_token_id = masks, pad_token_id
        self._load_base, self._say = load_base, say
        self._is_sharded = is_sharded
        self._base_model: nn.Module | None = None
        self._lower: tuple[int, list[TrainingRow], LowerStates | None] | None = None
        self._replies: tuple[list[TrainingRow], LowerStates | None, BaseReplies | None] | None = (
            None
        )
        self._lowest_changed = 1 + max(description.layer_indices)

    def plan(
        self,
        trainable: Trainable,
        objectives: Sequence[Objective],
        epochs: float,
        rows: list[TrainingRow],
    ) -> ForwardPlan:
        """The plan of the next phase.

        Args:
            trainable: What it trains.
            objectives: Its objectives.
            epochs: Passes over its rows.
            rows: Every row that it sees.
        """
        held = {o.name for o in objectives if o.weight and getattr(o, "needs_base", False)}
        lower = replies = None
        # The baselines are what selected experts are compared with, and run as they would without any of this.
        if self._trained.slices is not None and not self._is_sharded:
            lower = self._lower_states(trainable.first_layer, epochs, rows)
            if held:
                replies = self._base_replies(
                    [row for row in rows if row.objective in held],
                    # What lies below may be another by now than the base model's.
                    lower if trainable.first_layer <= self._lowest_changed else None,
                )
        elif held and not self._trained.can_be_off and self._base_model is None:
            self._base_model = self._load_base()
        self.skip(trainable)
        return ForwardPlan(
            self._model,
            self._trained,
            masks=self._masks,
            base_model=self._base_model,
            base_replies=replies,
            lower_states=lower,
            description=self._description,
        )

    def skip(self, trainable: Trainable) -> None:
        """Know of a phase that was trained before, and from now on of its changes."""
        self._lowest_changed = min(self._lowest_changed, trainable.first_layer)
        if self._lower is not None and self._lower[0] > trainable.first_layer:
            self._lower = None

    def _lower_states(
        self, first_trained: int, epochs: float, rows: list[TrainingRow]
    ) -> LowerStates | None:
        """What leaves the layers below the lowest trained one, where rows are seen more than once."""
        if epochs <= 1 or first_trained == 0:
            return None  # even where they are kept: a training that goes on in this phase has none
        if self._lower is not None and self._lower[:2] == (first_trained, rows):
            return self._lower[2]
        layers = LowerLayers(self._model, self._description, first_trained)
        states: LowerStates | None = LowerStates(self._model, layers, rows, self._pad_token_id)
        assert states is not None
        if states.is_usable:
            self._say(
                f"the {first_trained} decoder layers below the trained ones have run once for every row, and need not "
                "again"
            )
        else:
            self._say(
                "every layer runs in every step: those below the trained ones cannot be spared "
                f"({states.why_not})"
            )
            states = None
        self._lower = (first_trained, rows, states)
        return states

    def _base_replies(
        self, rows: list[TrainingRow], lower: LowerStates | None
    ) -> BaseReplies | None:
        """What the base model predicts; None where its head alone does not give its logits."""
        # Not those of a phase with other states: by rounding, a training that goes on would end elsewhere.
        kept = self._replies
        if kept is None or kept[0] != rows or kept[1] is not lower:
            with self._trained.off():
                replies = BaseReplies(self._model, rows, self._pad_token_id, lower)
            kept = self._replies = (rows, lower, replies if replies.is_exact else None)
        return kept[2]
