"""What leaves the decoder layers below the lowest trained one, computed once for all epochs.

A step then runs only the layers above. The groups of rows that are computed together are fixed, so a resumed training
sees the very same numbers.

Shape legend: B rows, T tokens of a row, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from steermoe.errors import on_one_line
from steermoe.moe.distinct_tokens import computing_distinct
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.partial_passes import LowerLayers, only_positions
from steermoe.training.dataset import TrainingRow, collate, distinct_rows

ROWS_AT_A_TIME = 16

MOST_BYTES = 4 * 2**30
"""What may be kept: some seven hundred thousand tokens of a model of width 3,072 in bfloat16."""


class LowerStates:
    """The hidden states `(T, D)` of training rows, as they leave the lower layers.

    Args:
        model: The model; its lower layers are frozen.
        layers: Its lower layers.
        rows: The rows; each `prompt_id` is computed once.
        pad_token_id: For padding.

    Attributes:
        why_not: Why the states cannot be used, because layers above are given more than the output of the lower ones,
            or more than `MOST_BYTES` would be kept; empty if they can. Nothing is kept where they cannot.

    Raises:
        TrainingError: Two rows of one `prompt_id` have other tokens.

    Dropout in the lower layers, which few models have, does not act on what is kept.
    """

    def __init__(
        self, model: Any, layers: LowerLayers, rows: Sequence[TrainingRow], pad_token_id: int
    ) -> None:
        self._layers = layers
        self._states: dict[str, Tensor] = {}
        # Of like lengths, so that little padding is computed.
        once = sorted(distinct_rows(rows), key=lambda row: (row.num_tokens, row.prompt_id))
        groups = [once[i : i + ROWS_AT_A_TIME] for i in range(0, len(once), ROWS_AT_A_TIME)]
        num_tokens = sum(row.num_tokens for row in once)
        with computing_distinct(model):
            self.why_not = self._hindrance(model, groups[0], pad_token_id, num_tokens)
            if not self.is_usable:
                self._states = {}
                return
            for group in groups[1:]:
                self._add(model, group, pad_token_id)
        give_back_freed_memory()

    @property
    def is_usable(self) -> bool:
        """Whether the model can be run on what is kept."""
        return not self.why_not

    def _hindrance(
        self, model: Any, rows: Sequence[TrainingRow], pad_token_id: int, num_tokens: int
    ) -> str:
        """Why the states of the first rows do not stand in for the lower layers, or those of all do not fit."""
        try:
            fed, states = self._add(model, rows, pad_token_id)
            needed = states[0, 0].nbytes * num_tokens
            if needed > MOST_BYTES:
                return f"{needed / 2**30:.1f} GiB would be kept, {MOST_BYTES / 2**30:.1f} may be"
            return "" if self._stands_in(model, fed, states) else "the layers above read more"
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            # What a layer misses that a lower one would have left for it, it says in any way: a missing key, an
            # empty list. It is said, so that an error of another kind does not pass for that.
            return f"without them the model fails with {type(error).__name__}: {on_one_line(error)}"

    @torch.no_grad()
    def _add(
        self, model: Any, rows: Sequence[TrainingRow], pad_token_id: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Keep the states of some rows; returns what the model was fed, and the states with their padding."""
        batch = collate([rows], pad_token_id)
        device = model.get_input_embeddings().weight.device
        fed = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        nowhere = torch.zeros_like(fed["input_ids"], dtype=torch.bool)
        with self._layers.alone() as seen, only_positions(model, nowhere):
            model(**fed, use_cache=False)
        for row, states in zip(rows, seen[0].cpu(), strict=True):
            self._states[row.prompt_id] = states[: row.num_tokens - 1].clone()
        return fed, seen[0]

    @torch.no_grad()
    def _stands_in(self, model: Any, fed: dict[str, Tensor], states: Tensor) -> bool:
        """Whether the layers above give the same, bit for bit, without the lower ones.

        The states are those with their own padding: another one is routed otherwise, and matrix products of other
        shapes round differently.
        """
        # Of each row the last token, which sees all others: logits of all positions might not fit.
        last = fed["attention_mask"].sum(dim=1, keepdim=True) - 1
        positions = torch.arange(fed["input_ids"].shape[1], device=last.device) == last
        with only_positions(model, positions):
            whole = model(**fed, use_cache=False).logits
            with self._layers.replaced_by(states):
                return torch.equal(whole, model(**fed, use_cache=False).logits)

    def in_place(self, prompt_ids: Sequence[str], device: Any) -> AbstractContextManager[None]:
        """A context in which a pass over these rows, padded on the right, skips the lower layers."""
        rows = [self._states[prompt_id] for prompt_id in prompt_ids]
        positions = torch.arange(max(map(len, rows)))
        # Padding repeats the last token: whatever a layer makes of zeros, it need not be finite.
        padded = torch.stack([states[positions.clamp(max=len(states) - 1)] for states in rows])
        return self._layers.replaced_by(padded.to(device))
