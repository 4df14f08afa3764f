"""A run directory, typed: what each of its files holds.

Shape legend: N responses, L MoE layers, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import save_file

from steermoe.analysis.ablation_figures import AblationFigures
from steermoe.analysis.counts import RoutingCounts, count_response, find_shared_tokens
from steermoe.errors import RunDirectoryError
from steermoe.metrics import Evaluation, MeasureRow
from steermoe.records import (
    RECORDED_SUMS,
    IntArray,
    Judgement,
    Label,
    Output,
    Prompt,
    ResponseSums,
    Split,
)
from steermoe.store.controls_file import ControlFigures
from steermoe.store.files import RunFiles
from steermoe.store.forecast_file import Forecast
from steermoe.store.measure_table import from_measures, to_measures
from steermoe.store.names import (
    ABLATION,
    BASE,
    CHECKPOINTS,
    CONTROL_FIGURES,
    EVALUATION,
    FORECAST,
    MEASURES,
    PROMPTS,
    RESPONSES,
    RESULTS,
    ROUTING,
    RUN_JSON,
    SHARDS,
    TOKENS,
    UNSAFE_EXPERTS,
    VERDICTS,
    replies_of,
    score_sums_of,
    scored_of,
    shard_of,
)
from steermoe.store.response_tables import (
    ANSWER,
    SCORED_SCHEMA,
    SHARD_SCHEMA,
    TOKEN_IDS,
    TOKENS_SCHEMA,
    VERDICTS_SCHEMA,
    Row,
    create_counts_file,
    record_sums,
    reply_schema,
    unpack_routed_experts,
    unpack_sums,
)
from steermoe.store.selection_file import ExpertSet
from steermoe.store.state import SCHEMA_VERSION, RunState


class RunDirectory(RunFiles):
    """One run's files, by what they hold."""

    # ---- the run as a whole ---------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.file(RUN_JSON).is_file()

    @property
    def has_results(self) -> bool:
        """Whether anything was collected here, or is being collected; prompts alone are no result."""
        return any(self.has(name) for name in (SHARDS, *RESULTS))

    def check_not_foreign(self) -> None:
        """Check that no file without a run would be overwritten, or taken for the run's own.

        Raises:
            RunDirectoryError: There is no `run.json`, but something under a name that a run writes.
        """
        names = [PROMPTS, *RESULTS, SHARDS, CHECKPOINTS]
        found = [name for name in names if not self.exists and self.has(name)]
        if found:
            raise RunDirectoryError(
                f"{self.path} holds {', '.join(found)} but no run ({RUN_JSON} is missing), and a run would overwrite "
                "it; choose another --run"
            )

    def read_state(self) -> RunState:
        """`run.json`.

        Raises:
            RunDirectoryError: There is no run here, it has another schema version, or it is damaged.
        """
        if not self.exists:
            raise RunDirectoryError(
                f"no run in {self.path}: {RUN_JSON} is missing; start one with steermoe run"
            )
        found = self.read_json(RUN_JSON)
        version = found.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunDirectoryError(
                f"run directory {self.path} has schema version {version}, this steermoe reads {SCHEMA_VERSION}; "
                "choose another with --run"
            )
        try:
            state, damaged = RunState.model_validate(found), ""
        except ValidationError as error:
            state, damaged = None, ".".join(map(str, error.errors()[0]["loc"]))
        for name, record in state.stages.items() if state is not None else ():
            if record.status == "done" and record.seconds is None:
                damaged = f"stages.{name}.seconds"
        if state is None or damaged:
            raise RunDirectoryError(
                f"{RUN_JSON} in {self.path} is damaged at {damaged}; choose another with --run"
            )
        return state

    def write_state(self, state: RunState) -> None:
        """Write `run.json` whole."""
        self.write_json(RUN_JSON, state.model_dump(mode="json"))

    # ---- unfinished work ------------------------------------------------------------------------

    def has_unfinished(self, pattern: str) -> bool:
        """Whether an interrupted attempt left something to go on from."""
        return bool(pattern) and any(True for _ in self.path.glob(pattern))

    def remove_unfinished(self, pattern: str) -> None:
        """Remove what an attempt would go on from."""
        for path in list(self.path.glob(pattern)) if pattern else ():
            self._delete(path)
        with suppress(OSError):
            self.file(SHARDS).rmdir()

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

    # ---- prompts --------------------------------------------------------------------------------

    def write_prompts(self, prompts: Sequence[Prompt], name: str = PROMPTS) -> None:
        """Write `prompts.jsonl`, or the prompts of a set: the fields of the records, by name."""
        self.write_json_lines(
            name,
            (
                {f.name: prompt[f.name] for f in fields(prompt)}
                | {"messages": [dict(message) for message in prompt.messages]}
                for prompt in prompts
            ),
        )

    def read_prompts(self, name: str = PROMPTS) -> tuple[Prompt, ...]:
        """Read `prompts.jsonl`, or the prompts of a set."""
        prompts = []
        with self.reading(name) as path, path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                row = json.loads(line)
                row |= {"messages": tuple(row["messages"]), "label": Label(row["label"])}
                row["split"] = Split(row["split"]) if row["split"] else None
                prompts.append(Prompt(**row))
        return tuple(prompts)

    # ---- replies and their routing --------------------------------------------------------------

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

    # ---- what is said of replies ----------------------------------------------------------------

    def write_verdicts(
        self, judgements: Mapping[tuple[str, str, str], Judgement], variants: Sequence[str]
    ) -> None:
        """Put the judgements of some variants into `verdicts.parquet`; those of others stay.

        Args:
            judgements: By `(variant, prompt_id, judge)`.
            variants: Those whose earlier judgements are replaced.
        """
        rows = []
        if self.has(VERDICTS):
            before = self.read_table(VERDICTS)
            rows = before[~before["variant"].isin(variants)].to_dict("records")
        rows += [
            {
                "variant": variant,
                "prompt_id": prompt_id,
                "judge": judge,
                "verdict": str(found.verdict),
                "score": found.score,
                "reason": found.reason,
            }
            for (variant, prompt_id, judge), found in judgements.items()
        ]
        for row in rows:
            row["score"] = None if row["score"] != row["score"] else row["score"]
        with self.writing(VERDICTS) as path:
            pq.write_table(pa.Table.from_pylist(rows, VERDICTS_SCHEMA), path)

    def has_verdicts(self, variant: str, judge: str) -> bool:
        """Whether a judge has judged a variant's replies."""
        if not self.has(VERDICTS):
            return False
        table = self.read_table(VERDICTS)
        return bool(((table["variant"] == variant) & (table["judge"] == judge)).any())

    def read_verdicts(self, variant: str, judge: str) -> dict[str, str]:
        """The verdicts of one judge on a variant's replies, by prompt id, in the order of the replies.

        Raises:
            RunDirectoryError: There are none.
        """
        table = self.read_table(VERDICTS)
        rows = table[(table["variant"] == variant) & (table["judge"] == judge)]
        if rows.empty:
            raise RunDirectoryError(
                f"{self.file(VERDICTS)} has no verdicts of the judge {judge} on the replies of the variant {variant}: "
                f"run `steermoe judge --run {self.path}` first"
            )
        return dict(zip(rows["prompt_id"], rows["verdict"], strict=True))

    def read_judged(self, variant: str, judge: str) -> pd.DataFrame:
        """A variant's replies, with the verdicts of one judge as the column `verdict`."""
        replies = self.read_replies(variant)
        verdicts = self.read_verdicts(variant, judge)
        if missing := [i for i in replies["prompt_id"] if i not in verdicts]:
            raise RunDirectoryError(
                f"the judge {judge} has no verdict on {len(missing)} replies of the variant {variant} in {self.path}: "
                "run steermoe judge again"
            )
        return replies.assign(verdict=replies["prompt_id"].map(verdicts))

    def write_scored(self, variant: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what was measured of a variant by feeding it texts: columns of `SCORED_SCHEMA`."""
        with self.writing(scored_of(variant)) as path:
            pq.write_table(pa.Table.from_pylist([dict(r) for r in rows], SCORED_SCHEMA), path)

    def read_scored(self, variant: str) -> pd.DataFrame:
        """What was measured of a variant by feeding it texts."""
        return self.read_table(scored_of(variant))

    # ---- experts, measures ----------------------------------------------------------------------

    def write_selection(self, selection: ExpertSet) -> None:
        """Write `unsafe_experts.json`."""
        self.write_json(UNSAFE_EXPERTS, selection.as_json())

    def read_selection(self) -> ExpertSet:
        """`unsafe_experts.json`."""
        with self.reading(UNSAFE_EXPERTS):
            return ExpertSet.from_json(self.read_json(UNSAFE_EXPERTS))

    def read_forecast(self) -> Forecast:
        """`forecast.json`."""
        with self.reading(FORECAST):
            return Forecast.from_json(self.read_json(FORECAST))

    def read_controls(self) -> ControlFigures:
        """`controls.json`."""
        with self.reading(CONTROL_FIGURES):
            return ControlFigures.from_json(self.read_json(CONTROL_FIGURES))

    def write_measures(self, rows: Sequence[MeasureRow]) -> None:
        """Write `measures.parquet`."""
        with self.writing(MEASURES) as path:
            pq.write_table(from_measures(rows), path)

    def read_measures(self) -> list[MeasureRow]:
        """`measures.parquet`."""
        with self.reading(MEASURES) as path:
            return to_measures(pq.read_table(path))

    def read_evaluation(self) -> Evaluation:
        """`evaluation.json`."""
        return cast("Evaluation", self.read_json(EVALUATION))

    def read_ablation(self) -> AblationFigures:
        """`ablation.json`."""
        return cast("AblationFigures", self.read_json(ABLATION))


def _prompt_token_ids(shards: Iterable[Path]) -> Iterator[Any]:
    """The token ids of every prompt, one shard in memory at a time."""
    for shard in shards:
        column = pq.read_table(shard, columns=["prompt_token_ids"]).column(0)
        for ids in column:
            yield ids.values.to_numpy(zero_copy_only=False)
