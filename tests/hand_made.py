"""A run made by hand, as collecting leaves it: one layer of three experts, top-1, and numbers a reader can check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steermoe.config import Config, validate
from steermoe.records import Judgement, Label, Output, Prompt, Split, Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.response_tables import shard_row

UNSAFE, SAFE, BENIGN = Label.UNSAFE, Label.SAFE, Label.BENIGN


@dataclass
class Reply:
    """A response by the experts its generated tokens and its two prompt tokens were routed to."""

    label: Label
    batch_idx: int
    experts: Sequence[int]
    prompt_experts: Sequence[int] = (2, 2)
    split: Split = Split.TRAIN
    verdict: Verdict = Verdict.ANSWERED
    pair_id: str = ""
    category: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def make_run(folder: Path, replies: Sequence[Reply]) -> RunDirectory:
    """A run directory as collecting leaves it; the only layer is decoder layer 7."""
    run = RunDirectory(folder)
    run.create()
    prompts, rows, verdicts = [], [], {}
    for i, reply in enumerate(replies):
        messages = ({"role": "user", "content": f"prompt {i}"},)
        prompt = Prompt(
            f"p{i}",
            reply.label,
            messages,
            f"goal {i}",
            pair_id=reply.pair_id,
            category=reply.category,
            split=reply.split,
        )
        prompts.append(prompt)
        routed = np.array([*reply.prompt_experts, *reply.experts], np.uint8).reshape(-1, 1, 1)
        output = Output(
            "text",
            messages,
            "reply",
            (1,) * len(reply.prompt_experts),
            (2,) * (len(reply.experts) + 1),
            routed,
            (7,),
        )
        place = i if reply.batch_idx >= 0 else -1
        rows.append(shard_row(prompt, output, reply.batch_idx, place))
        verdicts[("base", prompt.prompt_id, "keyword")] = Judgement(reply.verdict)
    run.write_prompts(prompts)
    run.write_shard("responses", 0, rows)
    run.write_verdicts(verdicts, ["base"])
    metadata = {"layer_indices": "[7]", "top_k": "1", "num_experts": "3", "model": "by hand"}
    run.merge_shards("responses", 1, (1, 3), metadata)
    return run


def settings(**values: Any) -> Config:
    chosen = {"threshold": 0.05, "num_permutations": 0, "num_bootstrap": 0} | values
    return validate({"model": {"id": "m"}, "identify": chosen})


TWO_BATCHES = [
    # Batch 0: expert 0 in 1 of 4 safe and 3 of 4 unsafe tokens.
    Reply(SAFE, 0, [0, 1, 1]),
    Reply(SAFE, 0, [1]),
    Reply(UNSAFE, 0, [0, 0]),
    Reply(UNSAFE, 0, [0, 1]),
    # Batch 1: expert 0 in 0 of 2 safe and 1 of 5 unsafe tokens, expert 2 in 4 of those.
    Reply(SAFE, 1, [1, 1]),
    Reply(UNSAFE, 1, [0, 2, 2, 2, 2]),
    # In no batch: one unsafe reply of ten tokens, all expert 0.
    Reply(UNSAFE, -1, [0] * 10),
]


def selected_experts(run: RunDirectory, which: str = "global") -> list[tuple[int, int]]:
    """The experts that a run would train."""
    return [tuple(expert) for expert in run.read_selection().chosen(which)]
