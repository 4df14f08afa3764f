"""Errors, null statistics and stability against plain loops, on data with every oddity; and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

import statistics_references as reference
from statistics_references import Responses, expert_of, odd_data
from steermoe.analysis import influences
from steermoe.analysis.bootstrap import bootstrap_variances, errors_and_freedom, half_widths
from steermoe.analysis.counts import RoutingCounts
from steermoe.analysis.estimators import ESTIMATORS, Contrast, build_contrast
from steermoe.analysis.grouping import Grouping, cluster_groups
from steermoe.analysis.influences import class_influences, cluster_influences, cluster_robust_errors
from steermoe.analysis.permutation import NullModel, p_values_of
from steermoe.analysis.stability import _half_samples, selection_stability
from steermoe.analysis.variance import degrees_of_freedom, lost_to_rate, variance_components

EXPERTS = range(6)


def contrast_of(counts: RoutingCounts, data: Responses, name: str) -> Contrast:
    return build_contrast(counts, data.unsafe, data.batch, data.cluster, name, "generation")


def counts_of(active: list[int], tokens: list[int]) -> RoutingCounts:
    """Counts of one expert in one layer; both segments alike."""
    shaped = np.array(active).reshape(-1, 1, 1, 1).repeat(2, axis=1)
    return RoutingCounts(shaped, np.array(tokens).reshape(-1, 1).repeat(2, axis=1), (0,))


def names_of(contrast: Contrast, data: Responses) -> list[int]:
    """The cluster that each of the contrast's clusters was."""
    return np.unique(np.array(data.cluster)[contrast.rows]).tolist()


# ---- standard errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_bootstrap_draws_whole_clusters_of_each_kind(name: str) -> None:
    counts, data = odd_data(5)
    contrast = contrast_of(counts, data, name)
    assert len(cluster_groups(contrast)) == 3, "pairs, and goals of either class alone"
    ours = np.sqrt(bootstrap_variances(contrast, 4000, np.random.default_rng(0)))
    for column in (0, 4):
        drawn = reference.bootstrap(name, expert_of(counts, data, column), 1500, seed=1)
        # Two estimates from 1,500 and 4,000 draws differ by 2.1 % (one standard deviation).
        assert ours[column] == pytest.approx(np.std(drawn, ddof=1), rel=0.09)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_a_cluster_adds_is_how_fast_it_moves_the_difference(name: str) -> None:
    for seed in range(3):
        counts, data = odd_data(seed, 120)
        contrast = contrast_of(counts, data, name)
        found = class_influences(contrast, contrast.values(np.arange(6)))
        for place, cluster in enumerate(names_of(contrast, data)):
            for column in (1, 5):
                expected = reference.influence(name, expert_of(counts, data, column), cluster)
                assert found[place, column] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", ["mean_over_batches", "equal_length"])
