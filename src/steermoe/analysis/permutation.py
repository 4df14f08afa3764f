"""P-values: how often relabelled clusters give a risk difference as large as the one observed.

Shape legend: N responses, C clusters, F flipped clusters, R resamples, L MoE layers, E experts, M experts
of one pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, log2

import numpy as np
import numpy.typing as npt

from steermoe.analysis.bootstrap import blocks_of_draws
from steermoe.analysis.estimators import Contrast, column_chunks
from steermoe.analysis.grouping import (
    Grouping,
    cluster_groups,
    cluster_kinds,
    sum_of_cubes,
    sum_of_squares,
)
from steermoe.analysis.variance import lost_to_rate, variance_components, variance_terms
from steermoe.records import BoolArray, FloatArray, IntArray

Float32Array = npt.NDArray[np.float32]

NUM_POOLS = 10
"""An expert's null distribution is pooled over the tenth of all experts nearest to it in frequency."""

MIN_POOL = 32
"""But over no fewer experts than this, where there are as many."""

ENOUGH_DRAWS = 250
"""Relabellings whose weights are averaged where their mean alone is needed."""

TIE = 1e-6
"""Difference, relative and absolute, below which two statistics count as equal."""

NEGLIGIBLE = 1e-20
"""Relative variance below which an expert's scores are rounding noise around zero."""


@dataclass(frozen=True, slots=True)
class Relabelling:
    """What the labels are, in each of R resamples.

    Attributes:
        signs: `(R, F)` +1 or -1 for each flipped cluster.
        coefficients: `(R, N')` coefficients of the responses of permuted clusters.
        terms: `(R, 3)` or `(1, 3)` terms of the shared variance.
    """

    signs: FloatArray
    coefficients: FloatArray
    terms: FloatArray


@dataclass(frozen=True, slots=True)
class ClusterParts:
    """What the clusters of a null model have above the overall activation rate, of M experts.

    Attributes:
        scores: `(N, M)` of each response.
        flipped: `(F, M)` part of the risk difference of each flipped cluster.
        permuted: `(P, M)` sum of the scores of each permuted cluster.
        components: `(3, M)` of the shared variance.
    """

    scores: FloatArray
    flipped: FloatArray
    permuted: FloatArray
    components: FloatArray


