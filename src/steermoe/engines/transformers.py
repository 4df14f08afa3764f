"""Text and routed experts from a transformers model.

Shape legend: B prompts of one call, P prompt tokens (padded on the left), G generated tokens, L MoE layers,
K top-k.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from steermoe.analysis.counts import SharedTokens
from steermoe.chat import configs_of
from steermoe.engines.chat_engine import ChatEngine, Rendered, Reply, smallest_type
from steermoe.engines.scoring import by_continuation, completion_logits, passes
from steermoe.errors import ModelError, RoutingError, SteerMoEError, on_one_line
from steermoe.moe.description import MoEDescription
from steermoe.moe.distinct_tokens import computing_distinct
from steermoe.moe.expert_sums import ExpertSums
from steermoe.moe.finite import check_logits
from steermoe.moe.layers import find_moe_layers
from steermoe.moe.routing import RoutingRecorder
from steermoe.records import NO_EXPERT, Continuation, FloatArray, IntArray, Sampling


class TransformersEngine(ChatEngine):
    """Batched generation with left padding, recording what every router chose for every real token.

    Args:
        model: A causal language model with fused experts.
        tokenizer: Its tokenizer; without a chat template it is given a plain one.
        description: The model's MoE layers, where they are known already.
        chat_template_kwargs: Passed to the chat template.
        record: False generates text only, for replies whose routing nobody asks for.
        shared_tokens: Where given, the sums of recorded scores are kept of every reply; these tokens, which all prompts
            of a run share, are no part of their prompts' sums.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        description: MoEDescription | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        record: bool = True,
        shared_tokens: SharedTokens | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            description if description is not None else find_moe_layers(model),
            configs_of(model),
            chat_template_kwargs,
            record,
        )
        self.model = model
        self.shared_tokens = shared_tokens
        self.pad_token_id = padding_of(model, tokenizer, self.stop_token_ids)

    @torch.inference_mode()
    def _replies(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[Reply]:
        """All in one padded call; where a model reads the padding, prompts of one length together, and no others."""
        prompt_ids = [prompt.token_ids for prompt in prompts]
        replies: dict[int, Reply] = {}
        for together in self._padded_together(prompt_ids):
            input_ids, attention_mask = self._pad_left([prompt_ids[i] for i in together])  # (B, P)
            generated, passes, sums = self._generate(input_ids, attention_mask, sampling)
            for row, i in enumerate(together):
                new_ids = self._until_stop(generated[row])
                routes = self._routes_of(row, len(prompt_ids[i]), len(new_ids), passes)
                own = {name: of_rows[row] for name, of_rows in sums.items()}
                replies[i] = Reply(new_ids, routes, own)
        return [replies[i] for i in range(len(prompts))]

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[Continuation, Any]]:
        """Each continuation that has tokens, in order, with the logits `(C, V)` that predict them."""
        for together in passes(continuations):
            logits = completion_logits(self.model, self.description, self.pad_token_id, together)
            yield from zip(together, by_continuation(logits, together), strict=True)

    def _padded_together(self, prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Which prompts go through the model in one call, by their place."""
        places = range(len(prompt_ids))
        if not self.description.reads_padding:
            return [list(places)]
        lengths = sorted({len(ids) for ids in prompt_ids})
        return [[i for i in places if len(prompt_ids[i]) == length] for length in lengths]

    def _generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, sampling: Sampling
    ) -> tuple[list[list[int]], list[IntArray], dict[str, FloatArray]]:
        """New token ids of each row, the routes of each pass `(B, tokens of the pass, L, K)`, sums `(B, 2, L, E)`."""
        greedy = sampling.temperature == 0
        settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers left it untyped
            max_new_tokens=sampling.max_tokens,
            do_sample=not greedy,
            temperature=1.0 if greedy else sampling.temperature,
            top_k=0 if not greedy else 50,
            eos_token_id=self.stop_token_ids,
            pad_token_id=self.pad_token_id,
        )
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "generation_config": settings,
            "logits_processor": LogitsProcessorList([_Checked(self.model)]),
        }
        with (
            torch.random.fork_rng(enabled=not greedy),
            _generating(self.model, settings),
            contiguous_head_input(self.model),
            ExitStack() as stack,
        ):
            if not greedy:
                torch.manual_seed(sampling.seed)
            sums = self._summing(stack, attention_mask)
            expand = stack.enter_context(computing_distinct(self.model, self.description))
            if not self.record:
                ids = self._ids(arguments)
                return ids[:, input_ids.shape[1] :].tolist(), [], {}
            if sums is not None:
                sums.expand = expand
            recorder = stack.enter_context(RoutingRecorder(self.model, self.description))
            ids = self._ids(arguments)
        new_ids = ids[:, input_ids.shape[1] :]
        rows = input_ids.shape[0]
        passes: list[IntArray] = []
        for routes in recorder.take():
            array = self._compact(routes.cpu().numpy())
            passes.append(array.reshape(rows, -1, *array.shape[-2:]))
        if len(passes) != new_ids.shape[1] or passes[0].shape[1] != input_ids.shape[1]:
            raise RoutingError(
                f"{len(passes)} forward passes were recorded for {new_ids.shape[1]} generated tokens; "
                "generation must run one pass a token (no chunked prefill, no assistant model)"
            )
        totals = {} if sums is None else sums.totals
        return (
            new_ids.tolist(),
            passes,
            {name: of.cpu().numpy().astype(np.float32) for name, of in totals.items()},
        )

    def _ids(self, arguments: Mapping[str, Any]) -> Tensor:
        """Tokens of prompts and replies `(B, P + G)`.

        Raises:
            ModelError: The model's code fails: its config asks for what its weights or its kernels cannot do.
        """
        try:
            ids: Tensor = self.model.generate(**arguments)
        except (torch.OutOfMemoryError, SteerMoEError):
            raise
        except RuntimeError as error:
            raise ModelError(
                f"the model cannot generate: {on_one_line(error)}; see that its config.json belongs to its weights, "
                "and try another model.dtype or model.attn_implementation (--debug shows where it fails)"
            ) from error
        return ids

    def _summing(self, stack: ExitStack, attention_mask: torch.Tensor) -> ExpertSums | None:
        """Add up recorded scores for as long as the stack is open, if that was asked for."""
        if self.shared_tokens is None or not self.record:
            return None
        number = attention_mask.cumsum(dim=1)
        length = attention_mask.sum(dim=1, keepdim=True)
        own = attention_mask.bool() & (number > self.shared_tokens.leading)
        own &= number <= length - self.shared_tokens.trailing
        sums = stack.enter_context(ExpertSums(self.model, len(own), self.description))
        stack.enter_context(sums.generation(own, self.stop_token_ids))
        return sums

    def _pad_left(self, prompt_ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        length = max(len(ids) for ids in prompt_ids)
        padded = [[self.pad_token_id] * (length - len(ids)) + list(ids) for ids in prompt_ids]
        mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompt_ids]
        device = self.model.device
        return torch.tensor(padded, device=device), torch.tensor(mask, device=device)

    def _compact(self, ids: IntArray) -> IntArray:
        """Ids in the smallest type that holds every expert, and `NO_EXPERT` where a mask left slots spare."""
        if bool((ids == NO_EXPERT).any()):
            return ids.astype(np.int16 if self.num_experts <= 2**15 else np.int32)
        return ids.astype(smallest_type(self.num_experts))

    def _routes_of(
        self, row: int, num_prompt_tokens: int, num_generated_tokens: int, passes: list[IntArray]
    ) -> IntArray:
        """`(P + G - 1, L, K)` of one row: its prompt without padding, then its generated tokens but the last."""
        if not passes:
            return self._no_routes()
        prompt = passes[0][row, passes[0].shape[1] - num_prompt_tokens :]
        fed = passes[1:num_generated_tokens]
        return np.concatenate([prompt, *(step[row] for step in fed)])


class _Checked(LogitsProcessor):
    """Looks at the logits of each new token, and changes nothing."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_logits(scores, self.model)
        return scores


def padding_of(model: Any, tokenizer: Any, stop_token_ids: Sequence[int]) -> int:
    """A token to pad with. No model reads it, but its embedding is looked up: one that has none would be an error.

    Tokenizers without padding are common, and those that were given `[PAD]` beyond the end of the embedding.
    """
    pad = tokenizer.pad_token_id
    num_embedded = model.get_input_embeddings().num_embeddings
    return int(pad) if pad is not None and pad < num_embedded else stop_token_ids[0]


@contextmanager
def _generating(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """A model in evaluation mode, without generation settings of its own: those would fill what ours leave open."""
    own = model.generation_config
    training = [module for module in model.modules() if module.training]
    model.generation_config = settings
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        for module in training:
            module.training = True


@contextmanager
def contiguous_head_input(model: Any) -> Iterator[None]:
    """Within it, the language-model head reads a contiguous tensor.

    While prompts are read, transformers hands the head a strided slice, the last position of each, and torch then
    multiplies batch by batch with a copy of the head's weight for each prompt: 5 GB and seconds for 96 prompts.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    try:
        yield
    finally:
        handle.remove()
