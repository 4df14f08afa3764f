"""What a dense model's MLPs see and do while it replies to calibration prompts.

Shape legend: T tokens, D model width, F neurons of an MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

REPLY_TOKENS = 48
"""Most tokens of a calibration reply."""

BATCH_SIZE = 32
"""Calibration prompts that are fed at once."""

SINK_RATIO = 4.0
"""Inputs this many times longer than the median are left out: they are attention sinks, not content."""


@dataclass(frozen=True)
class Exchange:
    """A calibration prompt with the dense model's reply.

    Attributes:
        token_ids: `(T,)`, prompt and reply, without padding and without the end-of-turn token: like the last token
            of any reply, it is never fed to the model.
        num_prompt_tokens: How many of them are the prompt's.
    """

    token_ids: Tensor
    num_prompt_tokens: int

    @property
    def is_reply(self) -> Tensor:
        """Boolean `(T,)`, true for the tokens of the reply."""
        return torch.arange(len(self.token_ids)) >= self.num_prompt_tokens


@dataclass
class MlpTrace:
    """What one dense MLP saw and did on the calibration tokens.

    Attributes:
        inputs: Pieces `(T, D)` of the MLP's input.
        neurons: Pieces `(T, F)` of its neurons' activations, `act(gate(x)) * up(x)`.
        is_reply: Pieces `(T,)`, true for tokens of a reply.
    """

    inputs: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)
    is_reply: list[Tensor] = field(default_factory=list)

    def content_tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs `(T, D)` and neurons `(T, F)` in fp32, and the mask of replies, attention sinks left out.

        The first token of a sequence draws attention that has nowhere else to go and has a norm many times that of
        the others (Sun et al., arXiv:2402.17762); it would claim a cluster and move every mean.
        """
        inputs_TD = torch.cat(self.inputs).float()
        neurons_TF = torch.cat(self.neurons).float()
        norms_T = inputs_TD.norm(dim=1)
        content_T = norms_T < SINK_RATIO * norms_T.median()
        return inputs_TD[content_T], neurons_TF[content_T], torch.cat(self.is_reply)[content_T]


def calibration_exchanges(
    dense_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[Exchange]:
    """Each prompt, in the chat template if there is one, with the dense model's own greedy reply."""
    texts = list(prompts)
    if tokenizer.chat_template is not None:
        texts = [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
            for prompt in prompts
        ]
    exchanges = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = tokenizer(
            texts[start : start + BATCH_SIZE],
            add_special_tokens=tokenizer.chat_template is None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        model: Any = dense_model  # generate()'s annotations name a protocol that no model meets
        generated = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=REPLY_TOKENS, do_sample=False
        )
        ends = torch.tensor(end_of_turn_ids(dense_model), dtype=torch.long)
        for row, prompt_mask in zip(generated, mask.bool(), strict=True):
            reply = row[len(prompt_mask) :]
            ended = torch.isin(reply, ends).cumsum(0) > 0
            prompt = row[: len(prompt_mask)][prompt_mask]
            exchanges.append(Exchange(torch.cat([prompt, reply[~ended]]), len(prompt)))
    return exchanges


def end_of_turn_ids(model: LlamaForCausalLM) -> list[int]:
    """The token ids that end a reply; there may be several, or none."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    if ends is None:
        return []
    return [ends] if isinstance(ends, int) else list(ends)


def trace_mlps(dense_model: LlamaForCausalLM, exchanges: Sequence[Exchange]) -> list[MlpTrace]:
    """Feed the exchanges and record every MLP's inputs and neurons, layer by layer, padding left out.

    Pieces stay in the model's dtype: at 64 prompts the neurons of a 135M-parameter model are half a GB in bf16.
    """
    traces = []
    with ExitStack() as hooks:
        for layer in dense_model.model.layers:
            trace = MlpTrace()
            traces.append(trace)
            for module, pieces in (
                (layer.mlp, trace.inputs),
                (layer.mlp.down_proj, trace.neurons),
            ):
                hooks.callback(module.register_forward_pre_hook(partial(_record, pieces)).remove)
        for start in range(0, len(exchanges), BATCH_SIZE):
            batch = exchanges[start : start + BATCH_SIZE]
            ids = pad_sequence([exchange.token_ids for exchange in batch], batch_first=True)
            lengths = torch.tensor([len(exchange.token_ids) for exchange in batch])
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            # The decoder alone: logits are of no use here, and the largest matmul of a small model.
            dense_model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            for trace in traces:
                trace.inputs[-1] = trace.inputs[-1][mask]
                trace.neurons[-1] = trace.neurons[-1][mask]
                trace.is_reply += [exchange.is_reply for exchange in batch]
    return traces


def _record(pieces: list[Tensor], module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    """Forward pre-hook: keep the module's input."""
    pieces.append(arguments[0])
