"""Gate mass: the routing weight that an expert gets, `sum_t g / N` (ESFT, arXiv:2407.01906)."""

from __future__ import annotations

from steermoe.records import ResponseSums
from steermoe.scores.source import Source


class GateMass:
    """Weights with which the expert is chosen, as the experts module is given them."""

    name = "gate_mass"
    needs = "counts"

    def sums(self, source: Source) -> ResponseSums:
        """As collecting recorded them."""
        return source.recorded_sums(self.name)
