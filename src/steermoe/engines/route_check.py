"""Whether routes that another engine returns can be those of the model.

Two checks. What can be told from the routes alone is looked at in every group: their shape, their ids, and that they
are not all the same. And of a sample of replies, the routes are compared with the local model's own top-k in one
teacher-forced pass. There, two engines differ at near-ties, where rounding decides; such a choice is an expert whose
logit is hardly below that of the last one chosen.

Shape legend: T tokens that were fed, H decoder layers (dense ones too), L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steermoe.engines.chat_engine import smallest_type
from steermoe.errors import RoutingError
from steermoe.moe.description import MoEDescription
from steermoe.moe.routing import RoutingRecorder
from steermoe.records import IntArray

NEAR_TIE = 0.25
"""Of the standard deviation of a row's logits: how far below the last one chosen an expert may be to be a near-tie.
Rounding to bf16 in one layer moves logits by less; what it does to the layers above adds to that."""

MOST_WRONG = 0.02
"""Share of the choices of a layer for one token that may differ beyond near-ties. Routes of another model, of other
layers or of other tokens differ in half of them or more."""

SAMPLE = 16
"""Replies that are compared."""


def checked_routes(
    description: MoEDescription, routes: Sequence[IntArray], lengths: Sequence[int]
) -> list[IntArray]:
    """The routes of the MoE layers alone, once they can be the model's.

    Args:
        description: The model's MoE layers.
        routes: Of each reply `(T, H, K)`.
        lengths: Of each reply the rows that it must have.

    Returns:
        `(T, L, K)` each, in the smallest type that holds the ids.

    Raises:
        RoutingError: Of a wrong shape, with ids that no expert has, or that are the same for all tokens.
    """
    layers, experts, top_k = description.layer_indices, description.num_experts, description.top_k
    kept: list[IntArray] = []
    for array, length in zip(routes, lengths, strict=True):
        is_whole = array.ndim == 3 and array.shape[1] > layers[-1] and array.shape[2] == top_k
        if not is_whole or array.shape[0] != length:
            raise RoutingError(
                f"the engine returned routes of shape {array.shape}; {length} tokens were fed, and the model has "
                f"{layers[-1] + 1} decoder layers or more with top-{top_k}"
            )
        kept.append(array[:, list(layers)])
    together = np.sort(np.concatenate(kept), axis=-1)
    if together.min() < 0 or together.max() >= experts:
        raise RoutingError(
            f"the engine returned expert ids from {together.min()} to {together.max()}; the model has {experts} experts"
        )
    if (together[..., 1:] == together[..., :-1]).any():
        raise RoutingError(
            "the engine returned routes that name an expert twice for one token, as rows that nobody filled do"
        )
    if top_k < experts and (together == together[:1]).all():
        raise RoutingError("the engine returned the same routes for every token: they are constant")
    return [array.astype(smallest_type(experts)) for array in kept]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far routes are those of the local model.

    Attributes:
        num_choices: Choices of a layer for one token that were compared.
        num_differing: Those in which any expert differs.
        num_wrong: Those in which one differs that is no near-tie.
    """

    num_choices: int = 0
    num_differing: int = 0
    num_wrong: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        """Of both together."""
        return Agreement(
            self.num_choices + other.num_choices,
            self.num_differing + other.num_differing,
            self.num_wrong + other.num_wrong,
        )

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.num_differing} of {self.num_choices} choices differ from the local model's, {self.num_wrong} of "
            "them beyond near-ties"
        )


def agreement(chosen_TLK: Tensor, own_TLK: Tensor, logits_TLE: Tensor) -> Agreement:
    """Compare choices.

    Args:
        chosen_TLK: The other engine's.
        own_TLK: The local model's.
        logits_TLE: Its router logits.
    """
    chosen_TLK, own_TLK = chosen_TLK.long().to(logits_TLE.device), own_TLK.long()
    differs_TL = (chosen_TLK.sort(-1).values != own_TLK.sort(-1).values).any(-1)
    last_TL1 = logits_TLE.gather(-1, own_TLK).amin(-1, keepdim=True)
    worst_TL = logits_TLE.gather(-1, chosen_TLK).amin(-1)
    margin_TL = NEAR_TIE * logits_TLE.std(-1)
    wrong_TL = differs_TL & (last_TL1.squeeze(-1) - worst_TL > margin_TL)
    return Agreement(differs_TL.numel(), int(differs_TL.sum()), int(wrong_TL.sum()))


@torch.inference_mode()
def compare_routes(
    model: Any, description: MoEDescription, replies: Iterable[tuple[Sequence[int], IntArray]]
) -> Agreement:
    """Feed replies to the local model, and compare the routes they came with with its own.

    Args:
        model: The local model.
        description: Its MoE layers.
        replies: Of each the T tokens that were fed, and their routes `(T, L, K)`.
    """
    found = Agreement()
    for fed, routes in replies:
        ids = torch.tensor([list(fed)], device=model.device)
        with RoutingRecorder(model, description, router_logits=True) as recorder:
            model(input_ids=ids, use_cache=False)
            (logits,) = recorder.logits
            (own,) = recorder.take()
        # torch hardly computes with unsigned types.
        found += agreement(torch.from_numpy(routes.astype(np.int64)), own, logits)
    return found


def check_agreement(found: Agreement, engine: str) -> None:
    """Refuse routes that are not the local model's.

    Raises:
        RoutingError: Too many differ beyond near-ties.
    """
    if found.num_wrong > MOST_WRONG * found.num_choices:
        raise RoutingError(
            f"the routes of {engine} are not this model's: {found}; see that it runs the same weights, in the same type"
        )
