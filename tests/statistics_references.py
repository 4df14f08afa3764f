"""The statistics in plain loops over responses, straight from their definitions; one expert at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from steermoe.analysis.counts import RoutingCounts

LENGTH_RATIO = 1.25
BY_TOKENS = ("mean_over_batches", "pooled")


@dataclass(frozen=True)
class Responses:
    """What one expert did in N responses.

    Attributes:
        active: Tokens for which it was chosen.
        tokens: All tokens.
        unsafe: The class.
        batch: Mixed batch, -1 for none.
        cluster: Which responses belong together.
    """

    active: Sequence[float]
    tokens: Sequence[int]
    unsafe: Sequence[bool]
    batch: Sequence[int]
    cluster: Sequence[int]

    def __len__(self) -> int:
        return len(self.tokens)


def stratum(name: str, data: Responses, i: int) -> int | None:
    """The stratum of a response; None if the estimator cannot use it."""
    if data.tokens[i] == 0:
        return None
    if name == "mean_over_batches":
        return data.batch[i] if data.batch[i] >= 0 else None
    if name == "equal_length":
        number = 0
        while LENGTH_RATIO ** (number + 1) <= data.tokens[i] * (1 + 1e-9):
            number += 1
        return number
    return 0


def size(name: str, data: Responses, i: int) -> float:
    """What a response counts for."""
    return float(data.tokens[i]) if name in BY_TOKENS else 1.0


def value(name: str, data: Responses, i: int) -> float:
    """What a response adds to the numerator: active tokens, or the frequency."""
    return data.active[i] if name in BY_TOKENS else data.active[i] / data.tokens[i]


def difference(name: str, data: Responses, weight: Sequence[float] | None = None) -> float | None:
    """The risk difference, each response counted `weight` times; None where it is undefined."""
    sums: dict[int, dict[bool, list[float]]] = {}
    for i in range(len(data)):
        place, times = stratum(name, data, i), 1.0 if weight is None else weight[i]
        if place is None:
            continue
        of_class = sums.setdefault(place, {True: [0.0, 0.0], False: [0.0, 0.0]})[
            bool(data.unsafe[i])
        ]
        of_class[0] += times * value(name, data, i)
        of_class[1] += times * size(name, data, i)
    total = whole = 0.0
    for of_stratum in sums.values():
        (fired_unsafe, in_unsafe), (fired_safe, in_safe) = of_stratum[True], of_stratum[False]
        if in_unsafe == 0 or in_safe == 0:
            continue
        share = in_unsafe * in_safe / (in_unsafe + in_safe) if name == "equal_length" else 1.0
        total += share * (fired_unsafe / in_unsafe - fired_safe / in_safe)
        whole += share
    return total / whole if whole else None


def used(name: str, data: Responses) -> list[int]:
    """Responses in strata that hold both classes."""
    classes: dict[int, set[bool]] = {}
    for i in range(len(data)):
        if (place := stratum(name, data, i)) is not None:
            classes.setdefault(place, set()).add(bool(data.unsafe[i]))
    return [
        i
        for i in range(len(data))
        if (place := stratum(name, data, i)) is not None and len(classes[place]) == 2
    ]


def kinds(name: str, data: Responses) -> dict[tuple[bool, ...], list[int]]:
    """The clusters in use, by the classes that they hold."""
    held: dict[int, set[bool]] = {}
    for i in used(name, data):
        held.setdefault(data.cluster[i], set()).add(bool(data.unsafe[i]))
    found: dict[tuple[bool, ...], list[int]] = {}
    for cluster in sorted(held):
        found.setdefault(tuple(sorted(held[cluster])), []).append(cluster)
    return found


def reweighted(name: str, data: Responses, weight: Sequence[float]) -> float:
    """The difference of the classes' means, each response with its weight in the estimator, `weight` times."""
    fixed = coefficients(name, data)
    mean = {}
    for unsafe in (True, False):
        members = [i for i in used(name, data) if bool(data.unsafe[i]) is unsafe]
        total = sum(weight[i] * abs(fixed[i]) * size(name, data, i) for i in members)
        fired = sum(weight[i] * abs(fixed[i]) * value(name, data, i) for i in members)
        mean[unsafe] = fired / total
    return mean[True] - mean[False]


def bootstrap(name: str, data: Responses, num_draws: int, seed: int) -> list[float]:
    """Differences of clusters drawn with replacement, kind by kind."""
    generator = np.random.default_rng(seed)
    rows = used(name, data)
    drawn = []
    for _ in range(num_draws):
        times: dict[int, int] = {}
        for clusters in kinds(name, data).values():
            for cluster in generator.choice(clusters, len(clusters)).tolist():
                times[cluster] = times.get(cluster, 0) + 1
        weight = [0.0] * len(data)
        for i in rows:
            weight[i] = float(times.get(data.cluster[i], 0))
        drawn.append(reweighted(name, data, weight))
    return drawn


