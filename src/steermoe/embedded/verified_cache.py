"""A directory that is built once, checked by hash in every process, and built again when it is damaged.

What can go wrong with a gigabyte in a cache: a disk that fills up, a process that is killed, two processes that start
together, a flipped bit. So a directory is built beside its place under a lock, renamed into it whole, and read only
after every byte has been hashed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from filelock import FileLock, Timeout

from steermoe.hashes import sha256_of, stamp_of

MANIFEST = "manifest.json"
"""Lists a directory's files with their sizes and SHA-256, and the recipe that made them."""

SETTLED = 10.0
"""Seconds after which one more change of a file is sure to change its time too."""

Report = Callable[[str], None]
"""Takes one line for the user."""

Stamp = dict[str, tuple[int, int]]

_hashed: dict[Path, tuple[str, Stamp]] = {}
"""Directories that this process has hashed and found sound: their recipe, and the stamp they had."""


def verified_directory(
    directory: Path, recipe: str, build: Callable[[Path], None], report: Report
) -> Path:
    """Return `directory` with exactly the files that `build` made, building them if need be.

    Every process hashes every file (1.4 GB take about a second where the processor has SHA instructions): sizes and
    dates do not show a flipped bit. In the same process, files whose sizes and dates are as they were are not hashed
    again: a run opens the model in each of its steps. Files that are not in the manifest are ignored.

    Args:
        directory: Where the files are to be. Its parent must exist.
        recipe: Says what the files are made of. A directory of another recipe is built again.
        build: Writes the files into the empty directory it is given.
        report: Told when the directory is built, why, and when another process is waited for.

    Returns:
        `directory`.

    Raises:
        OSError: If it cannot be written.
    """
    stamp = stamp_of(directory) if directory.is_dir() else {}
    if stamp and _hashed.get(directory) == (recipe, stamp):
        return directory
    fault = find_fault(directory, recipe)
    if fault is None:
        if _is_settled(stamp):
            _hashed[directory] = recipe, stamp
        return directory
    lock = FileLock(f"{directory}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another process is building {directory}; waiting for it")
        lock.acquire()
    try:
        # Another process may have mended it between the look and the lock.
        fault = find_fault(directory, recipe)
        if fault is not None:
            report(f"{directory} {fault}: building it")
            _build_beside(directory, recipe, build)
    finally:
        lock.release()
    return directory


def _build_beside(directory: Path, recipe: str, build: Callable[[Path], None]) -> None:
    """Build into a neighbouring directory and rename it into place; the lock must be held."""
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    # Only a process that was killed leaves one behind: the lock keeps all others out.
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
        (unfinished / MANIFEST).write_text(
            json.dumps({"recipe": recipe, "files": _describe(unfinished)}, indent=2) + "\n"
        )
        if directory.is_dir():
            shutil.rmtree(directory)
        else:
            directory.unlink(missing_ok=True)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_fault(directory: Path, recipe: str) -> str | None:
    """What is wrong with a directory, as the end of a sentence that starts with its path; None if nothing is."""
    if not directory.is_dir():
        return "does not exist yet"
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        if manifest["recipe"] != recipe:
            return f"was made by another recipe ({manifest['recipe']}, now {recipe})"
        files: dict[str, FileFacts] = manifest["files"]
        for name, expected in files.items():
            size = (directory / name).stat().st_size
            if size != expected["bytes"]:
                return f"is damaged ({name} has {size} bytes, not {expected['bytes']})"
        for name, expected in files.items():
            if sha256_of(directory / name) != expected["sha256"]:
                return f"is damaged ({name} has another SHA-256)"
    except FileNotFoundError as error:
        return f"is damaged ({Path(error.filename).name} is missing)"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"is damaged ({MANIFEST} cannot be read)"
    return None


def _is_settled(stamp: Stamp) -> bool:
    """Whether all files are so old that a stamp tells of every later change."""
    newest = max((changed for _, changed in stamp.values()), default=0)
    return time.time() - newest / 1e9 > SETTLED


class FileFacts(TypedDict):
    """What the manifest says of one file."""

    bytes: int
    sha256: str


def _describe(directory: Path) -> dict[str, FileFacts]:
    return {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
