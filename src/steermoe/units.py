"""Memory as people read it: one unit, in the terminal, on the page and in messages."""

from __future__ import annotations

BYTES_OF_A_GIBIBYTE = 2**30


def gibibytes(num_bytes: float) -> str:
    """Bytes of memory or of a file in GiB (2^30 bytes), for instance `1.43 GiB`.

    Two decimals. What is smaller than half of the last one is said to be less, because zero would be wrong.
    """
    shown = f"{num_bytes / BYTES_OF_A_GIBIBYTE:,.2f}"
    if num_bytes > 0 and float(shown.replace(",", "")) == 0:
        return "< 0.01 GiB"
    return f"{shown} GiB"
