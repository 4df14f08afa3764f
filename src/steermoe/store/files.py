"""Files of one folder, each written whole: under a temporary name first, then renamed. Nothing is ever pickled."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from steermoe.errors import RunDirectoryError
from steermoe.store.names import LOCK, RUN_JSON, SHARDS, SIGN, command_for


class RunFiles:
    """The files of a run directory, whatever is in them. Opening it creates nothing; `create` does.

    Attributes:
        path: The directory.
        num_changes: How many results were written or removed through this object.
        may_read: Names of the results that may be read; None for all.
        may_write: Names of the results that may be written or removed; None for all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.num_changes = 0
        self.may_read: frozenset[str] | None = None
        self.may_write: frozenset[str] | None = None
        self._is_new = False
        self._new_files: list[str] = []

    def file(self, name: str) -> Path:
        """Where a file of the run is."""
        return self.path / name

    @contextmanager
    def limited(self, reads: set[str], writes: set[str]) -> Iterator[None]:
        """Within it, only these results can be read and written: what a step has declared, and no more."""
        self.may_read, self.may_write = frozenset(reads | writes), frozenset(writes)
        try:
            yield
        finally:
            self.may_read = self.may_write = None

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """The names of the files and folders that are there, of those that the patterns stand for."""
        return [
            path.relative_to(self.path).as_posix()
            for pattern in patterns
            for path in sorted(self.path.glob(pattern))
        ]

    def has(self, name: str) -> bool:
        """Whether a file or folder of the run is there."""
        return self.file(name).exists()

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

    @contextmanager
    def signed(self, sign: str) -> Iterator[None]:
        """Within it, a word is in the directory by which another process knows that it sees the same one."""
        path = self.file(SIGN)
        path.write_text(sign, "ascii")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def has_sign(self, sign: str) -> bool:
        """Whether this word is in the directory."""
        try:
            return self.file(SIGN).read_text("ascii") == sign
        except OSError:
            return False

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
        """Count the change of a result; those that the step at work has not declared are a defect of ours."""
        if name == RUN_JSON or name.startswith(SHARDS):
            return
        if self.may_write is not None and not _is_declared(name, self.may_write):
            raise AssertionError(f"a step writes {name}, which it has not declared")
        self.num_changes += 1

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
        except (OSError, SafetensorError) as error:
            reason = disk_error(error) or getattr(error, "strerror", None) or error
            raise RunDirectoryError(
                f"{target} cannot be written: {reason}; free space or choose another --run"
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
        """Write JSON that people can read.

        Raises:
            RunDirectoryError: A figure in it is not finite, which JSON cannot say; or it cannot be written.
        """
        with self.writing(name) as path:
            path.write_text(self._as_json(name, value, indent=2), "utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            RunDirectoryError: It is missing or damaged.
        """
        with self.reading(name) as path:
            value = json.loads(path.read_text("utf-8"))
            if not isinstance(value, dict):
                raise ValueError(f"it holds a {type(value).__name__}")
            return value

    def _as_json(self, name: str, value: Any, indent: int | None = None) -> str:
        try:
            return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError:
            key, number = next(_not_finite(value), ("", "what is no number"))
            raise RunDirectoryError(
                f"{self.file(name)} cannot be written: {key} is {number}, which is no finite number, so something "
                "before it went wrong"
            ) from None

    def write_json_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one JSON object a line; raises as `write_json` does."""
        with self.writing(name) as path, path.open("w", encoding="utf-8", newline="\n") as out:
            for row in rows:
                out.write(self._as_json(name, row))

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a DataFrame as Parquet, without its index."""
        with self.writing(name) as path:
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)

    def read_table(self, name: str) -> pd.DataFrame:
        """Read a Parquet table.

        Raises:
            RunDirectoryError: It is missing or damaged.
        """
        with self.reading(name) as path:
            return cast(pd.DataFrame, pq.read_table(path).to_pandas())

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """The path of a file to read; whatever goes wrong inside is told as damage to that file.

        Raises:
            RunDirectoryError: It is missing or damaged.
        """
        path = self.file(name)
        if (
            self.may_read is not None
            and name != RUN_JSON
            and not name.startswith(SHARDS)
            and not _is_declared(name, self.may_read)
        ):
            raise AssertionError(f"a step reads {name}, which it has not declared")
        if not path.is_file():
            raise RunDirectoryError(
                f"{path} is missing: run `steermoe {command_for(name)} --run {self.path}` first"
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


def _not_finite(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Numbers that are not finite in a value that is to be written as JSON, with the way to each."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{key}[{index}]")


def _is_declared(name: str, declared: frozenset[str]) -> bool:
    """Whether a file is one that a step has declared, or lies in a folder that it has."""
    return any(fnmatch(name, pattern) or name.startswith(f"{pattern}/") for pattern in declared)
