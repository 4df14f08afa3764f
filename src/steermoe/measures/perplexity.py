"""How well a variant predicts a text of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steermoe.errors import PromptError
from steermoe.measures.evidence import VariantEvidence
from steermoe.metrics import MeasureRow
from steermoe.records import Continuation

WINDOW = 512
"""Tokens of a window; half of them are context, but for the first."""


def read_text(path: str) -> str:
    """A plain text.

    Raises:
        PromptError: It cannot be read, is not UTF-8, or holds no words.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise PromptError(
            f"evaluate.text_file {path} cannot be read: {error.strerror}; check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise PromptError(
            f"evaluate.text_file {path} is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None
    if not text.strip():
        raise PromptError(f"evaluate.text_file {path} is empty; name one with some text")
    return text


def windows_of(
    token_ids: Sequence[int], first: int | None, size: int = WINDOW
) -> list[Continuation]:
    """A text in windows, so that each token is predicted once, and from half a window or more but near the beginning.

    Args:
        token_ids: Of the whole text.
        first: The token that begins every text, where the model has one; without it, the first token of the text is
            predicted from nothing and is left out.
        size: Tokens of a window, at least 2.
    """
    ids = list(token_ids) if first is None else [first, *token_ids]
    half = size // 2
    windows: list[Continuation] = []
    start = 1
    while start < len(ids):
        begin = max(0, start - half)
        end = min(begin + size, len(ids)) if begin == 0 else min(start + size - half, len(ids))
        prompt, scored = tuple(ids[begin:start]), tuple(ids[start:end])
        windows.append(Continuation(f"window {len(windows)}", prompt, scored))
        start = end
    return windows


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity per token of the text that `evaluate.text_file` names."""

    name: str = "perplexity"
    title: str = "Perplexity of your text"
    meaning: str = "perplexity per token of the text of evaluate.text_file; lower is better"
    unit: str = "perplexity"
    better: str = "lower"

    def of(self, evidence: VariantEvidence) -> list[MeasureRow]:
        """The perplexity and its change; none where no text was read."""
        from steermoe.analysis import perplexity  # slow to load, and words need none

        if not evidence.own.text:
            return []
        arguments = evidence.intervals.arguments()
        metric = perplexity.perplexity(evidence.own.text, **arguments)
        rows = [evidence.row(self.name, "teacher_forced", metric)]
        if evidence.reference is not None and evidence.reference.text:
            changed = perplexity.perplexity_change(
                evidence.reference.text, evidence.own.text, **arguments
            )
            rows.append(evidence.row(self.name, "teacher_forced", changed, evidence.reference_name))
        return rows
