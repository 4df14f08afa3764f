"""Write the items of `builtin:capability`: `python -m benchmarks.capability_items`."""

from __future__ import annotations

from benchmarks.capability_items.all_items import FILE, file_content

if __name__ == "__main__":
    FILE.write_bytes(file_content())
    print(f"{FILE}: {len(FILE.read_bytes().splitlines())} items")
