"""Routers by topic: each step against numbers worked by hand, and the whole against what it is for."""

from __future__ import annotations

import math

import pytest
import torch

from steermoe.embedded.topic_routers import (
    assign,
    balanced_kmeans,
    router_weights,
    whitening,
    without_sinks,
)
from steermoe.errors import ModelError


def test_full_clusters_send_the_least_sure_points_on() -> None:
    # Room for ceil(4 / 2 * 1.25) = 3 each. All like cluster 0 best; the least sure of them comes last.
    cosine = torch.tensor([[0.9, 0.1], [0.6, 0.5], [0.8, 0.2], [0.7, 0.0]])
    assert assign(cosine).tolist() == [0, 1, 0, 0]


def test_kmeans_finds_two_directions_wherever_it_starts() -> None:
    angles = torch.tensor([0.1, -0.1, math.pi / 2 + 0.2, math.pi / 2 - 0.2])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    for seed in range(8):
        centroids = balanced_kmeans(points, 2, seed)
        centroids = centroids[centroids[:, 0].argsort()]
        torch.testing.assert_close(centroids, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_kmeans_gives_a_cluster_that_nobody_chose_the_point_least_like_its_own() -> None:
    # Two different points for three clusters, with room for two each: one of the clusters stays empty.
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    for seed in range(8):
        centroids = balanced_kmeans(points, 3, seed)
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(3))


def test_whitening_by_hand() -> None:
    # Variances 2 and 1/2, mean 1.25, of which 0.3 is added: 2.375 and 0.875.
    within = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    expected = torch.diag(torch.tensor([1 / math.sqrt(2.375), 1 / math.sqrt(0.875)]))
    torch.testing.assert_close(whitening(within), expected)
    assert torch.equal(whitening(torch.zeros(5, 2)), torch.eye(2))


def test_router_by_hand() -> None:
    # Two exchanges whose means are (4, 1, 0) and (4, -1, 0); the mean is (4, 0, 0). Whatever the whitening makes of the
    # second axis, the two centroids are plus and minus that axis, their mean is zero, and the mean input has no
    # component along them. Before scaling all logits are plus or minus one number; four of each have a deviation of
    # sqrt(8 / 7) times it.
    inputs = torch.tensor([[4.0, 1, 1], [4.0, 1, -1], [4.0, -1, 1], [4.0, -1, -1]])
    weights = router_weights(inputs, torch.tensor([7, 7, 2, 2]), 2, seed=0)
    scale = math.sqrt(7 / 8)
    expected = torch.tensor([[0.0, -scale, 0.0], [0.0, scale, 0.0]])
    torch.testing.assert_close(weights[weights[:, 1].argsort()], expected)


def talk(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of 40 exchanges on four topics; kinds of word, the same in all, move a token ten times as far."""
    generator = torch.Generator().manual_seed(seed)
    topics, kinds = torch.eye(4, 12), 10 * torch.eye(12)[4:8]
    topic_N = torch.arange(40) % 4
    exchange_T = torch.arange(40).repeat_interleave(16)
    kind_T = torch.arange(640) % 4
    noise = 0.3 * torch.randn(640, 12, generator=generator)
    offset = torch.tensor([0.0] * 8 + [5.0, -3.0, 2.0, 1.0])
    inputs = topics[topic_N[exchange_T]] + kinds[kind_T] + noise + offset
    return inputs, exchange_T, topic_N[exchange_T]


def test_routers_see_the_topic_and_not_the_kind_of_word() -> None:
    inputs, exchange, _ = talk(0)
    weights = router_weights(inputs, exchange, 4, seed=0)
    others, _, topic = talk(1)
    chosen = (others @ weights.T).argmax(dim=1)
    table = torch.zeros(4, 4).index_put((topic, chosen), torch.ones(640), accumulate=True)
    assert (table.max(dim=1).values >= 0.8 * 160).all(), table
    assert table.argmax(dim=1).unique().numel() == 4


def test_logits_have_unit_deviation_and_do_not_see_the_mean() -> None:
    inputs, exchange, _ = talk(0)
    weights = router_weights(inputs, exchange, 4, seed=0)
    assert (inputs @ weights.T).std().item() == pytest.approx(1.0, abs=1e-4)
    assert (weights @ inputs.mean(0)).abs().max().item() < 1e-4


def test_attention_sinks_take_no_part() -> None:
    inputs, exchange, _ = talk(0)
    with_sinks = inputs.clone()
    with_sinks[::160] *= 100
    kept, theirs = without_sinks(with_sinks, exchange)
    assert torch.equal(kept, inputs[torch.arange(640) % 160 > 0])
    expected = router_weights(kept, theirs, 4, seed=0)
    assert torch.equal(router_weights(with_sinks, exchange, 4, seed=0), expected)


def test_exchanges_that_do_not_differ_are_refused() -> None:
    with pytest.raises(ModelError, match="10 calibration exchanges do not differ"):
        router_weights(torch.ones(10, 3), torch.arange(10), 2, seed=0)


def test_fewer_exchanges_than_experts_are_refused() -> None:
    with pytest.raises(ModelError, match="2 calibration exchanges cannot be parted among 3"):
        router_weights(torch.randn(9, 3), torch.arange(9) % 2, 3, seed=0)
