"""Selectivity: whether training an expert to refuse harmful requests leaves harmless ones alone, to first order.

`g_u` is the gradient of the refusal loss (first token of the target) on harmful prompts with respect to the expert's
weights, `g_s` the same on harmless ones. A small step that lowers the first loss by `|g_u|^2` lowers the second, where
nobody wants it, by `<g_u, g_s>`; their ratio `rho` is the expert's *interference*. Selectivity is `1 - rho`.

With `x_i = <g_u, g_i>` of every prompt, the mean over harmful prompts is `|g_u|^2` and that over harmless ones
`<g_u, g_s>`. So `1 - rho` is a mean of `x_i / |g_u|^2` over unsafe responses less that over safe ones, as any score is,
and is resampled as one: how sure it is, given the direction `g_u` that the train prompts have. Held-out prompts are
compared along the same direction.
"""

from __future__ import annotations

import numpy as np

from steermoe.errors import RoutingError
from steermoe.records import FloatArray, IntArray, ResponseSums
from steermoe.scores.source import Source

GRADIENT = "gradient"
"""The pass that leaves `x_i`."""


class Selectivity:
    """`1 - rho`: 0 where harmless prompts are moved as far as harmful ones, 1 where they are not moved."""

    name = "selectivity"
    needs = "model"

    def sums(self, source: Source) -> ResponseSums:
        """`x_i` in units of `|g_u|^2`; 0 for an expert that no harmful prompt reaches."""
        return _in_units(source, 1.0)


class SelectiveGain:
    """`|g_u| (1 - rho)`: selectivity times the gain that it applies to, so that idle experts do not come first."""

    name = "selective_gain"
    needs = "model"

    def sums(self, source: Source) -> ResponseSums:
        """`x_i` in units of `|g_u|`."""
        return _in_units(source, 0.5)


def _in_units(source: Source, power: float) -> ResponseSums:
    sums = source.recorded_sums(GRADIENT)
    squared = squared_gradients(sums, source.unsafe)
    scale = np.where(squared > 0, np.where(squared > 0, squared, 1.0) ** -power, 0.0)
    return ResponseSums(sums.total * scale, sums.num_tokens, sums.layer_indices)


def squared_gradients(sums: ResponseSums, unsafe: IntArray) -> FloatArray:
    """`|g_u|^2` of every expert, `(L, E)`: the mean of `x_i` over the harmful prompts that were measured.

    Raises:
        RoutingError: None was.
    """
    measured = unsafe[sums.num_tokens[unsafe, 0] > 0]
    if len(measured) == 0:
        raise RoutingError("no unsafe train prompt was measured; raise identify.score_prompts")
    return np.asarray(sums.total[measured, 0].mean(axis=0, dtype=np.float64))
