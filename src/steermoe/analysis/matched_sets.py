"""Sets of experts that a selection could as well have been, if it had nothing to do with what they do.

The experts of a layer are ordered by activation frequency and divided into strata of about four. A random set has as
many experts of every stratum as the selected one, each such set with the same chance; selected experts may be in it.
So the selected set and the random ones are exchangeable where an expert's effect, however it depends on its layer and
its frequency, does not depend on whether it was selected: each is as likely as the others to be the most extreme.
Leaving the selected experts out, or drawing near each of them, would make random sets more like each other than like
the selected set, which then looks extreme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np

from steermoe.errors import SelectionError
from steermoe.records import Expert

STRATUM_SIZE = 4
"""Experts of a stratum; up to seven where a layer's number is no multiple of it."""


def frequency_strata(frequency: Mapping[Expert, float]) -> list[list[Expert]]:
    """Divide the experts of each layer into strata of similar activation frequency.

    Args:
        frequency: How often each expert of the model fires.

    Returns:
        Strata, by layer and ascending frequency (of equal ones the expert that comes first); each expert is in one.
    """
    strata: list[list[Expert]] = []
    for layer in sorted({expert[0] for expert in frequency}):
        of_layer = sorted(
            (expert for expert in frequency if expert[0] == layer),
            key=lambda expert: (frequency[expert], expert),
        )
        number = max(1, len(of_layer) // STRATUM_SIZE)
        places = np.array_split(np.arange(len(of_layer)), number)
        strata += [[of_layer[place] for place in stratum] for stratum in places]
    return strata


class MatchedSets:
    """All sets that have as many experts of every stratum as the selected one.

    Args:
        frequency: How often each expert of the model fires.
        selected: The selected experts.

    Raises:
        SelectionError: If a selected expert is not one of the model's.
    """

    def __init__(self, frequency: Mapping[Expert, float], selected: Sequence[Expert]) -> None:
        for expert in selected:
            if expert not in frequency:
                raise SelectionError(
                    f"the risk table has no expert {tuple(expert)}; select from this table"
                )
        self.selected = frozenset(selected)
        self.strata = [
            (stratum, number)
            for stratum in frequency_strata(frequency)
            if (number := len(self.selected.intersection(stratum)))
        ]

    @property
    def number(self) -> int:
        """How many there are, the selected one among them."""
        number = 1
        for stratum, chosen in self.strata:
            number *= comb(len(stratum), chosen)
        return number

    def draw(self, num_draws: int, seed: int) -> list[tuple[Expert, ...]]:
        """Different sets other than the selected one, at random.

        Args:
            num_draws: How many; all of them where there are no more.
            seed: Seeds the draws; each depends on those before it, and not on how many follow.

        Returns:
            Sets in the order of the strata.
        """
        generator = np.random.default_rng(seed)
        wanted = min(num_draws, self.number - 1)
        seen = {self.selected}
        drawn: list[tuple[Expert, ...]] = []
        while len(drawn) < wanted:
            experts = tuple(
                stratum[place]
                for stratum, chosen in self.strata
                for place in sorted(generator.choice(len(stratum), chosen, replace=False))
            )
            if frozenset(experts) not in seen:
                seen.add(frozenset(experts))
                drawn.append(experts)
        return drawn
