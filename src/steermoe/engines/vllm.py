"""Text and routed experts from vLLM, in a process of its own or from the caller's `vllm.LLM`.

Shape legend: P prompt tokens, G generated tokens, H decoder layers (dense ones too), L MoE layers, K top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from transformers import GenerationConfig

from steermoe.engines.chat_engine import ChatEngine, Rendered, Reply
from steermoe.engines.route_check import checked_routes
from steermoe.engines.vllm_generator import VLLMGenerator
from steermoe.moe.configs import read_config
from steermoe.moe.description import MoEDescription
from steermoe.moe.layers import load_description
from steermoe.records import Sampling


class Replies(Protocol):
    """Where the replies of vLLM come from."""

    def replies(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_token_ids: Sequence[int]
    ) -> list[Reply]:
        """Reply to prompts, given as token ids; the routes of a reply are `(P + G - 1, H, K)`."""
        ...


class VLLMEngine(ChatEngine):
    """Continuous batching by vLLM, with the routes that it returns.

    Args:
        replies: A `VLLMGenerator`, or a `VLLMProcess`.
        tokenizer: The model's tokenizer; vLLM is fed token ids.
        description: The model's MoE layers.
        configs: Its generation config, if there is one, and its text config.
        chat_template_kwargs: Passed to the chat template.
        record: False generates text only.
    """

    def __init__(
        self,
        replies: Replies,
        tokenizer: Any,
        description: MoEDescription,
        configs: tuple[Any, Any],
        chat_template_kwargs: Mapping[str, Any] | None = None,
        record: bool = True,
    ) -> None:
        super().__init__(tokenizer, description, configs, chat_template_kwargs, record)
        self._source = replies

    @classmethod
    def of(cls, llm: Any, tokenizer: Any) -> Self:
        """An engine of the caller's `vllm.LLM`.

        Raises:
            ModelError: It cannot tell its routes, or its model is not supported.
        """
        model = llm.llm_engine.vllm_config.model_config
        how = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        return cls(
            VLLMGenerator(llm),
            tokenizer,
            load_description(model.model, dequantize=True, **how),
            stored_configs(model.model, **how),
        )

    def _replies(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[Reply]:
        """All at once: vLLM makes the batches. Rows of dense layers are dropped."""
        ids = [prompt.token_ids for prompt in prompts]
        made = self._source.replies(ids, sampling, self.stop_token_ids)
        if not self.record:
            return [Reply(reply.token_ids, self._no_routes()) for reply in made]
        lengths = [len(p) + len(reply.token_ids) - 1 for p, reply in zip(ids, made, strict=True)]
        routes = checked_routes(self.description, [reply.routes for reply in made], lengths)
        return [Reply(reply.token_ids, r) for reply, r in zip(made, routes, strict=True)]


def stored_configs(
    source: str, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """A model's generation config, None where it has none, and its text config."""
    config = read_config(source, revision, trust_remote_code)
    try:
        generation = GenerationConfig.from_pretrained(source, revision=revision or "main")
    except OSError:
        generation = None
    return generation, config.get_text_config()
