"""The passes themselves: each goes over its prompts in pieces, and leaves sums of every response.

Shape legend: B texts of one pass, T tokens, L MoE layers, E experts, K top-k, D model width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steermoe.engines.scoring import PaddedRows
from steermoe.errors import RoutingError
from steermoe.moe.choice_gradients import differentiable_choices
from steermoe.moe.distinct_tokens import computing_distinct
from steermoe.moe.expert_sums import ExpertSums
from steermoe.moe.freed_memory import give_back_freed_memory
from steermoe.moe.weight_gradients import (
    LayerTokens,
    captured_tokens,
    gradient_products,
    joined,
)
from steermoe.records import Continuation, ResponseSums
from steermoe.stages.score_work import Work

PER_TOKEN = ("hidden", "ids", "weights", "gradient")
"""What a piece of the gradient pass holds of each layer's tokens."""


def taylor(work: Work) -> ResponseSums:
    """Weight times gradient of every choice, over the tokens of both texts; `scores/taylor.py` has the formula."""
    sums: dict[int, Tensor] = {}
    for index, group in enumerate(work.groups(work.places)):
        piece = work.piece("texts", index, partial(_taylor_of, work, group), len(group))
        (values,) = work.read(piece, "sums")
        sums |= dict(zip(group, values, strict=True))
    return work.whole_texts({place: values.numpy() for place, values in sums.items()})


def _taylor_of(work: Work, group: Sequence[int]) -> dict[str, Tensor]:
    """`sums` `(B, L, E)` of some responses."""
    num_layers, num_experts = work.shape
    sums = torch.zeros(len(group), num_layers * num_experts, dtype=torch.float64)
    for sign, texts in ((1.0, work.texts.refusals), (-1.0, work.texts.replies)):
        rows = [row for row, place in enumerate(group) if texts[place].completion_token_ids]
        if not rows:
            continue
        continuations = [texts[group[row]] for row in rows]
        padded = PaddedRows.of(continuations, work.loaded.pad_token_id)
        with differentiable_choices(work.loaded.model, work.loaded.description) as choices:
            ids, products = choices.products(
                sign * log_prob(work.loaded.model, padded, continuations)
            )
        is_real = padded.attention_mask.flatten().bool()
        row_of_token = torch.tensor(rows)[:, None].expand(padded.input_ids.shape).flatten()
        layer = torch.arange(num_layers)[:, None] * num_experts
        flat = row_of_token[:, None, None] * sums.shape[1] + layer + ids.cpu()
        kept = products.cpu().double()[is_real].flatten()
        sums.view(-1).scatter_add_(0, flat[is_real].flatten(), -kept)
    give_back_freed_memory()
    return {"sums": sums.view(len(group), num_layers, num_experts).float()}


def log_prob(model: Any, padded: PaddedRows, continuations: Sequence[Continuation]) -> Tensor:
    """Log-probability of all completions together, in fp32, with its gradient."""
    logits = padded.through(model).logits[0]
    targets = torch.tensor([i for c in continuations for i in c.completion_token_ids])
    chosen = torch.log_softmax(logits.float(), dim=-1).gather(
        -1, targets.to(logits.device).unsqueeze(-1)
    )
    return chosen.sum()


# ---- gradients of experts' weights ----------------------------------------------------------------------


def gradient(work: Work) -> ResponseSums:
    """How far the gradient of each prompt's refusal loss points along the mean one of harmful prompts.

    `scores/selectivity.py` says what is made of it.
    """
    groups = work.groups(work.places)
    pieces = [
        work.piece("tokens", index, partial(_tokens_of, work, group), len(group))
        for index, group in enumerate(groups)
    ]
    ordered = [place for group in groups for place in group]
    towards = torch.from_numpy(np.isin(ordered, work.chosen.unsafe))
    texts = [work.read(piece, "text")[0] for piece in pieces]
    starts = np.cumsum([0, *map(len, groups)])
    text_of_token = torch.cat(
        [of_piece + int(start) for of_piece, start in zip(texts, starts[:-1], strict=True)]
    )
    products = []
    for position in range(work.shape[0]):
        make = partial(_products_of, work, position, pieces, text_of_token, towards)
        products += work.read(work.piece("products", position, make), "products")
    whole = torch.stack(products, dim=1)  # (R, L, E)
    return work.whole_texts({place: whole[i].numpy() for i, place in enumerate(ordered)})


def _tokens_of(work: Work, group: Sequence[int]) -> dict[str, Tensor]:
    """What every layer's experts read and what the loss makes of what they put out, without padding."""
    firsts = [first_token(work.texts.refusals[place]) for place in group]
    padded = PaddedRows.of(firsts, work.loaded.pad_token_id)
    with captured_tokens(work.loaded.model, work.loaded.description) as layers:
        (-log_prob(work.loaded.model, padded, firsts)).backward()  # type: ignore[no-untyped-call]
    is_real = padded.attention_mask.flatten().bool()
    rows = torch.arange(len(group))[:, None].expand(padded.input_ids.shape).flatten()
    tensors = {"text": rows[is_real]}
    for position, layer in enumerate(layers):
        tokens = layer.select(is_real)
        tensors |= {f"{position}.{name}": getattr(tokens, name) for name in PER_TOKEN}
    give_back_freed_memory()
    return tensors


def first_token(refusal: Continuation) -> Continuation:
    """A refusal, of which the first token alone is predicted."""
    return Continuation(
        refusal.prompt_id, refusal.prompt_token_ids, refusal.completion_token_ids[:1]
    )


