"""The run directory: the only code that knows file names inside it.

Every file is written whole: under a temporary name first, then renamed. Nothing here is ever pickled.

Shape legend: L MoE layers, E experts.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from steermoe.analysis.counts import RoutingCounts, count_response, find_shared_tokens
from steermoe.errors import RunDirectoryError
from steermoe.hashes import sha256_of
from steermoe.records import Label, Output, Prompt, Split
from steermoe.store.response_tables import (
    RESPONSES_SCHEMA,
    SHARD_SCHEMA,
    TOKENS_SCHEMA,
    create_counts_file,
    unpack_routed_experts,
)

SCHEMA_VERSION = 1

RUN_JSON = "run.json"
PROMPTS = "prompts.jsonl"
RESPONSES = "responses.parquet"
TOKENS = "tokens.parquet"
ROUTING = "routing.safetensors"
RISK_PER_BATCH = "risk_diff_per_batch.parquet"
RISK = "risk_diff.parquet"
RISK_HELD_OUT = "risk_diff_heldout.parquet"
UNSAFE_EXPERTS = "unsafe_experts.json"
SFT_DATASET = "sft_dataset.jsonl"
MODEL = "model"
EVALUATION = "evaluation.json"
HARDENED_RESPONSES = "hardened_responses.parquet"
ABLATION = "ablation.json"
ABLATION_FIGURES = "ablation.parquet"
REPORT = "report.html"
SHARDS = "shards"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


class RunDirectory:
    """One run's files. Opening it creates nothing; `create` does.

    Attributes:
        path: The directory.
        num_changes: How many files were written or removed through this object, other than `run.json` and what
            `remove_unfinished` removes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.num_changes = 0
        self._is_new = False
        self._new_files: list[str] = []

    def file(self, name: str) -> Path:
        """Where a file of the run is."""
        return self.path / name

    def create(self) -> None:
        """Make the directory, and check that it can be written to.

        Raises:
            RunDirectoryError: It cannot.
        """
        try:
            self._is_new = self._is_new or not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunDirectoryError(
                f"run directory {self.path} cannot be written: {error.strerror}; choose another with --run"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: a second process that wants it is refused. The system frees the lock of a dead one.

        Raises:
            RunDirectoryError: Somebody else holds it.
        """
        self.create()
        self._note_if_new(LOCK)
        lock = FileLock(self.file(LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunDirectoryError(
                f"run directory {self.path} is in use by another steermoe; wait for it, or choose another with --run"
            ) from None
        try:
            yield
        finally:
            lock.release()

    # ---- run.json -------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.file(RUN_JSON).is_file()

    @property
    def holds_work(self) -> bool:
        """Whether anything was collected here, or is being collected; prompts alone are no work."""
        results = (name for name in WRITTEN_BY if name != PROMPTS)
        return any(self.file(name).exists() for name in (SHARDS, *results))

    def refuse_strangers(self) -> None:
        """Check that no file without a run would be overwritten, or taken for the run's own.

        Raises:
            RunDirectoryError: There is no `run.json`, but something under a name that a run writes.
        """
        names = [*WRITTEN_BY, SHARDS, CHECKPOINTS]
        found = [name for name in names if not self.exists and self.file(name).exists()]
        if found:
            raise RunDirectoryError(
                f"{self.path} holds {', '.join(found)} but no run ({RUN_JSON} is missing), and a run would overwrite "
                "it; choose another --run"
            )

    def discard(self) -> None:
        """Remove the files that were made through this object, and the directory if it was made and that was all."""
        for name in reversed(self._new_files):
            self._delete(self.file(name))
        if self._is_new:
            with suppress(OSError):
                self.path.rmdir()

    def _note_if_new(self, name: str) -> None:
        if not self.file(name).exists():
            self._new_files.append(name)

    def _note_change(self, name: str) -> None:
        if name != RUN_JSON:
            self.num_changes += 1

    def read_run(self) -> dict[str, Any]:
        """`run.json`.

        Raises:
            RunDirectoryError: There is no run here, or it has another schema version.
        """
        if not self.exists:
            raise RunDirectoryError(
                f"no run in {self.path}: {RUN_JSON} is missing; start one with steermoe run"
            )
        run = self._read_json(RUN_JSON)
        version = run.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RunDirectoryError(
                f"run directory {self.path} has schema version {version}, this steermoe reads {SCHEMA_VERSION}; "
                "choose another with --run"
            )
        return run

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Write `run.json` whole."""
        self.write_json(RUN_JSON, {"schema_version": SCHEMA_VERSION, **run})

    # ---- whole files ----------------------------------------------------------------------------

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path that becomes the file of that name when the block ends well.

        Raises:
            RunDirectoryError: The disk is full or the directory cannot be written.
        """
        target = self.file(name)
        temporary = target.with_name(f".{target.name}.partial")
        self._note_if_new(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
            self._note_change(name)
        except OSError as error:
            raise RunDirectoryError(
                f"{target} cannot be written: {error.strerror or error}; free space or choose another --run"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def writing_folder(self, name: str) -> Iterator[Path]:
        """The same for a folder: the old one is replaced only when the new one is complete."""
        target = self.file(name)
        temporary = target.with_name(f".{target.name}.partial")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            self._note_change(name)
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        except Exception as error:
            reason = disk_error(error)
            if reason is None:
                raise
            raise RunDirectoryError(
                f"{target} cannot be written: {reason}; free space or choose another --run"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON that people can read."""
        with self.writing(name) as path:
            path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def _read_json(self, name: str) -> dict[str, Any]:
        with self._reading(name) as path:
            value = json.loads(path.read_text("utf-8"))
            if not isinstance(value, dict):
                raise ValueError(f"it holds a {type(value).__name__}")
            return value

    def write_json_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object a line."""
        with self.writing(name) as path, path.open("w", encoding="utf-8", newline="\n") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a DataFrame as Parquet, without its index."""
        with self.writing(name) as path:
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)

    def read_table(self, name: str) -> pd.DataFrame:
        """Read a Parquet table.

        Raises:
            RunDirectoryError: It is missing or damaged.
        """
        with self._reading(name) as path:
            return cast(pd.DataFrame, pq.read_table(path).to_pandas())

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """The path of a file to read; whatever goes wrong inside is told as damage to that file.

        Raises:
            RunDirectoryError: It is missing or damaged.
        """
        path = self.file(name)
        if not path.is_file():
            raise RunDirectoryError(
                f"{path} is missing: run `steermoe {WRITTEN_BY.get(name, 'run')} --run {self.path}` first"
            )
        try:
            yield path
        except _DAMAGE as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            advice = (
                "nothing else says what the run was made with; choose another with --run"
                if name == RUN_JSON
                else "delete it, and the command that made the run makes it again"
            )
            raise RunDirectoryError(f"{path} is damaged ({reason}): {advice}") from None

    # ---- what a stage leaves --------------------------------------------------------------------

    def left_by(self, stage: str) -> dict[str, str]:
        """The files and folders of a stage that are there, each with the SHA-256 of its content."""
        return {
            name: sha256_of(self.file(name))
            for name, writer in WRITTEN_BY.items()
            if writer == stage and self.file(name).exists()
        }

    def lacks(self, stage: str, left: Iterable[str] = ()) -> list[str]:
        """What a finished stage left and is not there: what it said it left, and what it always leaves."""
        left = set(left)
        return [
            name
            for name, writer in WRITTEN_BY.items()
            if writer == stage
            and (name in left or name not in _NOT_ALWAYS)
            and not self.file(name).exists()
        ]

    def holds_unfinished(self, stage: str) -> bool:
        """Whether an interrupted attempt at a stage left something to go on from."""
        return any(True for _ in self._unfinished(stage))

    def remove_unfinished(self, stage: str) -> None:
        """Remove what a stage would go on from; that of other stages is kept."""
        for path in list(self._unfinished(stage)):
            self._delete(path)
        with suppress(OSError):
            self.file(SHARDS).rmdir()

    def _unfinished(self, stage: str) -> Iterator[Path]:
        pattern = _UNFINISHED.get(stage)
        return self.path.glob(pattern) if pattern is not None else iter(())

    # ---- prompts --------------------------------------------------------------------------------

    def write_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Write `prompts.jsonl`."""
        self.write_json_lines(
            PROMPTS,
            (
                {
                    "prompt_id": p.prompt_id,
                    "label": p.label,
                    "messages": [dict(m) for m in p.messages],
                    "goal": p.goal,
                    "pair_id": p.pair_id,
                    "category": p.category,
                    "split": p.split,
                    "source": p.source,
                }
                for p in prompts
            ),
        )

    def read_prompts(self) -> tuple[Prompt, ...]:
        """Read `prompts.jsonl`."""
        prompts = []
        with self._reading(PROMPTS) as path, path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                row = json.loads(line)
                row |= {"messages": tuple(row["messages"]), "label": Label(row["label"])}
                row["split"] = Split(row["split"]) if row["split"] else None
                prompts.append(Prompt(**row))
        return tuple(prompts)

    # ---- responses and their routing ------------------------------------------------------------

    def shard_name(self, index: int, prefix: str = "responses") -> str:
        """Name of the shard of one generated group of prompts."""
        return f"{SHARDS}/{prefix}-{index:05d}.parquet"

    def write_shard(
        self, index: int, rows: Sequence[Mapping[str, Any]], prefix: str = "responses"
    ) -> None:
        """Write the responses of one group: columns of `SHARD_SCHEMA`."""
        with self.writing(self.shard_name(index, prefix)) as path:
            pq.write_table(pa.Table.from_pylist([dict(r) for r in rows], SHARD_SCHEMA), path)

    def merge_shards(self, count: int, shape: tuple[int, int], metadata: Mapping[str, str]) -> None:
        """Turn the shards into `responses.parquet`, `tokens.parquet` and `routing.safetensors`.

        Tokens that every prompt shares are no part of the segment `prompt`; the header says how many there are.
        One shard is in memory at a time. The shards are kept: until the stage is done, it may have to do this again.

        Args:
            count: How many shards there are.
            shape: `(L, E)`.
            metadata: Goes into the header of `routing.safetensors`; `top_k` is read back from it.
        """
        num_layers, num_experts = shape
        top_k = int(metadata["top_k"])
        shards = [self.file(self.shard_name(index)) for index in range(count)]
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
        with (
            self.writing(RESPONSES) as responses_path,
            self.writing(TOKENS) as tokens_path,
            self.writing(ROUTING) as routing_path,
        ):
            arrays = create_counts_file(routing_path, tensors, header)
            at = 0
            with (
                pq.ParquetWriter(responses_path, RESPONSES_SCHEMA) as responses,
                pq.ParquetWriter(tokens_path, TOKENS_SCHEMA) as tokens,
            ):
                for shard in shards:
                    table = pq.read_table(shard)
                    responses.write_table(table.select(RESPONSES_SCHEMA.names))
                    tokens.write_table(table.select(TOKENS_SCHEMA.names))
                    for row in table.to_pylist():
                        routed = unpack_routed_experts(row, num_layers, top_k)
                        counted = count_response(
                            routed, row["num_prompt_tokens"], num_experts, shared
                        )
                        arrays["active"][at], arrays["num_tokens"][at] = counted
                        at += 1
            for array in arrays.values():
                array.flush()

    def merge_response_shards(self, indices: Iterable[int], prefix: str, name: str) -> None:
        """Turn shards into a table of responses alone."""
        with self.writing(name) as path, pq.ParquetWriter(path, RESPONSES_SCHEMA) as responses:
            for index in indices:
                table = pq.read_table(self.file(self.shard_name(index, prefix)))
                responses.write_table(table.select(RESPONSES_SCHEMA.names))

    def read_responses(self) -> pd.DataFrame:
        """`responses.parquet`, one row a response."""
        return self.read_table(RESPONSES)

    def read_counts(self) -> RoutingCounts:
        """`routing.safetensors`: counts of every response, in the order of `responses.parquet`."""
        with self._reading(ROUTING) as path, safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            return RoutingCounts(
                active=file.get_tensor("active"),
                num_tokens=file.get_tensor("num_tokens"),
                layer_indices=tuple(json.loads(metadata["layer_indices"])),
            )

    def routing_metadata(self) -> dict[str, str]:
        """Header of `routing.safetensors`: layer_indices, top_k, num_experts, model, shared_prompt_tokens."""
        with self._reading(ROUTING) as path, safe_open(path, framework="numpy") as file:
            return dict(file.metadata())

    def iter_outputs(
        self, prompt_ids: set[str] | None = None
    ) -> Iterator[tuple[dict[str, Any], Output]]:
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
            )
            yield row, output

    def _iter_rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a Parquet table, one row group in memory at a time."""
        with self._reading(name) as path:
            table = pq.ParquetFile(path)
        for group in range(table.num_row_groups):
            with self._reading(name):
                rows = table.read_row_group(group).to_pylist()
            yield from rows

    # ---- experts, evaluation --------------------------------------------------------------------

    def read_unsafe_experts(self) -> dict[str, Any]:
        """`unsafe_experts.json`."""
        return self._read_json(UNSAFE_EXPERTS)

    def read_evaluation(self) -> dict[str, Any]:
        """`evaluation.json`."""
        return self._read_json(EVALUATION)

    def read_ablation(self) -> dict[str, Any]:
        """`ablation.json`."""
        return self._read_json(ABLATION)

    def remove(self, name: str) -> None:
        """Delete a file or folder of the run, if it is there."""
        if self.file(name).exists():
            self._note_change(name)
        self._delete(self.file(name))

    def _delete(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _prompt_token_ids(shards: Iterable[Path]) -> Iterator[Any]:
    """The token ids of every prompt, one shard in memory at a time."""
    for shard in shards:
        column = pq.read_table(shard, columns=["prompt_token_ids"]).column(0)
        for ids in column:
            yield ids.values.to_numpy(zero_copy_only=False)


WRITTEN_BY = {
    PROMPTS: "collect",
    RESPONSES: "collect",
    TOKENS: "collect",
    ROUTING: "collect",
    RISK: "identify",
    RISK_PER_BATCH: "identify",
    RISK_HELD_OUT: "identify",
    UNSAFE_EXPERTS: "identify",
    SFT_DATASET: "train",
    MODEL: "train",
    HARDENED_RESPONSES: "evaluate",
    EVALUATION: "evaluate",
    REPORT: "report",
    ABLATION: "ablate",
    ABLATION_FIGURES: "ablate",
}
"""The stage that writes each file or folder of a finished run."""

_NOT_ALWAYS = (
    RISK_HELD_OUT,
    SFT_DATASET,
    MODEL,
    HARDENED_RESPONSES,
    EVALUATION,
    ABLATION,
    ABLATION_FIGURES,
)
"""What a stage does not write where it has nothing to do."""

_UNFINISHED = {
    "collect": f"{SHARDS}/*responses-*",
    "train": CHECKPOINTS,
    "evaluate": f"{SHARDS}/*hardened-*",
    "ablate": f"{SHARDS}/*ablation-*",
}
"""What an interrupted stage goes on from, half-written files included: its own shards, or the trainer's checkpoints."""

_OF_THE_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
)

_DAMAGE = (ValueError, KeyError, TypeError, OSError, pa.ArrowException, SafetensorError)
"""What reading a damaged file raises, one library or the other."""


def files_left(stages: Mapping[str, Any], name: str) -> dict[str, str] | None:
    """What a stage left, and the hash of each: `files` in `run.json`. None for one that is not done."""
    stage = stages.get(name, {})
    left: dict[str, str] | None = stage.get("files") if stage.get("status") == "done" else None
    return left


def disk_error(error: Exception) -> str | None:
    """What the system says of a file that could not be written; None if an error is about something else.

    The libraries that write models have errors of their own for it, some of them without a class.
    """
    if isinstance(error, OSError):
        return error.strerror if error.errno in _OF_THE_DISK else None
    text = str(error)
    if isinstance(error, SafetensorError) or "os error" in text:
        return text.rpartition(": ")[2]
    if isinstance(error, RuntimeError) and ("iostream" in text or "inline_container" in text):
        return "torch could not write it all"
    return None
