"""What steps read, and how it is told whether that has changed.

A step is done again only if something that it reads is other than it was. So each input has a digest of exactly what
is read of it: of a whole file, or of the part that matters (of all verdicts, those of one judge on one variant's
replies; of a selection, the experts that are trained).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steermoe.capability.items import BUILTIN_CAPABILITY, builtin_items, chosen_items
from steermoe.config import Config
from steermoe.errors import PromptError, RunDirectoryError
from steermoe.hashes import sha256_of, stamp_of
from steermoe.judges.kinds import judge_version
from steermoe.prompts.sources import content_hash
from steermoe.records import Verdict
from steermoe.store.directory import RunDirectory
from steermoe.store.names import (
    BASE,
    CONTROL,
    MODEL,
    MODEL_CARD,
    PROMPTS,
    UNSAFE_EXPERTS,
    VERDICTS,
    WITHOUT,
    command_for,
    replies_of,
    scored_of,
)
from steermoe.store.state import FileRecord, RunState


@dataclass(frozen=True, slots=True)
class Ledger:
    """A run as its steps find it.

    Attributes:
        directory: Its files.
        config: All settings, as they were asked for.
        state: `run.json` as it will be written.
    """

    directory: RunDirectory
    config: Config
    state: RunState


@dataclass(frozen=True, slots=True)
class Input:
    """Something that a step reads.

    Attributes:
        name: As `run.json` and messages call it.
        files: The run's files in which it lies; `*` stands for any variant.
        digest: Hash of what is read of it; empty where it is not there.
    """

    name: str
    files: tuple[str, ...]
    digest: Callable[[Ledger], str]


def whole_file(name: str) -> Input:
    """All of a file or folder of the run."""
    return Input(name, (name,), lambda ledger: file_digest(ledger, name))


def verdicts_on(variant: str) -> Input:
    """What the run's judge says of a variant's replies."""

    def digest(ledger: Ledger) -> str:
        return _hash(_verdicts(ledger, variant))

    return Input(f"verdicts on {variant}", (VERDICTS,), digest)


def _verdicts_on_plain_goals(ledger: Ledger) -> str:
    if not ledger.directory.has(PROMPTS):
        return ""
    plain = {p.prompt_id for p in ledger.directory.read_prompts() if p.is_plain_goal}
    verdicts = _verdicts(ledger, BASE)
    return _hash({i: v == Verdict.REFUSED for i, v in verdicts.items() if i in plain})


def _trained_selection(ledger: Ledger) -> str:
    if not ledger.directory.has(UNSAFE_EXPERTS):
        return ""
    found, settings = ledger.directory.read_selection(), ledger.config.train
    read: list[Any] = [sorted(found.chosen(settings.experts))]
    if settings.mask_scope != "off" and settings.mask == "batch":
        read.append(sorted((i, sorted(chosen)) for i, chosen in found.per_batch.items()))
    return _hash(read)


def _judges(ledger: Ledger) -> str:
    names = (ledger.config.judge.main, *ledger.config.judge.others)
    return _hash([[name, judge_version(name, ledger.config.judge)] for name in names])


def _prompt_files(ledger: Ledger) -> str:
    return _hash([content_of(source) for source in ledger.config.prompts.sources])


def content_of(source: str) -> str:
    """Hash of what a prompt file holds, and of how it is read."""
    try:
        return content_hash(source)
    except PromptError:
        return "unreadable"  # reading it as prompts says why


def _passes(ledger: Ledger) -> str:
    from steermoe.stages.scoring import passes_of, ranks_by_gradients

    config = ledger.config
    return _hash([passes_of(config), ranks_by_gradients(config)])


def _capability_items(ledger: Ledger) -> str:
    limit = ledger.config.evaluate.benchmark_limit
    return _hash([repr(item) for item in chosen_items(builtin_items(), limit)])


def _tasks_of_benchmarks(ledger: Ledger) -> str:
    from steermoe.harness.benchmarks import benchmark_named

    names = [n for n in ledger.config.evaluate.benchmarks if n != BUILTIN_CAPABILITY]
    return _hash([benchmark_named(name).stamp() for name in names])


BASE_MODEL = Input(
    "base model", (), lambda ledger: ledger.state.model.hash or ledger.state.model.commit or ""
)
PASSES = Input("passes for scores", (), _passes)
PROMPT_FILES = Input("prompt files", (), _prompt_files)
JUDGES = Input("judges", (), _judges)
PLAIN_GOALS = Input("verdicts on plain goals", (VERDICTS, PROMPTS), _verdicts_on_plain_goals)
SELECTION = Input("selected experts", (UNSAFE_EXPERTS,), _trained_selection)
HARDENED_MODEL = whole_file(MODEL)
TASKS_OF_BENCHMARKS = Input("tasks of benchmarks", (), _tasks_of_benchmarks)
CAPABILITY_ITEMS = Input("items of builtin:capability", (), _capability_items)


def replies(variant: str) -> Input:
    """A variant's replies."""
    return whole_file(replies_of(variant))