def _products_of(
    work: Work, position: int, pieces: Sequence[str], text_of_token: Tensor, towards: Tensor
) -> dict[str, Tensor]:
    """`products` `(R, E)` of one layer."""
    name = work.loaded.description.layers[position].experts_name
    experts = work.loaded.model.get_submodule(name)
    device = experts.get_parameter("down_proj").device
    parts = [work.read(piece, *(f"{position}.{of}" for of in PER_TOKEN)) for piece in pieces]
    tokens = joined([LayerTokens(*(tensor.to(device) for tensor in part)) for part in parts])
    return {"products": gradient_products(experts, tokens, text_of_token, towards)}


# ---- along the direction from harmless to harmful --------------------------------------------------------


def projection(work: Work) -> ResponseSums:
    """How far every expert's weighted output lies along that direction; `scores/projection.py` has the formula."""
    direction = _direction(work)
    num_tokens = np.zeros((work.chosen.num_responses, 2), dtype=np.int32)
    total = np.zeros((*num_tokens.shape, *work.shape), dtype=np.float32)
    for index, group in enumerate(work.groups(work.places)):
        make = partial(_along, work, group, direction)
        piece = work.piece("texts", index, make, len(group))
        sums, tokens = work.read(piece, "sums", "num_tokens")
        total[group], num_tokens[group] = sums.numpy(), tokens.numpy()
    return ResponseSums(total, num_tokens, work.loaded.description.layer_indices)


def _direction(work: Work) -> Tensor:
    """`(L, D)` unit differences of mean hidden states, unsafe train prompts less safe ones.

    Raises:
        RoutingError: The experts put out another width than the hidden states have.
    """
    means = []
    for part, places in (("unsafe", work.chosen.unsafe), ("safe", work.chosen.safe)):
        states = []
        for index, group in enumerate(work.groups(places)):
            piece = work.piece(part, index, partial(_last_states, work, group))
            states += work.read(piece, "states")
        means.append(torch.cat(states).mean(dim=0))
    difference = means[0] - means[1]
    width = work.loaded.description.layers[0].hidden_size
    if difference.shape[1] != width:
        raise RoutingError(
            f"the experts of {work.loaded.description.architecture} put out {width} numbers and its hidden states have "
            f"{difference.shape[1]}, so they have no projection on them; rank by another score"
        )
    direction: Tensor = difference / difference.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return direction


@torch.no_grad()
def _last_states(work: Work, group: Sequence[int]) -> dict[str, Tensor]:
    """`states` `(B, L, D)`: what leaves each MoE layer's decoder layer at the last token of the prompt."""
    loaded = work.loaded
    firsts = [first_token(work.texts.refusals[place]) for place in group]
    padded = PaddedRows.of(firsts, loaded.pad_token_id)
    found: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        found.append(hidden[padded.predicts.to(hidden.device)].float().cpu())

    layers = list(loaded.model.get_submodule(loaded.description.decoder_layers_name).children())
    with ExitStack() as stack:
        for index in loaded.description.layer_indices:
            stack.callback(layers[index].register_forward_hook(keep).remove)
        stack.enter_context(computing_distinct(loaded.model, loaded.description))
        padded.through(loaded.model)
    return {"states": torch.stack(found, dim=1)}


@torch.no_grad()
def _along(work: Work, group: Sequence[int], direction: Tensor) -> dict[str, Tensor]:
    """`sums` `(B, 2, L, E)` over the tokens of each segment, and `num_tokens` `(B, 2)`."""
    loaded = work.loaded
    texts = [_fed(work.texts.replies[place]) for place in group]
    padded = PaddedRows.of(texts, loaded.pad_token_id)

    def along(position: int, weighted_TKD: Tensor) -> Tensor:
        return weighted_TKD.float() @ direction[position].to(weighted_TKD.device)

    segment, counted = _segments(work, texts, padded)
    response = torch.arange(len(group))[:, None].expand(segment.shape)
    of_outputs = {work.name: along}
    with ExitStack() as stack:
        summing = ExpertSums(loaded.model, len(group), loaded.description, of_outputs)
        sums = stack.enter_context(summing)
        stack.enter_context(sums.tokens(response, segment, counted))
        sums.expand = stack.enter_context(computing_distinct(loaded.model, loaded.description))
        padded.through(loaded.model)
    num_tokens = [((segment == part) & counted).sum(dim=1) for part in (0, 1)]
    return {
        "sums": sums.totals[work.name].float(),
        "num_tokens": torch.stack(num_tokens, dim=1).int(),
    }


def _fed(reply: Continuation) -> Continuation:
    """A reply with at least one token to predict, so that an empty one is fed its prompt."""
    ids = reply.completion_token_ids or reply.prompt_token_ids[-1:]
    return Continuation(reply.prompt_id, reply.prompt_token_ids, ids)


def _segments(
    work: Work, texts: Sequence[Continuation], padded: PaddedRows
) -> tuple[Tensor, Tensor]:
    """Segment of each token, and whether it counts, two tensors `(B, T)`: as collecting counts them."""
    metadata: Mapping[str, str] = work.run.routing_metadata()
    leading, trailing = json.loads(metadata.get("shared_prompt_tokens", "[0, 0]"))
    place = torch.arange(padded.input_ids.shape[1])[None, :]
    length = torch.tensor([[len(text.prompt_token_ids)] for text in texts])
    is_reply = place >= length
    is_own = (place >= leading) & (place < length - trailing)
    return is_reply.long(), (is_reply | is_own) & padded.attention_mask.bool()