class NullModel:
    """What could have been observed if the labels said nothing about routing.

    A cluster with both classes is *flipped*: its part of the risk difference, after the overall
    activation rate is taken out, gets a random sign. Labels of clusters with one class are *permuted*
    among the clusters that have as many responses in the same strata. A cluster of one class that has
    no such counterpart in the other is flipped too.

    The statistic is the difference divided by a standard error: the larger of the clusters' own spread
    and of the spread both classes would share. That makes experts comparable, and the test holds when
    the classes differ in reply length, and in spread unless that is skewed (`spread.class_spread`).
    """

    def __init__(self, contrast: Contrast) -> None:
        has_unsafe, has_safe = cluster_kinds(contrast)
        self.contrast = contrast
        self.block = _exchange_blocks(contrast, has_unsafe, has_safe)  # (C,), -1: flipped
        self.is_unsafe_cluster = has_unsafe
        of_response = self.block[contrast.cluster]
        self.flipped = Grouping.of(contrast.cluster, np.flatnonzero(of_response < 0))
        self.permuted = Grouping.of(contrast.cluster, np.flatnonzero(of_response >= 0))
        coefficients = contrast.coefficients()
        self.coefficients = coefficients[0]  # (N,)
        self.as_observed = Relabelling(
            np.ones((1, len(self.flipped))),
            coefficients[:, self.permuted.rows],
            variance_terms(contrast, coefficients),
        )

    def smallest_p_value(self) -> float:
        """2 divided by the number of distinct relabellings: no two-sided p-value can be smaller.

        1 where every kind of clusters has one only: nothing is known of their spread.
        """
        if self.contrast.num_clusters == len(cluster_groups(self.contrast)):
            return 1.0
        bits = float(len(self.flipped))
        for block in range(int(self.block.max()) + 1):
            members = self.block == block
            bits += log2(comb(int(members.sum()), int((members & self.is_unsafe_cluster).sum())))
        return float(min(1.0, 2.0 ** (1 - min(bits, 1000.0))))

    def draw(self, num_draws: int, generator: np.random.Generator) -> Relabelling:
        """Random signs, and labels permuted within blocks."""
        signs = generator.choice([-1.0, 1.0], size=(num_draws, len(self.flipped)))
        rows = self.permuted.rows
        if len(rows) == 0:
            return Relabelling(signs, np.zeros((num_draws, 0)), self.as_observed.terms)
        labels = np.tile(self.contrast.is_unsafe, (num_draws, 1))
        labels[:, rows] = self._shuffled(num_draws, generator)[:, self.contrast.cluster[rows]]
        permuted = self.contrast.coefficients(is_unsafe=labels)[:, rows]
        whole = np.tile(self.coefficients, (num_draws, 1))
        whole[:, rows] = permuted
        return Relabelling(signs, permuted, variance_terms(self.contrast, whole))

    def parts(self, values: FloatArray, rate: FloatArray, above: float = 0.0) -> ClusterParts:
        """What the clusters have above the overall activation rate, whatever the labels.

        Args:
            values: `(N, M)` x of some experts.
            rate: `(M,)` their overall activation frequency.
            above: What the risk difference is compared with. So much is taken off every unsafe response first.
        """
        contrast = self.contrast
        scores = values - contrast.size[:, None] * rate  # (N, M)
        if above:
            shift = contrast.size * (contrast.is_unsafe - self._unsafe_share())
            scores -= (above * shift)[:, None]
        return ClusterParts(
            scores,
            self.flipped.sums(scores, self.coefficients),
            self.permuted.sums(scores),
            variance_components(contrast, values, scores),
        )

    def statistics(
        self, values: FloatArray, rate: FloatArray, relabelling: Relabelling, above: float = 0.0
    ) -> FloatArray:
        """Studentised risk differences; arguments as of `parts` and `studentised`."""
        return self.studentised(self.parts(values, rate, above), relabelling)

    def studentised(self, parts: ClusterParts, relabelling: Relabelling) -> FloatArray:
        """Studentised risk differences of R relabellings, `(R, M)`; 0 where an expert's scores are all 0."""
        difference = relabelling.signs @ parts.flipped
        if len(self.permuted):
            difference += relabelling.coefficients @ parts.scores[self.permuted.rows]
        variance = self.variances(parts, relabelling)
        noise = NEGLIGIBLE * float(np.sum((self.coefficients * self.contrast.size) ** 2))
        difference /= np.sqrt(np.where(variance > noise, variance, np.inf))
        return np.asarray(difference)

    def variances(self, parts: ClusterParts, relabelling: Relabelling) -> FloatArray:
        """What the squared difference is divided by: the larger of two spreads, `(R, M)` or `(1, M)`."""
        contrast = self.contrast
        own = sum_of_squares(parts.flipped)[None]
        if relabelling is self.as_observed:
            own = own / lost_to_rate(contrast, parts.components, np.flatnonzero(self.block < 0))
        if len(self.permuted):
            permuted = self.permuted
            number = np.diff(permuted.starts, append=len(permuted.rows))
            size = np.add.reduceat(np.abs(relabelling.coefficients), permuted.starts, axis=1)
            own = own + (size / number) ** 2 @ parts.permuted**2
        return np.asarray(np.maximum(own, relabelling.terms @ parts.components))

    def skewness(self, parts: ClusterParts, cubes: FloatArray) -> FloatArray:
        """How much more skewed the observed difference is than a relabelled one, `(M,)`.

        The sum of the cubes of what clusters add, each about its class's rate, over the variance to the power 1.5; less
        the same sum as relabellings have it. Flipped clusters add nothing to the latter.

        Args:
            parts: Of M experts.
            cubes: `mean_cubes` of some relabellings.
        """
        contrast, unsafe = self.contrast, self._unsafe_share()
        variance = self.variances(parts, self.as_observed)[0]
        # Of a difference D, unsafe responses lie D times the safe share above the overall rate, and safe ones below it.
        about_class = np.where(contrast.is_unsafe, 1 - unsafe, unsafe) * contrast.size
        about_class = np.abs(self.coefficients) * about_class
        added = [(self.flipped.sums(about_class), parts.flipped)]
        third = np.zeros(len(variance))
        if len(self.permuted):
            own = self.permuted.sums(parts.scores, self.coefficients)
            added.append((self.permuted.sums(about_class), own))
            size = self.permuted.sums(contrast.size)[:, None]
            third -= cubes @ _cubed(parts.permuted / size)
        difference = self.coefficients @ parts.scores
        for share, own in added:
            third += sum_of_cubes(own - share[:, None] * difference)
        active = variance > 0
        return np.asarray(np.where(active, third, 0.0) / np.where(active, variance, 1.0) ** 1.5)

    def mean_cubes(self, relabelling: Relabelling) -> FloatArray:
        """Mean cube of each permuted cluster's signed weight over relabellings, `(P,)`."""
        if len(self.permuted) == 0:
            return np.zeros(0)
        drawn = relabelling.coefficients[:ENOUGH_DRAWS]
        weighted = drawn * self.contrast.size[self.permuted.rows]
        of_cluster = np.add.reduceat(weighted, self.permuted.starts, axis=1)
        return np.asarray(np.mean(_cubed(of_cluster), axis=0))

    def _unsafe_share(self) -> float:
        size = self.contrast.size
        return float(size[self.contrast.is_unsafe].sum() / size.sum())

    def differences(
        self, values: FloatArray, rate: FloatArray, relabelling: Relabelling
    ) -> FloatArray:
        """Risk differences themselves, `(R, M)`; arguments as in `statistics`."""
        scores = values - self.contrast.size[:, None] * rate
        drawn = relabelling.signs @ self.flipped.sums(scores, self.coefficients)
        if len(self.permuted):
            drawn += relabelling.coefficients @ scores[self.permuted.rows]
        return np.asarray(drawn)

    def _shuffled(self, num_draws: int, generator: np.random.Generator) -> BoolArray:
        """Labels of all clusters `(R, C)`, those of permuted ones shuffled within their blocks."""
        members = np.flatnonzero(self.block >= 0)
        members = members[np.argsort(self.block[members], kind="stable")]
        # Keys of block b lie in [b, b + 1), so that sorting shuffles each block within itself.
        keys = generator.random((num_draws, len(members))) + self.block[members]
        labels = np.tile(self.is_unsafe_cluster, (num_draws, 1))
        labels[:, members] = self.is_unsafe_cluster[members[np.argsort(keys, axis=1)]]
        return labels


