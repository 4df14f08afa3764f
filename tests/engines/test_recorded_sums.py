"""The sums that an engine keeps of its replies, against one pass over each whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import TinyCheckpoint
from steermoe.analysis.counts import count_response, find_shared_tokens
from steermoe.engines.transformers import TransformersEngine
from steermoe.moe.expert_sums import ExpertSums
from steermoe.records import RECORDED_SUMS, Sampling

CONVERSATIONS = [
    [{"role": "user", "content": text}] for text in ("Hi", "A much longer question", "Why so?")
]


def opened(path: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("architecture", ["olmoe", "qwen3_moe", "mixtral"])
def test_sums_of_padded_replies_are_those_of_whole_texts(
    architecture: str, tiny_checkpoint: TinyCheckpoint
) -> None:
    model, tokenizer = opened(tiny_checkpoint(architecture))
    engine = TransformersEngine(model, tokenizer)
    plain = engine.generate(CONVERSATIONS, Sampling(7))
    assert all(not output.sums for output in plain)
    shared = find_shared_tokens(output.prompt_token_ids for output in plain)
    assert shared.leading and shared.trailing
    engine.shared_tokens = shared
    outputs = engine.generate(CONVERSATIONS, Sampling(7))
    for before, output in zip(plain, outputs, strict=True):
        assert output.generated_token_ids == before.generated_token_ids
        assert np.array_equal(output.routed_experts, before.routed_experts)
        assert set(output.sums) == set(RECORDED_SUMS)
        ids = [*output.prompt_token_ids, *output.generated_token_ids[:-1]]
        num_prompt = len(output.prompt_token_ids)
        place = torch.arange(len(ids))
        own = (place >= shared.leading) & (place < num_prompt - shared.trailing)
        with torch.no_grad(), ExpertSums(model, 1) as sums:
            segment = (place >= num_prompt).long()
            with sums.tokens(torch.zeros(len(ids)), segment, own | (place >= num_prompt)):
                model(torch.tensor([ids]))
        for name in RECORDED_SUMS:
            expected = sums.totals[name][0].float().numpy()
            np.testing.assert_allclose(output.sums[name], expected, rtol=1e-3, atol=1e-4)
        # What was never chosen has no sum, and what was chosen has one.
        active, _ = count_response(output.routed_experts, num_prompt, 8, shared)
        assert np.array_equal(output.sums["contribution"] > 0, active > 0)
