"""When a judge has failed on so many replies that what it says of the others is no figure."""

from __future__ import annotations


def are_too_many(num_failed: int, num_replies: int) -> bool:
    """Whether a judge failed on more than a tenth of the replies; a single failure among few is let pass."""
    return num_failed > max(1, num_replies // 10)