def test_the_analytic_error_squares_parts_that_are_as_large_as_about_the_true_rates(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        counts, data = odd_data(seed, 120)
        contrast = contrast_of(counts, data, name)
        found = cluster_influences(contrast, contrast.values(np.arange(6)))
        for column in (1, 5):
            parts = reference.parts_within_strata(name, expert_of(counts, data, column))
            expected = [parts[cluster] for cluster in names_of(contrast, data)]
            assert found[:, column] == pytest.approx(expected, abs=1e-12)
        with monkeypatch.context() as patched:
            patched.setattr(influences, "cluster_influences", lambda *_, found=found: found)
            patched.setattr(influences, "small_sample_factor", lambda number: 1.0)
            total = np.sqrt(np.sum(found**2, axis=0))
            assert cluster_robust_errors(contrast) == pytest.approx(total)


@pytest.mark.parametrize("name", ["pooled", "mean_over_responses"])
def test_without_strata_parts_are_about_the_rates_of_the_classes(name: str) -> None:
    counts, data = odd_data(1)
    contrast = contrast_of(counts, data, name)
    values = contrast.values(np.arange(6))
    assert (cluster_influences(contrast, values) == class_influences(contrast, values)).all()


def test_a_long_reply_that_is_most_of_its_batch_adds_what_it_moves_worked_by_hand() -> None:
    # Two batches. Unsafe replies of 90 and 10 tokens in the first fire in 45 and 1: shares 0.9 and 0.1, rate 0.46,
    # residuals 3.6 and -3.6 tokens, of which 1 - 1.8 + 0.82 = 0.02 and 1 - 0.2 + 0.82 = 1.62 of the squares are kept.
    # Safe ones, and those of the second batch, fire in every other token and add nothing.
    tokens, active = [90, 10, 50, 50, 10, 10, 10, 10], [45, 1, 25, 25, 5, 5, 5, 5]
    unsafe, batches = [1, 1, 0, 0] * 2, [0] * 4 + [1] * 4
    contrast = build_contrast(
        counts_of(active, tokens), unsafe, batches, range(8), "mean_over_batches", "generation"
    )
    squares = (3.6 / 200) ** 2 / 0.02 + (3.6 / 200) ** 2 / 1.62
    assert cluster_robust_errors(contrast) == pytest.approx([np.sqrt(squares)])
    # A plain residual would have said 3.6 / 200 of the long reply, as of the short one.
    error, _ = errors_and_freedom(contrast, 60_000, np.random.default_rng(0))
    assert error[0] > 5 * 3.6 / 200


def test_intervals_of_batches_with_heavy_tailed_lengths_hold_the_truth() -> None:
    """Replies differ in their rate alone, of which one or two long ones make a batch's."""
    generator = np.random.default_rng(0)
    held, ratios = [], []
    for _ in range(150):
        tokens = np.rint(np.exp(generator.normal(3.4, 1.2, 160))).astype(int) + 1
        rate = generator.beta(2, 8, (160, 16))
        active = generator.binomial(tokens[:, None], rate)
        counts = RoutingCounts(
            active.reshape(160, 1, 1, 16).repeat(2, axis=1), tokens[:, None].repeat(2, axis=1), (0,)
        )
        contrast = build_contrast(
            counts, np.arange(160) % 2, np.arange(160) // 16, np.arange(160),
            "mean_over_batches", "generation",
        )  # fmt: skip
        error, freedom = errors_and_freedom(contrast, 200, generator)
        half = half_widths(error, freedom, 0.95)
        held.append(np.mean(np.abs(contrast.difference()) <= half))
        ratios.append((np.mean(error**2), np.mean(contrast.difference() ** 2)))
    # Sixteen experts share their replies' lengths, so the trial is the unit.
    assert np.mean(held) == pytest.approx(0.95, abs=3 * np.std(held) / 150**0.5 + 0.005)
    expected, found = np.mean(ratios, axis=0)
    assert expected / found == pytest.approx(1, abs=0.15)


def test_each_kind_of_clusters_has_its_own_factor_worked_by_hand() -> None:
    # Ten tokens each. Unsafe 2 and 4, so the rate is 0.3 and parts are -+0.1 / 2; safe 1, 1, 4, rate 0.2,
    # parts 0.1 / 3, 0.1 / 3 and -0.2 / 3. Two unsafe goals have the factor 2, three safe ones 3 / 2.
    counts = counts_of([2, 4, 1, 1, 4], [10] * 5)
    contrast = build_contrast(counts, [1, 1, 0, 0, 0], [0] * 5, range(5), "pooled", "generation")
    by_hand = np.sqrt(2 * 2 * 0.05**2 + 3 / 2 * 6 * (0.1 / 3) ** 2)
    assert cluster_robust_errors(contrast) == pytest.approx([by_hand])
    # A bootstrap of means has exactly the uncorrected variance.
    error, _ = errors_and_freedom(contrast, 60_000, np.random.default_rng(0))
    assert error == pytest.approx([by_hand], rel=0.02)


def test_strata_of_few_responses_have_their_own_factor_worked_by_hand() -> None:
    # Two batches of 2 + 2 replies of ten tokens. Unsafe: 1, 3 | 6, 8; safe: 2, 2 | 5, 5.
    # Parts of the unsafe ones are -+0.1 / 4. Their mean in a batch takes half of the variance away:
    # four squares of 0.025, times 2.
    counts = counts_of([1, 3, 2, 2, 6, 8, 5, 5], [10] * 8)
    unsafe, batches = [1, 1, 0, 0] * 2, [0] * 4 + [1] * 4
    contrast = build_contrast(counts, unsafe, batches, range(8), "mean_over_batches", "generation")
    assert cluster_robust_errors(contrast) == pytest.approx([np.sqrt(2 * 4 * 0.025**2)])


def test_batches_of_one_pair_are_compared_with_each_other_worked_by_hand() -> None:
    # Differences 0.1, 0.3 and 0.2 of three pairs: variance 0.01, of the mean 0.01 / 3.
    counts = counts_of([1, 2, 2, 5, 3, 5], [10] * 6)
    unsafe, pairs = [0, 1] * 3, [0, 0, 1, 1, 2, 2]
    contrast = build_contrast(counts, unsafe, pairs, pairs, "mean_over_batches", "generation")
    assert cluster_robust_errors(contrast) == pytest.approx([np.sqrt(0.01 / 3)])


def test_batches_of_unlike_rates_add_nothing_to_the_error() -> None:
    """Rates from 5 % to 95 % in ten batches, the same for both classes."""
    batches = np.repeat(np.arange(10), 16)
    unsafe = np.tile(np.arange(16) >= 8, 10)
    rate = np.linspace(0.05, 0.95, 10)[batches]
    active = np.random.default_rng(0).binomial(40, rate)
    counts = counts_of(active.tolist(), [40] * 160)
    contrast = build_contrast(
        counts, unsafe, batches, np.arange(160), "mean_over_batches", "generation"
    )
    truth = np.sqrt(np.mean(rate * (1 - rate)) / 40 * 2 / 80)
    assert cluster_robust_errors(contrast) == pytest.approx([truth], rel=0.1)
    error, _ = errors_and_freedom(contrast, 2000, np.random.default_rng(0))
    assert error == pytest.approx([truth], rel=0.1)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_degrees_of_freedom_equal_the_traces_of_the_whole_matrix(name: str) -> None:
    for seed in range(4):
        counts, data = odd_data(seed)
        contrast = contrast_of(counts, data, name)
        variances = np.random.default_rng(seed).random((contrast.num_clusters, 2))
        weight = np.zeros(contrast.num_clusters)
        for i, cluster in enumerate(contrast.cluster):
            weight[cluster] += abs(contrast.coefficients()[0][i]) * contrast.size[i]
        found = degrees_of_freedom(contrast, variances)
        for column in range(2):
            trace = of_square = 0.0
            for group in cluster_groups(contrast):
                w = weight[group] / weight[group].sum()
                projection = np.eye(len(group)) - np.outer(w, np.ones(len(group)))
                residual = projection @ np.diag(variances[group, column]) @ projection.T
                trace += np.trace(residual)
                of_square += np.trace(residual @ residual)
            assert found[column] == pytest.approx(max(1.0, trace**2 / of_square))


# ---- the shared variance ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("active", "clusters", "expected"),
    [
        # Two tokens each, rate 1/2, scores 1, 1, -1, -1: no variance within, squares 4 over sizes 16.
        ([2, 2, 0, 0], [0, 0, 1, 1], (0.0, 0.0, 0.25)),  # products of a cluster: 4 over sizes 16
        ([2, 2, 0, 0], [0, 1, 0, 1], (0.0, 0.25, 0.0)),  # products -4: no shared variance
        ([2, 2, 0, 0], [0, 1, 2, 3], (0.0, 0.25, 0.0)),
        # Within: 0 + 0 + 1 + 1 over 8 tokens; that alone explains the squares, 2 = 0.25 * 8.
        ([2, 0, 1, 1], [0, 0, 1, 1], (0.25, 0.0, 0.0)),
        ([0, 0, 0, 0], [0, 0, 1, 1], (0.0, 0.0, 0.0)),
    ],
)
def test_variance_components_worked_by_hand(
    active: list[int], clusters: list[int], expected: tuple[float, ...]
) -> None:
    contrast = build_contrast(
        counts_of(active, [2] * 4), [0, 1, 0, 1], [0] * 4, clusters, "pooled", "generation"
    )
    values = contrast.values(np.arange(1))
    scores = values - contrast.size[:, None] * contrast.overall_rate()
    assert variance_components(contrast, values, scores)[:, 0] == pytest.approx(expected)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_variance_components_and_what_the_rate_takes_equal_the_loops(name: str) -> None:
    for seed in range(4):
        counts, data = odd_data(seed)
        contrast = contrast_of(counts, data, name)
        values = contrast.values(np.arange(6))
        scores = values - contrast.size[:, None] * contrast.overall_rate()
        found = variance_components(contrast, values, scores)
        chosen = np.arange(0, contrast.num_clusters, 2)
        kept = lost_to_rate(contrast, found, chosen)
        names = [names_of(contrast, data)[place] for place in chosen]
        for column in EXPERTS:
            expert = expert_of(counts, data, column)
            assert found[:, column] == pytest.approx(reference.components(name, expert), abs=1e-12)
            assert kept[column] == pytest.approx(reference.kept_by_rate(name, expert, names))