def influence(name: str, data: Responses, cluster: int, step: float = 1e-5) -> float:
    """How fast the difference changes as a cluster gains weight."""
    sides = []
    for sign in (1, -1):
        weight = [1.0 + sign * step * (data.cluster[i] == cluster) for i in range(len(data))]
        sides.append(reweighted(name, data, weight))
    return (sides[0] - sides[1]) / (2 * step)


def parts_within_strata(name: str, data: Responses) -> dict[int, float]:
    """Each cluster's part of the difference: residuals about the rates of strata, as large as about the true rates.

    The residuals of a stratum and class are a matrix times its clusters' rates; if those are independent and alike,
    the diagonal of its product with itself says how much of each square is left. What (C - 1) / C of it is, for the
    C clusters of the class, is left to the factor of the kind.
    """
    fixed = coefficients(name, data)
    found: dict[int, float] = {}
    for unsafe in (True, False):
        members = [i for i in used(name, data) if bool(data.unsafe[i]) is unsafe]
        number = len({data.cluster[i] for i in members})
        weights = sum(abs(fixed[i]) * size(name, data, i) for i in members)
        mean = sum(abs(fixed[i]) * value(name, data, i) for i in members) / weights
        for place in {stratum(name, data, i) for i in members}:
            inside = [i for i in members if stratum(name, data, i) == place]
            clusters = sorted({data.cluster[i] for i in inside})
            sizes = np.array(
                [sum(size(name, data, i) for i in inside if data.cluster[i] == c) for c in clusters]
            )
            residual = np.eye(len(clusters)) - np.outer(np.ones(len(clusters)), sizes / sizes.sum())
            kept = np.diag(residual @ residual.T) * number / max(1, number - 1)
            rate = sum(value(name, data, i) for i in inside) / sizes.sum()
            for position, cluster in enumerate(clusters):
                alone = len(clusters) == 1
                centre, left = (mean, 1.0) if alone else (rate, kept[position])
                for i in inside:
                    if data.cluster[i] == cluster:
                        part = fixed[i] * (value(name, data, i) - centre * size(name, data, i))
                        found[cluster] = found.get(cluster, 0.0) + part / left**0.5
    return found


def coefficients(name: str, data: Responses) -> list[float]:
    """What each response's value is multiplied by in the difference, 0 of those that are not used."""
    found = [0.0] * len(data)
    for i in used(name, data):
        alone = [0.0] * len(data)
        alone[i] = 1.0 if name in BY_TOKENS else float(data.tokens[i])  # a value of 1
        of_one = difference(name, replace(data, active=alone))
        assert of_one is not None
        found[i] = of_one
    return found


def scores(name: str, data: Responses) -> list[float]:
    """What each response has above the overall rate, 0 of those that are not used."""
    rows = used(name, data)
    rate = sum(value(name, data, i) for i in rows) / sum(size(name, data, i) for i in rows)
    return [
        value(name, data, i) - rate * size(name, data, i) if i in rows else 0.0
        for i in range(len(data))
    ]


def components(name: str, data: Responses) -> tuple[float, float, float]:
    """Variance of a token within a response, between responses of a cluster, and between clusters."""
    rows, e = used(name, data), scores(name, data)
    spread = total = 0.0
    for i in rows:
        if data.tokens[i] > 1:
            spread += data.active[i] * (data.tokens[i] - data.active[i]) / (data.tokens[i] - 1)
            total += data.tokens[i]
    within = spread / total
    squares = sum(e[i] ** 2 for i in rows)
    of_tokens = sum(within * _token_units(name, data, i) for i in rows)
    sizes = sum(size(name, data, i) ** 2 for i in rows)
    between = max(0.0, squares - of_tokens) / sizes
    products = pairs = 0.0
    for i, j in itertools.permutations(rows, 2):
        if data.cluster[i] == data.cluster[j]:
            products += e[i] * e[j]
            pairs += size(name, data, i) * size(name, data, j)
    shared = min(max(products / pairs, 0.0), between) if pairs else 0.0
    return within, between - shared, shared


def covariance(name: str, data: Responses) -> np.ndarray:
    """Covariance of the scores `(N, N)` by the three components, had the true rate been taken out."""
    within, response, shared = components(name, data)
    matrix = np.zeros((len(data), len(data)))
    for i, j in itertools.product(used(name, data), repeat=2):
        if data.cluster[i] == data.cluster[j]:
            matrix[i, j] += shared * size(name, data, i) * size(name, data, j)
        if i == j:
            matrix[i, i] += within * _token_units(name, data, i)
            matrix[i, i] += response * size(name, data, i) ** 2
    return matrix


