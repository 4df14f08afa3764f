"""What every engine does around a model: from conversations to token ids, and from token ids to outputs.

Shape legend: P prompt tokens, G generated tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from steermoe.chat import encode, ensure_chat_template, ids_that_stop, render
from steermoe.errors import PromptError
from steermoe.moe.description import MoEDescription
from steermoe.reasoning import answer_of
from steermoe.records import Float32Array, IntArray, Message, Output, Sampling


class Rendered(NamedTuple):
    """A conversation as it is fed.

    Attributes:
        messages: Its turns.
        text: What the chat template makes of them.
        token_ids: P ids of that text.
    """

    messages: Sequence[Message]
    text: str
    token_ids: list[int]


class Reply(NamedTuple):
    """What a model made of one prompt.

    Attributes:
        token_ids: G ids; the end-of-turn token, where one was generated, is the last.
        routes: `(P + G - 1, L, K)` expert ids, without rows where nobody asked for them.
        sums: By score, its sums over tokens `(2, L, E)`, where the engine records them.
    """

    token_ids: list[int]
    routes: IntArray
    sums: Mapping[str, Float32Array] = MappingProxyType({})


class ChatEngine:
    """Turns conversations into tokens and replies into outputs; a subclass makes the replies.

    Args:
        tokenizer: The model's tokenizer; without a chat template it is given a plain one.
        description: The model's MoE layers.
        configs: The model's configs, which name the tokens that end a turn: its generation config, if there is one, and
            its text config, which says how long a text may be.
        chat_template_kwargs: Passed to the chat template.
        record: False generates text only, for replies whose routing nobody asks for.

    Raises:
        PromptError: Nothing names a token that ends a turn.
    """

    def __init__(
        self,
        tokenizer: Any,
        description: MoEDescription,
        configs: tuple[Any, Any],
        chat_template_kwargs: Mapping[str, Any] | None = None,
        record: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.description = description
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.record = record
        ensure_chat_template(tokenizer)
        self.stop_token_ids = ids_that_stop(configs, tokenizer)
        self._text_config = configs[1]

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Decoder-layer index of each MoE layer."""
        return self.description.layer_indices

    @property
    def num_experts(self) -> int:
        """Routed experts of one MoE layer."""
        return self.description.num_experts

    @property
    def top_k(self) -> int:
        """Experts chosen for each token."""
        return self.description.top_k

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and reply together, where the model's config says so."""
        length = getattr(self._text_config, "max_position_embeddings", None)
        return int(length) if length else None

    def render(self, messages: Sequence[Message]) -> str:
        """The text the model is fed for a conversation."""
        return render(self.tokenizer, messages, self.chat_template_kwargs)

    def check_length(
        self,
        messages: Sequence[Message],
        max_new_tokens: int,
        name: str = "",
        text: str | None = None,
    ) -> None:
        """Refuse a prompt that leaves no room for its reply.

        Raises:
            PromptError: With the tokens it has and the tokens there are.
        """
        length = self.context_length
        num_tokens = len(encode(self.tokenizer, text or self.render(messages)))
        if length is not None and num_tokens + max_new_tokens > length:
            raise PromptError(
                f"prompt {name or repr(messages[-1]['content'][:40])} has {num_tokens} tokens, and with "
                f"{max_new_tokens} new ones it exceeds the model's context of {length}; shorten it or lower "
                "collect.max_new_tokens"
            )

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        texts: Sequence[str] | None = None,
    ) -> list[Output]:
        """Reply to each conversation.

        Args:
            conversations: Each ends with a user turn.
            sampling: Length, temperature and seed.
            texts: What they were rendered to before; by default they are rendered now.

        Returns:
            One output each, in order.

        Raises:
            PromptError: A conversation does not fit the context.
            ModelError: The model computes numbers that are not finite.
            RoutingError: Routes cannot be told apart, or are none.
        """
        if not conversations:
            return []
        texts = texts or [self.render(messages) for messages in conversations]
        for messages, text in zip(conversations, texts, strict=True):
            self.check_length(messages, sampling.max_tokens, text=text)
        prompts = [
            Rendered(messages, text, encode(self.tokenizer, text))
            for messages, text in zip(conversations, texts, strict=True)
        ]
        replies = self._replies(prompts, sampling)
        return [
            Output(
                prompt=prompt.text,
                messages=tuple(prompt.messages),
                generated_text=self.tokenizer.decode(reply.token_ids, skip_special_tokens=True),
                prompt_token_ids=tuple(prompt.token_ids),
                generated_token_ids=tuple(reply.token_ids),
                routed_experts=reply.routes,
                layer_indices=self.layer_indices,
                answer=answer_of(self.tokenizer, prompt.token_ids, reply.token_ids, prompt.text),
                sums=reply.sums,
            )
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    def _replies(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[Reply]:
        """One reply to each prompt, in order."""
        raise NotImplementedError

    def _no_routes(self) -> IntArray:
        return np.zeros((0, len(self.layer_indices), self.top_k), dtype=np.uint8)

    def _until_stop(self, ids: Sequence[int]) -> list[int]:
        """A row of ids up to its end of turn, which is kept; what follows is padding."""
        for position, token in enumerate(ids):
            if token in self.stop_token_ids:
                return list(ids[: position + 1])
        return list(ids)


def smallest_type(num_experts: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds the id of every expert."""
    return np.uint8 if num_experts <= 256 else np.uint16
