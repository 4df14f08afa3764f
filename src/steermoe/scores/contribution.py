"""Contribution: the length of what an expert adds to the hidden state, `sum_t g |f|_2 / N`.

One of the family `N^-a sum g^p |f|^q` of arXiv:2606.15716, of which REAP (arXiv:2510.13999) is another.
"""

from __future__ import annotations

from steermoe.records import ResponseSums
from steermoe.scores.source import Source


class Contribution:
    """Lengths of weighted outputs, seen where an experts module adds them up (`moe.expert_sums`)."""

    name = "contribution"
    needs = "counts"

    def sums(self, source: Source) -> ResponseSums:
        """As collecting recorded them."""
        return source.recorded_sums(self.name)