@dataclass(frozen=True, slots=True)
class PValues:
    """P-values of every expert, `(L * E,)` each.

    Attributes:
        differs: Two-sided: the risk difference is not 0.
        is_higher: One-sided: it is above 0.
        is_above: One-sided: it is above the bound asked for.
    """

    differs: FloatArray
    is_higher: FloatArray
    is_above: FloatArray


def p_values_of(
    contrast: Contrast, num_draws: int, generator: np.random.Generator, bound: float = 0.0
) -> PValues:
    """P-values of every expert.

    The observed statistic is compared with the drawn ones of all experts of its pool, which resolves
    p-values far below 1 / num_draws. Whether a difference is above a bound is asked of the same draws: what
    the difference has above the bound, divided by its standard error, has their distribution if it has nothing.

    One-sided p-values allow for skewness. Where safe responses vary more, and upwards, as short refusals do, a safe
    rate that is too low comes with a spread that is too small, and the difference looks certain. Each pool's statistics
    are corrected for its experts' mean skewness (`without_skewness`), but never to a smaller p-value: a pool's skewness
    is itself uncertain. Two-sided p-values are left as they are, since skewness makes one side as rare as the other
    frequent.

    Args:
        contrast: The responses.
        num_draws: Relabellings.
        generator: Draws them.
        bound: For `PValues.is_above`.
    """
    null = NullModel(contrast)
    rate = contrast.overall_rate()
    pools = frequency_pools(rate)
    drawn = np.empty((num_draws, contrast.num_experts), dtype=np.float32)
    observed = np.empty((2, contrast.num_experts))
    skewness = np.empty(contrast.num_experts)
    start = 0
    for number in blocks_of_draws(num_draws, len(contrast)):
        relabelling = null.draw(number, generator)
        cubes = null.mean_cubes(relabelling) if start == 0 else None
        for columns in column_chunks(contrast.num_experts):
            values = contrast.values(columns)
            parts = null.parts(values, rate[columns])
            drawn[start : start + number, columns] = null.studentised(parts, relabelling)
            if cubes is not None:
                skewness[columns] = null.skewness(parts, cubes)
                observed[0, columns] = null.studentised(parts, null.as_observed)[0]
                if bound:
                    parts = null.parts(values, rate[columns], bound)
                observed[1, columns] = null.studentised(parts, null.as_observed)[0]
        start += number
    found = PValues(*(np.empty(contrast.num_experts) for _ in range(3)))
    for pool in pools:
        pooled = np.sort(np.take(drawn, pool, axis=1), axis=None)
        size = len(pooled)
        skewed = min(0.0, float(np.mean(skewness[pool])))
        either = observed[0, pool]
        higher, beyond = (without_skewness(seen, skewed) for seen in observed[:, pool])
        least = np.abs(either) * (1 - TIE) - TIE
        extreme = np.minimum(size, _at_least(pooled, least) + _at_most(pooled, -least))
        found.differs[pool] = (1 + extreme) / (1 + size)
        found.is_higher[pool] = (1 + _at_least(pooled, _just_below(higher))) / (1 + size)
        found.is_above[pool] = (1 + _at_least(pooled, _just_below(beyond))) / (1 + size)
    smallest = null.smallest_p_value()
    return PValues(
        np.maximum(found.differs, smallest),
        np.maximum(found.is_higher, smallest / 2 if smallest < 1 else 1.0),
        np.maximum(found.is_above, smallest / 2 if smallest < 1 else 1.0),
    )