# ---- p-values -----------------------------------------------------------------------------------------


def mixture(seed: int) -> tuple[RoutingCounts, Responses]:
    """Three pairs, five goals of one response, and one of two unsafe ones without a counterpart; two batches."""
    generator = np.random.default_rng(seed)
    unsafe = [True, False] * 3 + [True, True, False, False, False] + [True, True]
    cluster = [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 8]
    batch = [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1]
    tokens = generator.integers(12, 15, 13)  # one stratum of length: 11.6 to 14.6
    rate = generator.random(6) * generator.uniform(0.3, 1.0, (13, 1))
    active = generator.binomial(tokens[:, None], rate).reshape(13, 1, 2, 3).repeat(2, axis=1)
    counts = RoutingCounts(active, tokens[:, None].repeat(2, axis=1), (0, 1))
    return counts, Responses([], tokens.tolist(), unsafe, batch, cluster)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_p_values_are_the_share_of_all_relabellings_of_a_mixture(name: str) -> None:
    """Pairs flipped, labels permuted, and the larger of two spreads; pooled over the experts."""
    counts, data = mixture(3)
    every = []  # (experts, relabellings), the first as observed
    for column in EXPERTS:
        expert = expert_of(counts, data, column)
        drawn = list(reference.relabellings(name, expert))
        every.append([reference.statistic(name, expert, *one, is_observed=False) for one in drawn])
    # Of five alike, two are unsafe; batch by batch one of three and one of two. Four clusters have signs.
    number = 16 * (6 if name == "mean_over_batches" else 10)
    assert len(every[0]) == number
    contrast = contrast_of(counts, data, name)
    null = NullModel(contrast)
    assert null.smallest_p_value() == pytest.approx(2 / number)
    rate = contrast.overall_rate()
    observed = []
    for column in EXPERTS:
        expert = expert_of(counts, data, column)
        first = next(iter(reference.relabellings(name, expert)))
        observed.append(reference.statistic(name, expert, *first, is_observed=True))
    ours = null.statistics(contrast.values(np.arange(6)), rate, null.as_observed)[0]
    assert ours == pytest.approx(observed, rel=1e-9)
    pooled = np.abs(np.array(every))
    exact = [np.mean(pooled >= abs(one) * (1 - 1e-6) - 1e-6) for one in observed]
    found = p_values_of(contrast, 8000, np.random.default_rng(0)).differs
    assert found == pytest.approx(np.maximum(exact, 2 / number), abs=0.015)
    assert len(set(np.round(exact, 3))) > 3, "else the test could not tell"


