"""Taylor: how far an expert pushes a text from refusing towards complying, to first order.

`- sum_t g dJ/dg` with `J = log p(refusal | x) - log p(own reply | x)`, both teacher-forced: weight times gradient of
every choice (arXiv:1906.10711, 1905.10650; attribution patching). Of unsafe prompts less safe ones: what an expert adds
to compliance where it is not wanted, beyond what it adds where it is. Late layers have the larger gradients, so it is
best ranked within layers.
"""

from __future__ import annotations

from steermoe.records import ResponseSums
from steermoe.scores.source import Source


class Taylor:
    """Of whole texts: the refusal and the reply have different tokens, so there are no segments."""

    name = "taylor"
    needs = "model"

    def sums(self, source: Source) -> ResponseSums:
        """As its passes left them."""
        return source.recorded_sums(self.name)