def relabellings(name: str, data: Responses) -> Iterator[tuple[dict[int, int], Responses]]:
    """Every sign of the clusters that are flipped, with every labelling of those that exchange labels.

    A cluster of one class exchanges labels with those that have as many responses in the same strata, if
    there are any of the other class; all other clusters are flipped. The first one is as observed.
    """
    rows = used(name, data)
    alike: dict[tuple[object, ...], list[int]] = {}
    of_kind = kinds(name, data)
    for cluster in of_kind.get((True,), []) + of_kind.get((False,), []):
        key = tuple(sorted(str(stratum(name, data, i)) for i in rows if data.cluster[i] == cluster))
        alike.setdefault(key, []).append(cluster)
    is_unsafe = {data.cluster[i]: bool(data.unsafe[i]) for i in rows}
    blocks = [block for block in alike.values() if len({is_unsafe[c] for c in block}) == 2]
    flipped = [
        c for of_one in of_kind.values() for c in of_one if not any(c in block for block in blocks)
    ]
    choices = []
    for block in blocks:
        observed = tuple(c for c in block if is_unsafe[c])
        others = [c for c in itertools.combinations(block, len(observed)) if c != observed]
        choices.append([observed, *others])
    for chosen in itertools.product(*choices):
        labels = list(data.unsafe)
        for block, unsafe_ones in zip(blocks, chosen, strict=True):
            for i in rows:
                if data.cluster[i] in block:
                    labels[i] = data.cluster[i] in unsafe_ones
        for signs in itertools.product([1, -1], repeat=len(flipped)):
            yield dict(zip(flipped, signs, strict=True)), replace(data, unsafe=labels)


def statistic(
    name: str, data: Responses, signs: dict[int, int], relabelled: Responses, is_observed: bool
) -> float:
    """The studentised difference of one relabelling."""
    e, before, after = (
        scores(name, data),
        coefficients(name, data),
        coefficients(name, relabelled),
    )
    rows = used(name, data)
    total = own = 0.0
    of_flipped = 0.0
    for cluster in {data.cluster[i] for i in rows}:
        members = [i for i in rows if data.cluster[i] == cluster]
        if cluster in signs:
            part = sum(before[i] * e[i] for i in members)
            total += signs[cluster] * part
            of_flipped += part**2
        else:
            total += sum(after[i] * e[i] for i in members)
            mean = sum(abs(after[i]) for i in members) / len(members)
            own += (mean * sum(e[i] for i in members)) ** 2
    if is_observed:
        of_flipped /= kept_by_rate(name, data, list(signs))
    weights = np.array(
        [before[i] if data.cluster[i] in signs else after[i] for i in range(len(data))]
    )
    shared = float(weights @ covariance(name, data) @ weights)
    variance = max(own + of_flipped, shared)
    return total / variance**0.5 if variance > 1e-20 else 0.0


def kept_by_rate(name: str, data: Responses, clusters: Sequence[int]) -> float:
    """Expected sum of squares of some clusters' parts when the rate is estimated, over that when it is known."""
    matrix, weights = covariance(name, data), np.array(coefficients(name, data))
    rows = used(name, data)
    sizes = np.array([size(name, data, i) if i in rows else 0.0 for i in range(len(data))])
    estimated = np.eye(len(data)) - np.outer(sizes, sizes > 0) / sizes.sum()
    known = kept = 0.0
    for cluster in clusters:
        part = weights * [c == cluster for c in data.cluster]
        known += part @ matrix @ part
        kept += part @ estimated @ matrix @ estimated.T @ part
    return float(np.clip(kept / known, 0.5, 1.0)) if known > 0 else 1.0


def odd_data(seed: int, num_responses: int = 40) -> tuple[RoutingCounts, Responses]:
    """Counts of 2 layers x 3 experts: empty replies, a goal of ten, goals over batches, leftovers.

    Returns:
        The counts, and the responses without the activations; `expert_of` puts one expert's in.
    """
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 40, (num_responses, 2))
    tokens[:, 1] = np.maximum(0, generator.integers(-2, 40, num_responses))
    rate = generator.random((2, 3)) * generator.random((num_responses, 1, 1, 1))
    active = generator.binomial(
        tokens[:, :, None, None], np.broadcast_to(rate, (num_responses, 2, 2, 3))
    )
    unsafe = generator.random(num_responses) < 0.5
    cluster = generator.integers(0, 18, num_responses)
    cluster[:10], unsafe[:10] = 3, True
    batch = generator.integers(-1, 5, num_responses)
    return RoutingCounts(active, tokens, (0, 2)), Responses(
        [], tokens[:, 1].tolist(), unsafe.tolist(), batch.tolist(), cluster.tolist()
    )


def expert_of(counts: RoutingCounts, data: Responses, column: int) -> Responses:
    """The responses with the activations of one expert of the generated tokens."""
    active, _ = counts.segment("generation")
    return replace(data, active=active.reshape(len(data), -1)[:, column].tolist())


def _token_units(name: str, data: Responses, i: int) -> float:
    return float(data.tokens[i]) if name in BY_TOKENS else 1 / data.tokens[i]
