"""What is measured of a variant: one file a measure, or a family of them.

A measure holds its own words (title, meaning, unit, which way is better), which terminal, page and model card read.
"""

from steermoe.contracts import Measure
from steermoe.measures.capability import CAPABILITY
from steermoe.measures.divergence import DIVERGENCES
from steermoe.measures.log_probs import LOG_PROBS
from steermoe.measures.rates import RATES

MEASURES: tuple[Measure, ...] = (*RATES, CAPABILITY, *DIVERGENCES, *LOG_PROBS)
"""Every measure, in the order in which tables show them."""

BY_NAME = {measure.name: measure for measure in MEASURES}
