"""Risk difference: how often an expert is among the top-k, `sum_t m / N` (SteerMoE, arXiv:2509.09660)."""

from __future__ import annotations

from steermoe.records import ResponseSums
from steermoe.scores.source import Source


class RiskDiff:
    """Tokens for which the expert is active."""

    name = "risk_diff"
    needs = "counts"

    def sums(self, source: Source) -> ResponseSums:
        """Counts, as sums."""
        counts = source.counts
        return ResponseSums(counts.active, counts.num_tokens, counts.layer_indices)
