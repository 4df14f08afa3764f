"""Differences of differences: estimates that are linear in clusters, their errors, and those of combinations.

How far does a risk difference change when only replies of equal length are compared? The two estimates share their
responses, so their errors are not independent. Both are linearised, their clusters' parts are subtracted, and what
is left is squared and added up.

Shape legend: N responses, C clusters, O owners (clusters over all responses), L MoE layers, E experts, M experts of
one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import stats
from scipy.sparse import csr_array

from steermoe.analysis.estimators import Contrast, column_chunks
from steermoe.analysis.grouping import cluster_groups, sum_of_squares
from steermoe.analysis.influences import cluster_influences, small_sample_factor
from steermoe.records import FloatArray, IntArray


class Linear(Protocol):
    """An estimate whose clusters' parts are known."""

    @property
    def owners(self) -> IntArray:
        """`(C,)` the number of each cluster among those of all responses."""
        ...

    @property
    def least_clusters(self) -> int:
        """Clusters of the rarest kind: how little is known."""
        ...

    def difference(self) -> FloatArray:
        """The estimate, `(L * E,)`."""
        ...

    def influences(self, columns: IntArray | slice) -> FloatArray:
        """What each cluster adds to the linearised estimate of some experts, `(C, M)`, allowing for few clusters."""
        ...


@dataclass(frozen=True, slots=True)
class OfContrast:
    """A contrast's own estimate.

    Attributes:
        contrast: The responses.
        owner_of: Number of the cluster of each response that the contrast was built from, among those of all
            responses. Responses of one of the contrast's clusters share it.
    """

    contrast: Contrast
    owner_of: IntArray

    @property
    def owners(self) -> IntArray:
        """`(C,)`."""
        owners = np.empty(self.contrast.num_clusters, dtype=np.int64)
        owners[self.contrast.cluster] = self.owner_of[self.contrast.rows]
        return owners

    @property
    def least_clusters(self) -> int:
        """Clusters of the rarest kind."""
        return min(map(len, cluster_groups(self.contrast)))

    def difference(self) -> FloatArray:
        """The risk difference, `(L * E,)`."""
        return self.contrast.difference()

    def influences(self, columns: IntArray | slice) -> FloatArray:
        """`(C, M)`; each kind of clusters with its factor for small numbers."""
        parts = cluster_influences(self.contrast, self.contrast.values(columns))
        return corrected_for_few(parts, cluster_groups(self.contrast))


def corrected_for_few(parts: FloatArray, groups: Sequence[IntArray]) -> FloatArray:
    """Clusters' parts `(C, M)`, in place, so that their squares add up to the variance in small samples too."""
    for group in groups:
        parts[group] *= np.sqrt(small_sample_factor(len(group)))
    return parts


def errors_of(
    terms: Mapping[str, Linear], combinations: Mapping[str, Mapping[str, float]]
) -> dict[str, FloatArray]:
    """Standard errors of weighted sums of estimates that may share their responses.

    Args:
        terms: The estimates, all of the same experts.
        combinations: For each sum, the weights of the estimates in it.

    Returns:
        `(L * E,)` for each sum. 1, which no risk difference can exceed, where a term has one cluster of a kind only:
        nothing is known.
    """
    owners = {name: term.owners for name, term in terms.items()}
    num_owners = 1 + max(int(own.max()) for own in owners.values())
    among_all = {name: _places(own, num_owners) for name, own in owners.items()}
    num_experts = len(next(iter(terms.values())).difference())
    found = {name: np.ones(num_experts) for name in combinations}
    for columns in column_chunks(num_experts):
        parts: dict[str, FloatArray] = {}
        for name, term in terms.items():
            parts[name] = among_all[name] @ term.influences(columns)
        for name, weights in combinations.items():
            if min(terms[term].least_clusters for term in weights) > 1:
                found[name][columns] = np.sqrt(sum_of_squares(_weighted_sum(parts, weights)))
    return found


def _places(owners: IntArray, num_owners: int) -> csr_array:
    """The matrix `(O, C)` that puts a term's clusters where they are among all."""
    number = len(owners)
    return csr_array((np.ones(number), (owners, np.arange(number))), shape=(num_owners, number))


def _weighted_sum(parts: Mapping[str, FloatArray], weights: Mapping[str, float]) -> FloatArray:
    (first, weight), *others = weights.items()
    total = weight * parts[first]
    for term, weight in others:
        total += weight * parts[term]
    return np.asarray(total)


def higher_p_values(difference: FloatArray, error: FloatArray, num_clusters: int) -> FloatArray:
    """One-sided p-values of differences being above 0, by Student's t with as many degrees of freedom less one.

    1 where there is one cluster only, or an expert has no error.
    """
    if num_clusters < 2:
        return np.ones_like(difference)
    known = error > 0
    score = difference / np.where(known, error, 1.0)
    return np.asarray(np.where(known, stats.t.sf(score, num_clusters - 1), 1.0))
