"""The hash of a file or a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path


def sha256_of(path: Path, but: Collection[str] = ()) -> str:
    """SHA-256 of a file, in hexadecimal; of a folder, that of the names and hashes of its files.

    Args:
        path: The file or folder.
        but: Names of files of the folder that are left out.
    """
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.name not in but)
        described = [[file.relative_to(path).as_posix(), sha256_of(file)] for file in files]
        return hashlib.sha256(json.dumps(described).encode("utf-8")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path, but: Collection[str] = ()) -> dict[str, tuple[int, int]]:
    """Size in bytes and time of change in nanoseconds of a file, or of each file of a folder, by its name in it.

    A file whose stamp is as it was has not been written to since, unless somebody hid that.
    """
    inside = (f for f in path.rglob("*") if f.is_file() and f.name not in but)
    files = [*inside] if path.is_dir() else [path]
    stamp = {}
    for file in sorted(files):
        found = file.stat()
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        stamp[name] = (found.st_size, found.st_mtime_ns)
    return stamp
