"""Runs of the layout before this one, schema version 1, are moved up when they are opened.

There, verdicts stood beside the replies, the hardened model's replies had a name of their own, and figures were made
while replies were. Everything dear is kept: replies, routing, tables, the hardened model. What is new (values token by
token, `measures.parquet`) is made by the next `steermoe evaluate`; until then the old `evaluation.json` stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.hashes import sha256_of, stamp_of
from steermoe.records import Judgement, Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    BASE,
    HARDENED,
    HARDENED_RESPONSES,
    MODEL,
    PROMPTS,
    RESPONSES,
    RISK,
    RISK_HELD_OUT,
    RISK_PER_BATCH,
    ROUTING,
    RUN_JSON,
    SFT_DATASET,
    TOKENS,
    UNSAFE_EXPERTS,
    VERDICTS,
    replies_of,
)
from steermoe.store.response_tables import RESPONSES_SCHEMA
from steermoe.store.state import FileRecord, ModelRecord, RunState, StepRecord

OLD_VERSION = 1

MOVED_UP = "moved up"
"""Fingerprint of a step of such a run, until the pipeline gives it one by the settings that are stored with it."""

_JUDGE = "keyword"
"""The only judge there was."""

_OLD_DEFAULTS = {
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "lr_scheduler": "linear",
    "lr_scheduler_kwargs": {},
    "max_grad_norm": 1.0,
}
"""Settings of training that every run stored, and that are left to transformers, with the same values, today."""

_WROTE = {
    "collect": (PROMPTS, RESPONSES, TOKENS, ROUTING),
    "judge": (VERDICTS,),
    "identify": (RISK, RISK_PER_BATCH, RISK_HELD_OUT, UNSAFE_EXPERTS),
    "train": (SFT_DATASET, MODEL),
}
"""The steps whose results are those of today."""


def open_state(run: RunDirectory) -> RunState:
    """`run.json`; a run of the layout before this one is moved up first.

    Raises:
        RunDirectoryError: There is no run here, it has another schema version, or it is damaged.
    """
    if run.exists:
        found = run.read_json(RUN_JSON)
        if found.get("schema_version") == OLD_VERSION and {"model", "config"} <= found.keys():
            return move_up(run, found)
    return run.read_state()


def move_up(run: RunDirectory, old: Mapping[str, Any]) -> RunState:
    """Bring the files of a run into today's layout; `run.json` last, so that one that dies meanwhile is moved again.

    Args:
        run: The run.
        old: Its `run.json`.

    Raises:
        RunDirectoryError: A file is missing or damaged, or the directory cannot be written.
    """
    judgements: dict[tuple[str, str, str], Judgement] = {}
    for variant, name in ((BASE, RESPONSES), (HARDENED, HARDENED_RESPONSES)):
        if not run.has(name):
            continue
        table = run.read_table(name)
        if "verdict" in table:
            pairs = zip(table["prompt_id"], table["verdict"], strict=True)
            judgements |= {(variant, i, _JUDGE): Judgement(Verdict(v)) for i, v in pairs}
    if judgements:
        run.write_verdicts(judgements, sorted({variant for variant, *_ in judgements}))
    for variant, name in ((BASE, RESPONSES), (HARDENED, HARDENED_RESPONSES)):
        if run.has(name):
            _write_replies(run, replies_of(variant), run.read_table(name))
    if run.has(PROMPTS) and run.has(TOKENS):
        tokens = run.read_table(TOKENS).set_index("prompt_id")["prompt"]
        _store_rendered(run, tokens)
    state = _state_of(run, old)
    run.write_state(state)
    run.remove(HARDENED_RESPONSES)
    return state


def _write_replies(run: RunDirectory, name: str, table: pd.DataFrame) -> None:
    with run.writing(name) as path:
        rows = table[[column for column in RESPONSES_SCHEMA.names]]
        pq.write_table(pa.Table.from_pandas(rows, RESPONSES_SCHEMA, preserve_index=False), path)


def _store_rendered(run: RunDirectory, texts: pd.Series) -> None:
    """The texts that the prompts were fed as; they stood with the tokens."""
    from dataclasses import replace

    known = texts.to_dict()
    prompts = [replace(p, rendered=known.get(p.prompt_id, "")) for p in run.read_prompts()]
    run.write_prompts(prompts)


def _state_of(run: RunDirectory, old: Mapping[str, Any]) -> RunState:
    """`run.json` as it is today, of what stood in the old one."""
    stages: dict[str, StepRecord] = {}
    files: dict[str, FileRecord] = {}
    before = old.get("stages", {})
    for step, names in _WROTE.items():
        entry = before.get("collect" if step == "judge" else step, {})
        left = [name for name in names if run.has(name)]
        if entry.get("status") != "done" or not left:
            continue
        stages[step] = StepRecord(
            status="done",
            fingerprint=MOVED_UP,
            files=left,
            seconds=0.0 if step == "judge" else entry.get("seconds"),
            peak_memory_bytes=0 if step == "judge" else entry.get("peak_memory_bytes"),
            figures={} if step == "judge" else entry.get("figures", {}),
        )
        for name in left:
            path = run.file(name)
            files[name] = FileRecord(step=step, sha256=sha256_of(path), stamp=stamp_of(path))
    model, config = old["model"], dict(old["config"])
    config["train"] = {
        name: value
        for name, value in config.get("train", {}).items()
        if name not in _OLD_DEFAULTS or value != _OLD_DEFAULTS[name]
    }
    return RunState(
        config=config,
        seed=int(old.get("seed", 0)),
        packages=dict(old.get("packages", {})),
        model=ModelRecord(
            id=model["id"], revision=model.get("revision"), hash=model.get("hash") or ""
        ),
        stages=stages,
        files=files,
    )
