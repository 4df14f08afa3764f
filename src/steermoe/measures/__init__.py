"""What is measured of a variant: one file a measure, or a family of them.

A measure holds its own words (title, meaning, unit, which way is better), which terminal, page and model card read.
"""

from steermoe.contracts import Measure
from steermoe.measures.after_opening import AFTER_OPENING
from steermoe.measures.capability import CAPABILITY
from steermoe.measures.divergence import DIVERGENCES
from steermoe.measures.groups import BY_GROUP
from steermoe.measures.language import LanguageChanged
from steermoe.measures.length import ReplyLength
from steermoe.measures.log_probs import LOG_PROBS
from steermoe.measures.perplexity import Perplexity
from steermoe.measures.rates import RATES
from steermoe.measures.repetition import RepetitionRate

MEASURES: tuple[Measure, ...] = (
    *RATES,
    *AFTER_OPENING,
    CAPABILITY,
    *DIVERGENCES,
    RepetitionRate(),
    ReplyLength(),
    LanguageChanged(),
    Perplexity(),
    *LOG_PROBS,
    *BY_GROUP,
)
"""Every measure, in the order in which tables show them."""

BY_NAME = {measure.name: measure for measure in MEASURES}
