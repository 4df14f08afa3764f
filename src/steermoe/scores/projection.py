"""Projection: how far an expert moves the hidden state from harmless towards harmful, `sum_t g <f, r>`.

`r` is the unit difference of the mean hidden states that leave the expert's decoder layer, harmful prompts less
harmless ones, at the last token of the prompt (arXiv:2606.04160). It is a mean over the tokens of a segment, as the
recorded scores are, so that long replies do not count for more. An expert that works in a space narrower or wider than
the hidden state has no such direction.
"""

from __future__ import annotations

from steermoe.records import ResponseSums
from steermoe.scores.source import Source


class Projection:
    """Sums over the prompt's own tokens and over those of the reply."""

    name = "projection"
    needs = "model"

    def sums(self, source: Source) -> ResponseSums:
        """As its passes left them."""
        return source.recorded_sums(self.name)
