"""Replies with their routing: written group by group, made into tables when all are there, and read back.

Shape legend: N responses, P prompt tokens, G generated tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from steermoe.analysis.counts import RoutingCounts, count_response, find_shared_tokens
from steermoe.errors import RunDirectoryError
from steermoe.records import (
    RECORDED_SUMS,
    IntArray,
    Output,
    ResponseSums,
)
from steermoe.store.files import RunFiles
from steermoe.store.names import (
    BASE,
    RESPONSES,
    ROUTING,
    SHARDS,
    TOKENS,
    replies_of,
    score_sums_of,
    shard_of,
)
from steermoe.store.response_tables import (
    ANSWER,
    SHARD_SCHEMA,
    TOKEN_IDS,
    TOKENS_SCHEMA,
    Row,
    create_counts_file,
    record_sums,
    reply_schema,
    unpack_routed_experts,
    unpack_sums,
)


class ReplyFiles(RunFiles):
    """The files of a run that hold replies, their tokens and their routing."""

    def has_shard(self, prefix: str, index: int) -> bool:
        """Whether a piece of work is done."""
        return self.has(shard_of(prefix, index))

    def has_shards(self, prefix: str) -> bool:
        """Whether any piece of that kind of work is done."""
        return any(True for _ in self.file(SHARDS).glob(f"{prefix}-*.parquet"))

    def write_shard(self, prefix: str, index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the responses of one group: columns of `SHARD_SCHEMA`."""
        with self.writing(shard_of(prefix, index)) as path:
            pq.write_table(pa.Table.from_pylist([dict(r) for r in rows], SHARD_SCHEMA), path)

    def read_shard_routes(
        self, prefix: str, index: int, num_layers: int, top_k: int
    ) -> list[tuple[list[int], IntArray]]:
        """Of each response of a group the tokens that were fed, and their routed experts `(P + G - 1, L, K)`."""
        found = []
        with self.reading(shard_of(prefix, index)) as path:
            for row in pq.read_table(path).to_pylist():
                routes = unpack_routed_experts(row, num_layers, top_k)
                fed = row["prompt_token_ids"] + row["generated_token_ids"]
                found.append((fed[: len(routes)], routes))
        return found

    def merge_shards(
        self, prefix: str, count: int, shape: tuple[int, int], metadata: Mapping[str, str]
    ) -> None:
        """Turn the shards into `responses.parquet`, `tokens.parquet` and `routing.safetensors`.

        Tokens that every prompt shares are no part of the segment `prompt`; the header says how many there are.
        One shard is in memory at a time. The shards are kept: until the stage is done, it may have to do this again.

        Args:
            prefix: Of the shards' names.
            count: How many shards there are.
            shape: `(L, E)`.
            metadata: Goes into the header of `routing.safetensors`; `top_k` is read back from it.
        """
        num_layers, num_experts = shape
        top_k = int(metadata["top_k"])
        shards = [self.file(shard_of(prefix, index)) for index in range(count)]
        num_responses = sum(pq.read_metadata(shard).num_rows for shard in shards)
        shared = find_shared_tokens(_prompt_token_ids(shards))
        header = {
            **metadata,
            "shared_prompt_tokens": json.dumps([shared.leading, shared.trailing]),
        }
        tensors = {
            "active": ("I32", (num_responses, 2, num_layers, num_experts)),
            "num_tokens": ("I32", (num_responses, 2)),
        }
        if record_sums(shards):
            of_scores = ("F32", (num_responses, 2, num_layers, num_experts))
            tensors |= dict.fromkeys(RECORDED_SUMS, of_scores)
        with (
            self.writing(RESPONSES) as responses_path,
            self.writing(TOKENS) as tokens_path,
            self.writing(ROUTING) as routing_path,
        ):
            schema = self._reply_schema(shards)
            arrays = create_counts_file(routing_path, tensors, header)
            at = 0
            with (
                pq.ParquetWriter(responses_path, schema) as responses,
                pq.ParquetWriter(tokens_path, TOKENS_SCHEMA) as tokens,
            ):
                for shard in shards:
                    table = pq.read_table(shard)
                    responses.write_table(table.select(schema.names))
                    tokens.write_table(table.select(TOKENS_SCHEMA.names))
                    for row in table.to_pylist():
                        routed = unpack_routed_experts(row, num_layers, top_k)
                        counted = count_response(
                            routed, row["num_prompt_tokens"], num_experts, shared
                        )
                        arrays["active"][at], arrays["num_tokens"][at] = counted
                        for name, of_score in unpack_sums(row, *shape).items():
                            if name in arrays:
                                arrays[name][at] = of_score
                        at += 1
            for array in arrays.values():
                array.flush()

    def merge_reply_shards(self, prefix: str, indices: Iterable[int], variant: str) -> None:
        """Turn shards into the table of a variant's replies."""
        name = replies_of(variant)
        shards = [self.file(shard_of(prefix, index)) for index in indices]
        schema = self._reply_schema(shards).append(TOKEN_IDS)
        with self.writing(name) as path, pq.ParquetWriter(path, schema) as responses:
            for piece in shards:
                responses.write_table(pq.read_table(piece).select(schema.names))

    def _reply_schema(self, shards: Sequence[Path]) -> pa.Schema:
        return reply_schema(
            pq.read_table(piece, columns=["answer", "generated_text"]) for piece in shards
        )

    def write_replies(self, variant: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a variant's replies, whole: columns of `SHARD_SCHEMA`, of which those of replies are kept."""
        with self.writing(replies_of(variant)) as path:
            table = pa.Table.from_pylist([dict(r) for r in rows], SHARD_SCHEMA)
            pq.write_table(table.select([*reply_schema([table]).names, TOKEN_IDS.name]), path)

    def read_replies(self, variant: str = BASE) -> pd.DataFrame:
        """A variant's replies, one row each."""
        return self.read_table(replies_of(variant))

    def read_answers(self, variant: str) -> dict[str, str | None]:
        """What of a variant's replies is meant for the user, by prompt id; None where a reply ended before that."""
        replies = self.read_replies(variant)
        whole = replies["generated_text"].str.strip()
        found = replies["answer"] if ANSWER.name in replies else whole
        return {
            i: a if isinstance(a, str) else None
            for i, a in zip(replies["prompt_id"], found, strict=True)
        }

    def read_token_ids(self, variant: str) -> dict[str, list[int]]:
        """The generated token ids of a variant's replies, by prompt id; empty where they were not kept."""
        with self.reading(TOKENS if variant == BASE else replies_of(variant)) as path:
            columns = ["prompt_id", TOKEN_IDS.name]
            if TOKEN_IDS.name not in pq.read_schema(path).names:
                return {}
            table = pq.read_table(path, columns=columns)
        return dict(zip(*(table[name].to_pylist() for name in columns), strict=True))

    def read_counts(self) -> RoutingCounts:
        """`routing.safetensors`: counts of every response, in the order of `responses.parquet`."""
        with self.reading(ROUTING) as path, safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            return RoutingCounts(
                active=file.get_tensor("active"),
                num_tokens=file.get_tensor("num_tokens"),
                layer_indices=tuple(json.loads(metadata["layer_indices"])),
            )

    def read_sums(self, score: str) -> ResponseSums | None:
        """The sums of a recorded score or of a pass, of every response in the order of `responses.parquet`.

        None where the engine, or the older steermoe, that the run was collected with did not record it, or no pass was
        made.
        """
        of_pass = score_sums_of(score)
        if self.has(of_pass):
            with self.reading(of_pass) as path, safe_open(path, framework="numpy") as file:
                layers = tuple(json.loads(file.metadata()["layer_indices"]))
                return ResponseSums(file.get_tensor("total"), file.get_tensor("num_tokens"), layers)
        with self.reading(ROUTING) as path, safe_open(path, framework="numpy") as file:
            names: list[str] = file.keys()
            if score not in names:
                return None
            layers = tuple(json.loads(file.metadata()["layer_indices"]))
            return ResponseSums(file.get_tensor(score), file.get_tensor("num_tokens"), layers)

    def write_sums(self, name: str, sums: ResponseSums) -> None:
        """Write the sums that a pass over the model has left of every response."""
        tensors = {
            "total": np.ascontiguousarray(sums.total, dtype=np.float32),
            "num_tokens": np.ascontiguousarray(sums.num_tokens, dtype=np.int32),
        }
        with self.writing(score_sums_of(name)) as path:
            save_file(tensors, path, {"layer_indices": json.dumps(list(sums.layer_indices))})

    def routing_metadata(self) -> dict[str, str]:
        """Header of `routing.safetensors`: layer_indices, top_k, num_experts, model, shared_prompt_tokens."""
        with self.reading(ROUTING) as path, safe_open(path, framework="numpy") as file:
            return dict(file.metadata())

    def iter_outputs(self, prompt_ids: set[str] | None = None) -> Iterator[tuple[Row, Output]]:
        """The responses again as outputs, each with its row of `responses.parquet`, one row group at a time."""
        metadata = self.routing_metadata()
        layer_indices = tuple(json.loads(metadata["layer_indices"]))
        top_k = int(metadata["top_k"])
        for row, token_row in zip_longest(self._iter_rows(RESPONSES), self._iter_rows(TOKENS)):
            if not row or not token_row or row["prompt_id"] != token_row["prompt_id"]:
                raise RunDirectoryError(
                    f"{self.file(RESPONSES)} and {TOKENS} hold other prompts: delete them, and the command that made "
                    "the run makes them again"
                )
            if prompt_ids is not None and row["prompt_id"] not in prompt_ids:
                continue
            output = Output(
                prompt=token_row["prompt"],
                messages=tuple(row["messages"]),
                generated_text=row["generated_text"],
                prompt_token_ids=tuple(token_row["prompt_token_ids"]),
                generated_token_ids=tuple(token_row["generated_token_ids"]),
                routed_experts=unpack_routed_experts(token_row, len(layer_indices), top_k),
                layer_indices=layer_indices,
                answer=row.get(ANSWER.name, row["generated_text"].strip()),
            )
            yield row, output

    def _iter_rows(self, name: str) -> Iterator[Row]:
        """Rows of a Parquet table, one row group in memory at a time."""
        with self.reading(name) as path:
            table = pq.ParquetFile(path)
        for group in range(table.num_row_groups):
            with self.reading(name):
                rows = table.read_row_group(group).to_pylist()
            yield from rows


def _prompt_token_ids(shards: Iterable[Path]) -> Iterator[Any]:
    """The token ids of every prompt, one shard in memory at a time."""
    for shard in shards:
        column = pq.read_table(shard, columns=["prompt_token_ids"]).column(0)
        for ids in column:
            yield ids.values.to_numpy(zero_copy_only=False)