def test_permuted_labels_of_unpaired_goals_against_all_of_them() -> None:
    """Four unsafe of nine goals: 126 labellings."""
    generator = np.random.default_rng(1)
    active = generator.binomial(20, generator.random(6) * generator.uniform(0.4, 1, (9, 1)))
    counts = RoutingCounts(
        active.reshape(9, 1, 2, 3).repeat(2, axis=1), np.full((9, 2), 20), (0, 1)
    )
    data = Responses([], [20] * 9, [True] * 4 + [False] * 5, [0] * 9, list(range(9)))
    for name in ("pooled", "mean_over_responses"):
        every, observed = [], []
        for column in EXPERTS:
            expert = expert_of(counts, data, column)
            drawn = list(reference.relabellings(name, expert))
            assert len(drawn) == 126
            every.append([abs(reference.statistic(name, expert, *d, False)) for d in drawn])
            observed.append(abs(reference.statistic(name, expert, *drawn[0], True)))
        exact = [np.mean(np.array(every) >= one * (1 - 1e-6) - 1e-6) for one in observed]
        contrast = contrast_of(counts, data, name)
        found = p_values_of(contrast, 8000, np.random.default_rng(0)).differs
        assert found == pytest.approx(np.maximum(exact, 2 / 126), abs=0.015)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_statistics_of_drawn_relabellings_equal_the_loops(name: str) -> None:
    """On data with clusters over several batches, empty replies and a goal of ten."""
    for seed in range(3):
        counts, data = odd_data(seed)
        contrast = contrast_of(counts, data, name)
        null = NullModel(contrast)
        drawn = null.draw(4, np.random.default_rng(seed))
        found = null.statistics(contrast.values(np.arange(6)), contrast.overall_rate(), drawn)
        names, rows = names_of(contrast, data), contrast.rows
        flipped = [names[place] for place in np.flatnonzero(null.block < 0)]
        for k in range(4):
            signs = dict(zip(flipped, drawn.signs[k].astype(int).tolist(), strict=True))
            labels = list(data.unsafe)
            for place, position in enumerate(null.permuted.rows):
                labels[rows[position]] = bool(drawn.coefficients[k, place] > 0)
            for column in (0, 3, 5):
                expert = expert_of(counts, data, column)
                relabelled = Responses(expert.active, data.tokens, labels, data.batch, data.cluster)
                expected = reference.statistic(name, expert, signs, relabelled, is_observed=False)
                assert found[k, column] == pytest.approx(expected, abs=1e-8)


