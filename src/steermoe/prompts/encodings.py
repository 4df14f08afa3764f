"""From the bytes of a file to what was packed and encoded in them, told by their beginning."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable

import pyarrow as pa

from steermoe.errors import PromptError


def _zstandard(data: bytes) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        unpacked: bytes = stream.read()
    return unpacked


_PACKED: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\0": ("xz", lzma.decompress),
    b"\x28\xb5\x2f\xfd": ("Zstandard", _zstandard),
}
_MOST_LAYERS = 3  # of packing: more is no file of anybody's

_BYTE_ORDER_MARKS = {
    # Before UTF-16, whose mark begins that of UTF-32.
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save the sheet as CSV in UTF-8",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"SQLite format 3": "a database; export its table as CSV",
    b"%PDF": "a PDF document; save its prompts as text or CSV",
}


def unpacked(data: bytes, source: str) -> tuple[bytes, list[str]]:
    """What a compressed file holds, and a note that it was one; other files as they are.

    Raises:
        PromptError: It is cut off or damaged, or is an archive of several files.
    """
    notes = []
    for _ in range(_MOST_LAYERS):
        found = next((kind for start, kind in _PACKED.items() if data.startswith(start)), None)
        if found is None:
            break
        name, unpack = found
        try:
            data = unpack(data)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException):
            raise PromptError(
                f"{source} is compressed with {name}, and cut off or damaged; fetch it again"
            ) from None
        notes.append(f"unpacked, {name}")
    for start, what in _ARCHIVES.items():
        if data.startswith(start):
            raise PromptError(f"{source} is {what}")
    if data[257:262] == b"ustar":
        raise PromptError(f"{source} is a tar archive; unpack it, and name the prompt file in it")
    return data, notes


def decoded(data: bytes, source: str, encoding: str | None) -> tuple[str, list[str]]:
    """The text of a file, and a note where it is not UTF-8.

    Args:
        data: The bytes.
        source: How complaints name the file.
        encoding: As the user gives it; None for UTF-8, or what a byte order mark says.

    Raises:
        PromptError: The bytes are no text of that encoding, or hold NUL.
    """
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    chosen = encoding or marked or "utf-8"
    try:
        text = data.decode(chosen)
    except UnicodeDecodeError as error:
        problem = _undecodable(error, chosen)
        is_guess = encoding is None and chosen == "utf-8" and "cut off" not in problem
        way_out = _way_out(data, source) if is_guess else ""
        raise PromptError(f"{source} {problem}{way_out}") from None
    except (UnicodeError, LookupError, ValueError) as error:
        raise PromptError(f"{source} cannot be read as {chosen}: {error}") from None
    if (position := text.find("\0")) >= 0:
        raise PromptError(
            f"{source} is binary: character {position + 1} is NUL; "
            "prompt files are JSON, JSONL, CSV, Parquet or Arrow"
        )
    plain = chosen in ("utf-8", "utf-8-sig")
    return text.removeprefix("\ufeff"), [] if plain else [f"decoded from {chosen}"]


def _undecodable(error: UnicodeDecodeError, chosen: str) -> str:
    if "unexpected end" in error.reason or "truncated" in error.reason:
        return "ends inside a character; it seems cut off"
    name = "UTF-8" if chosen.startswith("utf-8") else chosen
    byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
    return f"is not {name}: {byte}; save it again as UTF-8"


def _way_out(data: bytes, source: str) -> str:
    """How else a file that is not UTF-8 may be read: which of the old encodings it has cannot be told."""
    if b"\0" in data:
        return ""
    return (
        f", or say how it is encoded: '{source}:encoding=cp1252' reads what older Windows programs write in Western "
        "languages, gb18030 in Chinese, shift_jis in Japanese"
    )
