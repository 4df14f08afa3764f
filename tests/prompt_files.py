"""Prompt files for tests, and what reading a bad one says."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steermoe.errors import PromptError
from steermoe.prompts.formats import read_prompts

ROW = {"prompt": "Name a river.", "label": "safe"}
USER = {"role": "user", "content": "Name a river."}
ASSISTANT = {"role": "assistant", "content": "The Elbe."}
SYSTEM = {"role": "system", "content": "Answer in one word."}


class PromptFiles:
    """Writes prompt files into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, content: list[Any] | str | bytes, name: str = "my prompts.txt") -> Path:
        path = self.folder / name
        if isinstance(content, list):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def as_csv(header: list[str], *rows: list[Any], delimiter: str = ",") -> str:
    sink = io.StringIO()
    csv.writer(sink, delimiter=delimiter).writerows([header, *rows])
    return sink.getvalue()


def parquet(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def arrow(rows: list[Any], *, stream: bool) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def message_of(path: Any, **options: Any) -> str:
    with pytest.raises(PromptError) as caught:
        read_prompts(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def texts(prompts: Any) -> list[str]:
    """The last turn of each prompt."""
    return [prompt.messages[-1]["content"] for prompt in prompts]