# ---- stability ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_stability_is_the_share_of_halves_that_select_the_expert(name: str) -> None:
    counts, data = odd_data(7, 60)
    contrast = contrast_of(counts, data, name)
    found = selection_stability(
        counts, data.unsafe, [], data.batch, threshold=0.02, top_k=2, estimator=name,
        num_subsamples=40, seed=3, clusters=data.cluster,
    )  # fmt: skip
    times, number = [0] * 6, 0
    for half in _half_samples(contrast, 20, np.random.default_rng(3)):
        weight = [0.0] * len(data)
        for position, row in enumerate(contrast.rows):
            weight[row] = half[position]
        experts = [expert_of(counts, data, column) for column in EXPERTS]
        drawn = [reference.difference(name, expert, weight) for expert in experts]
        if drawn[0] is None:
            continue
        number += 1
        for column in sorted(EXPERTS, key=lambda e: (-drawn[e], e))[:2]:
            times[column] += drawn[column] >= 0.02
    assert found.num_subsamples == number
    assert found.table["stability"].to_numpy() == pytest.approx(np.array(times) / number)
    assert found.mean_selected == pytest.approx(sum(times) / number)
    assert 0 < min(filter(None, times)) < number, "else the test could not tell"


def test_clusters_are_summed_wherever_they_stand() -> None:
    grouping = Grouping.of(np.array([2, 0, 2, 1, 0]))
    assert grouping.sums(np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])).tolist() == [
        10010,
        1000,
        101,
    ]
