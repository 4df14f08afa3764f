"""What a response looks like in the files of a run: the columns of its tables, and how its routes are packed.

Shape legend: P prompt tokens, G generated tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.records import NO_BATCH, RECORDED_SUMS, Float32Array, IntArray, Output, Prompt

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

RESPONSES_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("batch_idx", pa.int32()),
        ("in_batch_idx", pa.int32()),
        ("messages", _MESSAGES),
        ("generated_text", pa.string()),
        ("num_prompt_tokens", pa.int32()),
        ("num_generated_tokens", pa.int32()),
    ]
)

TOKENS_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("generated_token_ids", pa.list_(pa.int32())),
        ("routed_experts", pa.large_binary()),
        ("routed_experts_dtype", pa.string()),
    ]
)
"""The tokens behind a response, and their routed experts `(P + G - 1, L, K)` in C order."""

VERDICTS_SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("prompt_id", pa.string()),
        ("judge", pa.string()),
        ("verdict", pa.string()),
        ("score", pa.float64()),
        ("reason", pa.string()),
    ]
)

SCORED_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("quantity", pa.string()),
        ("values", pa.list_(pa.float64())),
    ]
)
"""What was measured of a variant on a text, token by token: `kl`, `reply_log_prob`, `refusal_log_prob`, in nats."""

ANSWER = pa.field("answer", pa.string())
"""The reply without its reasoning, null where it ended inside that: a column of tables of models that reason."""

TOKEN_IDS = TOKENS_SCHEMA.field("generated_token_ids")
"""A column of the tables of variants whose other tokens are not kept; the base model's are in `tokens.parquet`."""
SUMS = tuple(pa.field(name, pa.large_binary()) for name in RECORDED_SUMS)
"""Sums of recorded scores `(2, L, E)` in C order, little-endian float32; null where an engine does not record them."""

SHARD_SCHEMA = pa.schema(
    [
        *RESPONSES_SCHEMA,
        ANSWER,
        *[TOKENS_SCHEMA.field(i) for i in range(1, len(TOKENS_SCHEMA))],
        *SUMS,
    ]
)


Row = dict[str, Any]
"""A row of a table of replies, by column."""


def shard_row(
    prompt: Prompt, output: Output, batch_idx: int = NO_BATCH, in_batch_idx: int = NO_BATCH
) -> Row:
    """One response as a row of `SHARD_SCHEMA`."""
    routed = np.ascontiguousarray(output.routed_experts)
    return {
        "prompt_id": prompt.prompt_id,
        "label": prompt.label,
        "split": prompt.split,
        "batch_idx": batch_idx,
        "in_batch_idx": in_batch_idx,
        "messages": [dict(message) for message in output.messages],
        "generated_text": output.generated_text,
        "answer": output.answer,
        "num_prompt_tokens": len(output.prompt_token_ids),
        "num_generated_tokens": len(output.generated_token_ids),
        "prompt": output.prompt,
        "prompt_token_ids": list(output.prompt_token_ids),
        "generated_token_ids": list(output.generated_token_ids),
        "routed_experts": routed.tobytes(),
        "routed_experts_dtype": routed.dtype.str,
        **{name: of.astype("<f4").tobytes() for name, of in output.sums.items()},
    }


def unpack_routed_experts(row: Mapping[str, Any], num_layers: int, top_k: int) -> IntArray:
    """The routed experts `(P + G - 1, L, K)` of a row of tokens."""
    flat = np.frombuffer(row["routed_experts"], dtype=np.dtype(row["routed_experts_dtype"]))
    return flat.reshape(-1, num_layers, top_k)


def unpack_sums(
    row: Mapping[str, Any], num_layers: int, num_experts: int
) -> dict[str, Float32Array]:
    """The sums of recorded scores `(2, L, E)` of a row of a shard, by score; none where they were not recorded."""
    return {
        name: np.frombuffer(row[name], dtype="<f4").reshape(2, num_layers, num_experts)
        for name in RECORDED_SUMS
        if row.get(name) is not None
    }


def record_sums(shards: Iterable[Path]) -> bool:
    """Whether every response of some shards has the sums of recorded scores."""
    for shard in shards:
        found = pq.read_schema(shard)
        if any(name not in found.names for name in RECORDED_SUMS):
            return False
        if any(pq.read_table(shard, columns=[name]).column(0).null_count for name in RECORDED_SUMS):
            return False
    return True


_DTYPES: Mapping[str, type[np.generic]] = {"I32": np.int32, "F32": np.float32}
"""What safetensors calls the types of our tensors."""


def create_counts_file(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> dict[str, np.memmap[Any, Any]]:
    """Lay out a safetensors file of 32-bit numbers and map its tensors, so that they are filled without holding them.

    Args:
        path: The file, new.
        tensors: Name to type, `I32` or `F32`, and shape.
        metadata: Goes into the header.

    Raises:
        OSError: The disk has no room for it.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    starts: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + 4 * int(np.prod(shape))
        starts[name] = start
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, ensure_ascii=False).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)  # the format wants aligned data
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        size = 8 + len(encoded) + end
        out.truncate(size)
        if hasattr(os, "posix_fallocate"):
            # A full disk must be an error here, not a bus error when the map is written.
            os.posix_fallocate(out.fileno(), 0, size)
    return {
        name: np.memmap(
            path,
            _DTYPES[dtype],
            "r+",
            offset=8 + len(encoded) + starts[name],
            shape=shape,
        )
        for name, (dtype, shape) in tensors.items()
    }


def reply_schema(pieces: Iterable[pa.Table]) -> pa.Schema:
    """The columns of a table of replies: with `answer` where any reply differs from what is meant for the user."""
    reasons = any(
        answer != text.strip()
        for piece in pieces
        for answer, text in zip(
            piece["answer"].to_pylist(), piece["generated_text"].to_pylist(), strict=True
        )
    )
    return RESPONSES_SCHEMA.append(ANSWER) if reasons else RESPONSES_SCHEMA
