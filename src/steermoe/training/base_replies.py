"""The base model's predictions on its own replies, computed once for all epochs.

What the language-model head reads is kept, `(G, D)` for a reply of G tokens, instead of its logits `(G, V)`, which
would be hundreds of times larger; the head runs again when they are needed. So an epoch costs no pass of the base
model, and because the groups of rows are fixed, a resumed training sees the very same numbers.

Shape legend: C completion tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.training.dataset import IGNORED, TrainingRow, collate

ROWS_AT_A_TIME = 16


@contextmanager
def only_positions(model: nn.Module, positions: Tensor) -> Iterator[list[Tensor]]:
    """Within it, the model's head sees only some positions: logits are `(1, C, V)` instead of `(B, T, V)`.

    Args:
        model: A causal language model with output embeddings.
        positions: Boolean `(B, T)` with C true entries.

    Yields:
        A list that receives what the head reads, `(C, D)`, one tensor a pass.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]  # every causal LM of transformers has it
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        chosen = hidden[positions.to(hidden.device)]
        seen.append(chosen)
        return (chosen.unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


class BaseReplies:
    """What the base model's head reads on each retention row.

    Args:
        model: A model that runs as the base model now.
        rows: The rows; each `prompt_id` is computed once.
        pad_token_id: For padding.
    """

    def __init__(self, model: Any, rows: Iterable[TrainingRow], pad_token_id: int) -> None:
        self._head = model.get_output_embeddings()
        self._hidden: dict[str, Tensor] = {}
        self.is_exact = True
        """False where the model does more to its logits than its head does: then this cannot stand in for it."""
        once = list({row.prompt_id: row for row in rows}.values())
        for start in range(0, len(once), ROWS_AT_A_TIME):
            if self.is_exact:
                self._add(model, once[start : start + ROWS_AT_A_TIME], pad_token_id)

    @torch.no_grad()
    def _add(self, model: Any, rows: Sequence[TrainingRow], pad_token_id: int) -> None:
        batch = collate([rows], pad_token_id)
        predicts = batch["labels"] != IGNORED
        device = model.get_input_embeddings().weight.device
        with only_positions(model, predicts) as seen:
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