def scored(variant: str) -> Input:
    """What was measured of a variant by feeding it texts."""
    return whole_file(scored_of(variant))


def family(name: str, pattern: str) -> Input:
    """All files of the run that match a pattern, such as the replies of every ablated variant."""

    def digest(ledger: Ledger) -> str:
        path = ledger.directory.path
        found = sorted(f.relative_to(path).as_posix() for f in path.glob(pattern))
        return _hash([[f, file_digest(ledger, f)] for f in found]) if found else ""

    return Input(name, (pattern,), digest)


def _verdicts_on_variants(part: str) -> Callable[[Ledger], str]:
    def digest(ledger: Ledger) -> str:
        if not ledger.directory.has(VERDICTS):
            return ""
        table = ledger.directory.read_table(VERDICTS)
        chosen = table["variant"].str.contains(part, regex=False)
        rows = table[chosen & (table["judge"] == ledger.config.judge.main)]
        return _hash(rows[["variant", "prompt_id", "verdict"]].values.tolist())

    return digest


VERDICTS_ON_ABLATED = Input(
    "verdicts on ablated variants", (VERDICTS,), _verdicts_on_variants(WITHOUT)
)
VERDICTS_ON_CONTROLS = Input("verdicts on controls", (VERDICTS,), _verdicts_on_variants(CONTROL))


def file_digest(ledger: Ledger, name: str) -> str:
    """Hash of a file of the run: the one that it was written with; of a file that no step has left, its own."""
    path = ledger.directory.file(name)
    if not path.exists():
        return ""
    record = ledger.state.files.get(name)
    return record.sha256 if record is not None else sha256_of(path, _left_out_of(name))


def record_of(directory: RunDirectory, name: str, step: str) -> FileRecord:
    """What `run.json` keeps of a file that a step has left."""
    path, but = directory.file(name), _left_out_of(name)
    return FileRecord(step=step, sha256=sha256_of(path, but), stamp=stamp_of(path, but))


def _left_out_of(name: str) -> tuple[str, ...]:
    """Files of a folder that are no part of what later steps read: a card may be written anew, with new figures."""
    return (Path(MODEL_CARD).name,) if name == MODEL else ()


def check_undamaged(ledger: Ledger, name: str, whole: bool = False) -> None:
    """Check that a file is what the step that made it has left.

    One whose size and time of change are as they were is taken for untouched; any other is read and hashed.

    Args:
        ledger: The run.
        name: The file.
        whole: Hash it in any case.

    Raises:
        RunDirectoryError: It was changed since.
    """
    record = ledger.state.files.get(name)
    path = ledger.directory.file(name)
    if record is None or not path.exists():
        return
    but = _left_out_of(name)
    stamp = stamp_of(path, but)
    if stamp == {f: s for f, s in record.stamp.items() if f not in but} and not whole:
        return
    # A run of before cards were left out was hashed with its card.
    if record.sha256 not in (sha256_of(path, but), sha256_of(path) if but else ""):
        raise RunDirectoryError(
            f"{path} is not what `steermoe {command_for(name)}` has written: it was changed or damaged since; restore "
            f"it, or delete it, and steermoe {command_for(name)} makes it again"
        )
    record.stamp = stamp


def _verdicts(ledger: Ledger, variant: str) -> dict[str, str]:
    if not ledger.directory.has(VERDICTS):
        return {}
    try:
        return ledger.directory.read_verdicts(variant, ledger.config.judge.main)
    except RunDirectoryError:
        return {}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()
