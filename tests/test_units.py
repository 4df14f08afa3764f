"""Memory as people read it."""

from __future__ import annotations

import pytest

from steermoe.units import gibibytes


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [
        (2**30, "1.00 GiB"),
        (3 * 2**29, "1.50 GiB"),
        (1_000_000_000, "0.93 GiB"),  # 1e9 / 1073741824 = 0.9313
        (2**40, "1,024.00 GiB"),
        (2**20, "< 0.01 GiB"),
        (1, "< 0.01 GiB"),
        (5_368_710, "0.01 GiB"),  # just above half of a hundredth of 2^30, 5368709.12
        (0, "0.00 GiB"),
    ],
)
def test_bytes_are_printed_in_gibibytes_and_never_as_nothing(num_bytes: int, shown: str) -> None:
    assert gibibytes(num_bytes) == shown
