"""Text from a server that speaks OpenAI's protocol, routes from one teacher-forced pass of the local model.

Routing depends on the tokens alone, so the pass gives what the server's model chose, if it has the same weights.
Whether it does is seen from how likely its replies are to the local model: of each group a few are looked at.

Shape legend: C completion tokens of all replies, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steermoe.chat import configs_of
from steermoe.engines.chat_engine import ChatEngine, Rendered, Reply, smallest_type
from steermoe.engines.openai_texts import ServerTexts
from steermoe.engines.scoring import TOGETHER, completion_routes
from steermoe.engines.transformers import TransformersEngine
from steermoe.errors import EngineError
from steermoe.records import Continuation, Sampling

CHECKED = 8
"""Replies of a group whose likelihood is looked at."""

UNLIKELY = 0.5
"""Nats by which a greedy token may be below the likeliest one: kernels differ by less where weights are the same."""

MOST_UNLIKELY = 0.03
"""Share of greedy tokens that may be further below it; or more than one, where there are few."""

LEAST_Z, MOST_SHORTFALL = -6.0, 0.05
"""Sampled replies are less likely than samples of the local model where their mean log-probability is so many standard
errors, and so many nats, below what it expects of its own."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely replies are to the local model.

    Attributes:
        num_tokens: Tokens that were looked at.
        num_unlikely: Greedy ones that are far from the likeliest.
        shortfall: Nats a token by which sampled ones are less likely than the local model's own samples, on average.
        z: The same in standard errors, negative where less likely; 0 for greedy ones.
    """

    num_tokens: int
    num_unlikely: int
    shortfall: float = 0.0
    z: float = 0.0

    @property
    def is_foreign(self) -> bool:
        """Whether another model, template or tokenizer must have made them."""
        if self.num_unlikely:
            return self.num_unlikely > max(1, MOST_UNLIKELY * self.num_tokens)
        return self.z < LEAST_Z and self.shortfall > MOST_SHORTFALL


def likelihood(logits_CV: Tensor, token_ids: Sequence[int], temperature: float) -> Likelihood:
    """How likely tokens are to the model that gave the logits.

    Greedy tokens are compared with the likeliest. The log-probability of a token that is sampled at temperature T from
    `p = softmax(logits / T)` has the mean `sum p log p` and the variance `sum p log^2 p - mean^2`.

    Args:
        logits_CV: What predicts each token.
        token_ids: C of them.
        temperature: At which they are said to be sampled.
    """
    logits_CV = logits_CV.float()
    ids_C1 = torch.tensor(token_ids, device=logits_CV.device).unsqueeze(-1)
    if temperature == 0:
        gap_C = logits_CV.amax(-1) - logits_CV.gather(-1, ids_C1).squeeze(-1)
        return Likelihood(len(token_ids), int((gap_C > UNLIKELY).sum()))
    log_p_CV = torch.log_softmax(logits_CV / temperature, dim=-1)
    p_CV = log_p_CV.exp()
    mean_C = (p_CV * log_p_CV).sum(-1)
    variance_C = (p_CV * log_p_CV**2).sum(-1) - mean_C**2
    excess = float((log_p_CV.gather(-1, ids_C1).squeeze(-1) - mean_C).double().sum())
    spread = float(variance_C.double().sum().clamp_min(1e-12).sqrt())
    return Likelihood(len(token_ids), 0, -excess / len(token_ids), excess / spread)


class OpenAIEngine(ChatEngine):
    """Replies of a server, routes of the local model.

    Args:
        texts: Asks the server.
        local: The model that the server is said to run.
    """

    def __init__(self, texts: ServerTexts, local: TransformersEngine, name: str) -> None:
        super().__init__(
            local.tokenizer,
            local.description,
            configs_of(local.model),
            local.chat_template_kwargs,
        )
        self._texts = texts
        self._local = local
        self._name = name

    def _replies(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[Reply]:
        replies = self._texts.replies(prompts, sampling)
        continuations = [
            Continuation("", tuple(prompt.token_ids), tuple(ids))
            for prompt, ids in zip(prompts, replies, strict=True)
        ]
        made: list[Reply] = []
        small = smallest_type(self.num_experts)
        looked_at, others = continuations[:CHECKED], continuations[CHECKED:]
        parts = [looked_at, *(others[i : i + TOGETHER] for i in range(0, len(others), TOGETHER))]
        for number, together in enumerate(parts):
            routes, logits = self._pass(together, with_logits=number == 0)
            if logits is not None:
                self._check(logits, together, sampling.temperature)
            made += [
                Reply(list(c.completion_token_ids), r.cpu().numpy().astype(small))
                for c, r in zip(together, routes, strict=True)
            ]
        return made

    def _pass(
        self, continuations: Sequence[Continuation], with_logits: bool
    ) -> tuple[list[Tensor], Any]:
        local = self._local
        return completion_routes(
            local.model, local.description, local.pad_token_id, continuations, with_logits
        )

    def _check(
        self, logits: Tensor, continuations: Sequence[Continuation], temperature: float
    ) -> None:
        """Refuse replies that the local model would not have given.

        Raises:
            EngineError: With how unlikely they are.
        """
        ids = [token for c in continuations for token in c.completion_token_ids]
        found = likelihood(logits, ids, temperature)
        if found.is_foreign:
            how = (
                f"{found.num_unlikely} of {found.num_tokens} greedy tokens are more than {UNLIKELY} nats below the "
                "likeliest"
                if temperature == 0
                else f"sampled tokens are {found.shortfall:.2f} nats less likely than its own"
            )
            raise EngineError(
                f"{self._name} does not run this model, template or tokenizer: to the local model {how}; give both the "
                "same weights"
            )
