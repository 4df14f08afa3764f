"""Rows of a router that tells topics apart: a linear discriminant of unlabelled exchanges.

Shape legend: T tokens, D model width, N exchanges (a prompt with its reply), E experts.

Routers that are clustered on single tokens route by kind of word. To route by what an exchange is about, the *means* of
exchanges are clustered, in the metric in which tokens of one exchange scatter evenly (Fisher's linear discriminant,
1936, with clusters in the place of classes).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from steermoe.errors import ModelError

SHRINKAGE = 0.3
"""Multiple of the mean variance that is added to every direction before whitening; from 0.1 to 1 little changes."""

SLACK = 1.25
"""Most exchanges of a cluster, as a multiple of the mean."""

KMEANS_ITERATIONS = 25
"""Passes of the k-means; the assignments of some hundred exchanges have settled by then."""

SINK_RATIO = 4.0
"""Inputs this many times longer than the median are left out: they are attention sinks, not content."""


def router_weights(inputs_TD: Tensor, exchange_T: Tensor, num_experts: int, seed: int) -> Tensor:
    """Rows of a router `(E, D)` that send each input to the experts of its exchange's topic.

    With `m_i` the mean input of exchange i, `m` that of all tokens and `S` the covariance of inputs about the mean of
    their own exchange plus `SHRINKAGE` times its mean diagonal: `c_e` are the centroids of balanced k-means of the
    directions `S^(-1/2) (m_i - m)`, and `w_e = S^(-1/2) (c_e - mean(c))`.

    A Mixtral router has no bias, so what the mean input adds to a logit is removed from the rows: `w_e` less its
    component along `m`. All rows are then scaled by one number that makes the standard deviation of all logits
    `x @ w` 1: the softmax is neither flat nor one-hot.

    Args:
        inputs_TD: MLP inputs at content tokens, fp32.
        exchange_T: Which exchange a token belongs to.
        num_experts: E.
        seed: Seeds the k-means.

    Raises:
        ModelError: If there are fewer exchanges than experts, or they do not differ.
    """
    inputs_TD, exchange_T = without_sinks(inputs_TD, exchange_T)
    _, place_T, count_N = torch.unique(exchange_T, return_inverse=True, return_counts=True)
    if len(count_N) < num_experts:
        raise ModelError(
            f"{len(count_N)} calibration exchanges cannot be parted among {num_experts} experts; "
            "give more calibration prompts"
        )
    sums_ND = torch.zeros(len(count_N), inputs_TD.shape[1]).index_add(0, place_T, inputs_TD)
    means_ND = sums_ND / count_N[:, None]
    mean_D = inputs_TD.mean(dim=0)
    whitening_DD = whitening(inputs_TD - means_ND[place_T])
    points_ND = F.normalize((means_ND - mean_D) @ whitening_DD, dim=1)
    centroids_ED = balanced_kmeans(points_ND, num_experts, seed)
    weights_ED = (centroids_ED - centroids_ED.mean(dim=0)) @ whitening_DD
    mean_direction_D = F.normalize(mean_D, dim=0)
    weights_ED = weights_ED - torch.outer(weights_ED @ mean_direction_D, mean_direction_D)
    deviation = (inputs_TD @ weights_ED.T).std()
    if not deviation > 0:
        raise ModelError(
            f"the {len(count_N)} calibration exchanges do not differ; give other calibration prompts"
        )
    return weights_ED / deviation


def without_sinks(inputs_TD: Tensor, exchange_T: Tensor) -> tuple[Tensor, Tensor]:
    """Leave attention sinks out.

    A token to which attention goes that has nowhere else to go has a norm many times that of the others (Sun et al.,
    arXiv:2402.17762); one would move its exchange's mean as far as the topic does.
    """
    norms_T = inputs_TD.norm(dim=1)
    content_T = norms_T < SINK_RATIO * norms_T.median()
    return inputs_TD[content_T], exchange_T[content_T]


def whitening(within_TD: Tensor) -> Tensor:
    """`S^(-1/2)` `(D, D)`, S the covariance of deviations with mean zero, shrunk towards a multiple of the identity.

    Inputs that do not deviate at all give the identity.
    """
    covariance_DD = within_TD.T @ within_TD / len(within_TD)
    variance = covariance_DD.diagonal().mean()
    if not variance > 0:
        return torch.eye(len(covariance_DD))
    covariance_DD += SHRINKAGE * variance * torch.eye(len(covariance_DD))
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    inverse_root_DD: Tensor = (vectors_DD * values_D.rsqrt()) @ vectors_DD.T
    return inverse_root_DD


def balanced_kmeans(points_ND: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Cluster directions by cosine into clusters of which none is large.

    Spherical k-means (Dhillon and Modha, 2001) that starts from points drawn far from each other (k-means++, Arthur and
    Vassilvitskii, 2007). In each pass the points that are surest of a cluster choose first; a cluster that has
    `SLACK` times its share is full. One that nobody chose takes the point that is least like its own centroid.

    Args:
        points_ND: Unit vectors; all zero where an exchange is no different from the mean.
        num_clusters: At most N.
        seed: Seeds the draw.

    Returns:
        Unit centroids `(num_clusters, D)`.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = points_ND[torch.randperm(len(points_ND), generator=generator)[:1]]
    while len(centroids) < num_clusters:
        distance_N = (1 - (points_ND @ centroids.T).amax(dim=1)).clamp(min=0)
        if not distance_N.sum() > 0:  # fewer different points than clusters
            distance_N = torch.ones_like(distance_N)
        drawn = torch.multinomial(distance_N, 1, generator=generator)
        centroids = torch.cat([centroids, points_ND[drawn]])
    for _ in range(KMEANS_ITERATIONS):
        cosine_NE = points_ND @ centroids.T
        cluster_N = assign(cosine_NE)
        own_N = cosine_NE.gather(1, cluster_N[:, None])[:, 0]
        strangest = iter(own_N.argsort())
        sums = [
            members.sum(dim=0)
            if len(members := points_ND[cluster_N == cluster])
            else points_ND[next(strangest)]
            for cluster in range(num_clusters)
        ]
        centroids = F.normalize(torch.stack(sums), dim=1)
    return centroids


def assign(cosine_NE: Tensor) -> Tensor:
    """Each point's most similar cluster that is not full yet, `(N,)`; the surest points choose first."""
    num_points, num_clusters = cosine_NE.shape
    capacity = math.ceil(num_points / num_clusters * SLACK)
    room = [capacity] * num_clusters
    cluster_N = torch.empty(num_points, dtype=torch.long)
    preferences = cosine_NE.argsort(dim=1, descending=True, stable=True).tolist()
    for point in cosine_NE.amax(dim=1).argsort(descending=True, stable=True).tolist():
        chosen = next(cluster for cluster in preferences[point] if room[cluster])
        cluster_N[point] = chosen
        room[chosen] -= 1
    return cluster_N
