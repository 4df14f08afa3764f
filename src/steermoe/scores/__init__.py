"""Scores of experts: numbers by which experts are ranked, each in a file of its own.

Every score is a sum over the tokens of each response, contrasted: the mean over unsafe responses less that over safe
ones. So one way of resampling serves all of them, and positive always means more unsafe. What a score that ships is
called, and what it means, is known here; its code is imported when it is asked for, for some of it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from steermoe.contracts import Kind, Score, named
from steermoe.scores.own import OwnScore

RISK_DIFF = "risk_diff"
"""The score that the risk table holds, and that experts are ranked by unless told otherwise."""

COUNTS, MODEL = "counts", "model"
"""What a score needs: nothing that collecting has not recorded, or passes of its own."""


@dataclass(frozen=True, slots=True)
class Known:
    """A score that ships.

    Attributes:
        title: A few words, for tables.
        meaning: One sentence: what is added up.
        needs: `COUNTS` or `MODEL`.
        unit: What its values are counted in.
        of_pass: The pass whose sums it is made from; empty where collecting has recorded them.
    """

    title: str
    meaning: str
    needs: str
    unit: str
    of_pass: str = ""


KNOWN: Mapping[str, Known] = {
    RISK_DIFF: Known(
        "Risk difference",
        "how much more often the expert is among the chosen",
        COUNTS,
        "share of tokens",
    ),
    "gate_mass": Known(
        "Gate mass",
        "how much more routing weight the expert gets, whether it is chosen more often or with more weight",
        COUNTS,
        "weight per token",
    ),
    "contribution": Known(
        "Contribution",
        "how much longer the expert's weighted output is, which is what it adds to the hidden state",
        COUNTS,
        "length per token",
    ),
    "taylor": Known(
        "Taylor",
        "how much more the expert pushes from the refusal towards the model's own reply, to first order",
        MODEL,
        "nats per prompt",
        "taylor",
    ),
    "selectivity": Known(
        "Selectivity",
        "1 less the interference: how much less harmless prompts are moved than the harmful ones that are trained",
        MODEL,
        "share",
        "gradient",
    ),
    "selective_gain": Known(
        "Selective gain",
        "selectivity times the length of the gradient that it applies to",
        MODEL,
        "nats per step",
        "gradient",
    ),
    "projection": Known(
        "Projection",
        "how much further the expert moves the hidden state from harmless towards harmful",
        MODEL,
        "length per token",
        "projection",
    ),
}
"""By name, in the order in which they are shown."""

CLASSES: Mapping[str, tuple[str, str]] = {
    RISK_DIFF: ("risk_diff", "RiskDiff"),
    "gate_mass": ("gate_mass", "GateMass"),
    "contribution": ("contribution", "Contribution"),
    "taylor": ("taylor", "Taylor"),
    "selectivity": ("selectivity", "Selectivity"),
    "selective_gain": ("selectivity", "SelectiveGain"),
    "projection": ("projection", "Projection"),
}
"""Where the code of each is: its file, and its class there."""

RECORDED = tuple(name for name, known in KNOWN.items() if known.needs == COUNTS)
"""Those that come with collecting, and are computed always."""


def _made(name: str) -> Score:
    module, attribute = CLASSES[name]
    score: Score = getattr(import_module(f"steermoe.scores.{module}"), attribute)()
    return score


def _made_whatever_follows(name: str, _: str) -> Score:
    return _made(name)


KIND = Kind(
    "score", "identify.rank_by", {name: partial(_made_whatever_follows, name) for name in CLASSES}
)


def score_named(name: str) -> Score:
    """The score of that name: one that ships, or a callable of the user's own.

    Raises:
        ConfigError: There is none.
    """
    found = named(KIND, name)
    return _made(name) if name in CLASSES else OwnScore(name, found)


def needs_of(name: str) -> str:
    """What a score needs, without importing more than is asked for."""
    return KNOWN[name].needs if name in KNOWN else score_named(name).needs


def pass_of(name: str) -> str:
    """The pass that a score's sums come from; empty where it needs none, its own name for one of the user's own."""
    if name in KNOWN:
        return KNOWN[name].of_pass
    return name if needs_of(name) == MODEL else ""


def title_of(name: str) -> str:
    """What tables call a score: one of the user's own by its name."""
    return KNOWN[name].title if name in KNOWN else name