def without_skewness(statistic: FloatArray, skewness: float) -> FloatArray:
    """A studentised difference, transformed so that its skewness moves no chance to the first order (Hall 1992).

    With the skewness k of the difference, `g(t) = t + k t^2 / 3 + k^2 t^3 / 27 + k / 6`, which is increasing in t.

    Example:
        >>> without_skewness(np.array([-3.0, 0.0, 3.0]), -0.2).round(3).tolist()
        [-3.673, -0.033, 2.407]
    """
    cubic = statistic + skewness * statistic**2 / 3 + skewness**2 * statistic**3 / 27
    return np.asarray(cubic + skewness / 6)


def _cubed(values: FloatArray) -> FloatArray:
    """Twenty times as fast as a power that is not a square."""
    return values * values * values


def _just_below(statistic: FloatArray) -> FloatArray:
    """What a drawn statistic must reach to count as at least as large."""
    return np.asarray(statistic - TIE * np.abs(statistic) - TIE)


def _at_least(ascending: Float32Array, value: FloatArray) -> npt.NDArray[np.int64]:
    return np.asarray(len(ascending) - np.searchsorted(ascending, value), dtype=np.int64)


def _at_most(ascending: Float32Array, value: FloatArray) -> npt.NDArray[np.int64]:
    return np.asarray(np.searchsorted(ascending, value, side="right"), dtype=np.int64)


def frequency_pools(rate: FloatArray) -> list[IntArray]:
    """Experts in groups of about equal number and similar activation frequency."""
    number = max(1, min(NUM_POOLS, len(rate) // MIN_POOL))
    order = np.argsort(rate, kind="stable")
    return [np.sort(pool) for pool in np.array_split(order, number)]


def _exchange_blocks(contrast: Contrast, has_unsafe: BoolArray, has_safe: BoolArray) -> IntArray:
    """Number the sets of clusters that may exchange labels; -1 for clusters that are flipped.

    Clusters of one class may exchange labels if they have as many responses in the same strata: then
    every stratum keeps its balance of classes.
    """
    grouping = Grouping.of(contrast.cluster)
    strata = np.split(contrast.stratum[grouping.rows], grouping.starts[1:])
    alike: dict[tuple[int, ...], list[int]] = {}
    for cluster in np.flatnonzero(has_unsafe ^ has_safe):
        alike.setdefault(tuple(strata[cluster].tolist()), []).append(int(cluster))
    block = np.full(contrast.num_clusters, -1, dtype=np.int64)
    exchangeable = (c for c in alike.values() if has_unsafe[c].any() and has_safe[c].any())
    for number, members in enumerate(exchangeable):
        block[members] = number
    return block
