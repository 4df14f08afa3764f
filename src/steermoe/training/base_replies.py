"""The base model's predictions on its own replies, computed once for all epochs.

What the language-model head reads is kept, `(G, D)` for a reply of G tokens, instead of its logits `(G, V)`, which
would be hundreds of times larger; the head runs again when they are needed. So an epoch costs no pass of the base
model, and because the groups of rows are fixed, a resumed training sees the very same numbers.

Shape legend: C completion tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from steermoe.moe.distinct_tokens import computing_distinct
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.partial_passes import only_positions
from steermoe.training.dataset import IGNORED, TrainingRow, collate, distinct_rows
from steermoe.training.lower_states import ROWS_AT_A_TIME, LowerStates


class BaseReplies:
    """What the base model's head reads on each row that is held to it.

    Args:
        model: A model that runs as the base model now.
        rows: The rows; each `prompt_id` is computed once.
        pad_token_id: For padding.
        lower_states: What leaves the model's lower layers on these rows, if that was computed before.

    Raises:
        TrainingError: Two rows of one `prompt_id` have other tokens.
    """

    def __init__(
        self,
        model: Any,
        rows: Iterable[TrainingRow],
        pad_token_id: int,
        lower_states: LowerStates | None = None,
    ) -> None:
        self._lower_states = lower_states
        self._head = model.get_output_embeddings()
        self._hidden: dict[str, Tensor] = {}
        self.is_exact = True
        """False where the model does more to its logits than its head does: then this cannot stand in for it."""
        once = distinct_rows(rows)
        with computing_distinct(model):
            for start in range(0, len(once), ROWS_AT_A_TIME):
                if self.is_exact:
                    self._add(model, once[start : start + ROWS_AT_A_TIME], pad_token_id)

    @torch.no_grad()
    def _add(self, model: Any, rows: Sequence[TrainingRow], pad_token_id: int) -> None:
        batch = collate([rows], pad_token_id)
        predicts = batch["labels"] != IGNORED
        device = model.get_input_embeddings().weight.device
        lower = self._lower_states
        skipping = lower.in_place([x.prompt_id for x in rows], device) if lower else nullcontext()
        with skipping, only_positions(model, predicts) as seen:
            outputs = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                use_cache=False,
            )
        hidden = seen[0]
        if not self._hidden:
            self.is_exact = torch.equal(self._head(hidden.unsqueeze(0)), outputs.logits)
        lengths = predicts.sum(dim=1).tolist()
        for row, part in zip(rows, torch.split(hidden, lengths), strict=True):
            self._hidden[row.prompt_id] = part.cpu()
        give_back_freed_memory()

    @torch.no_grad()
    def logits(self, prompt_ids: Sequence[str]) -> Tensor:
        """The base model's logits `(C, V)` on the completions of these rows, one after the other."""
        hidden = torch.cat([self._hidden[prompt_id] for prompt_id in prompt_ids])
        logits: Tensor = self._head(hidden.to(self._head.weight.device).unsqueeze(0))[0]
        return logits
