"""`judge_labels.parquet`: what people say of replies of the run, by which judges are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from steermoe.records import Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.names import JUDGE_LABELS, replies_of

_SCHEMA = pa.schema([(n, pa.string()) for n in ("variant", "prompt_id", "reply_sha256", "label")])


def write_labels(run: RunDirectory, labels: Mapping[tuple[str, str], Verdict]) -> None:
    """Keep labels of replies that the run holds, by variant and prompt id, each with the hash of its reply."""
    texts = _texts(run, sorted({variant for variant, _ in labels}))
    rows = [
        {
            "variant": variant,
            "prompt_id": prompt_id,
            "reply_sha256": _hash(texts[variant, prompt_id]),
            "label": str(label),
        }
        for (variant, prompt_id), label in labels.items()
    ]
    with run.writing(JUDGE_LABELS) as path:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), path)


def read_labels(
    run: RunDirectory, variants: Sequence[str]
) -> tuple[dict[tuple[str, str], Verdict], int]:
    """The labels of some variants' replies, and how many are of replies that the run no longer holds."""
    if not run.has(JUDGE_LABELS):
        return {}, 0
    table = run.read_table(JUDGE_LABELS)
    texts = _texts(run, [variant for variant in variants if run.has(replies_of(variant))])
    labels: dict[tuple[str, str], Verdict] = {}
    for row in table.to_dict("records"):
        reply = (str(row["variant"]), str(row["prompt_id"]))
        if reply in texts and _hash(texts[reply]) == row["reply_sha256"]:
            labels[reply] = Verdict(row["label"])
    return labels, len(table) - len(labels)


def _texts(run: RunDirectory, variants: Sequence[str]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for variant in variants:
        replies = run.read_replies(variant)
        for prompt_id, text in zip(replies["prompt_id"], replies["generated_text"], strict=True):
            found[variant, prompt_id] = text
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
