"""How many rows a batch has: few sizes, so that few shapes are ever computed; needs no torch, since plans count rows too."""

from __future__ import annotations

ROW_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def bucket_for(num_rows: int) -> int:
    """The smallest bucket that holds ``num_rows``; beyond the largest, the next multiple of it."""
    for bucket in ROW_BUCKETS:
        if bucket >= num_rows:
            return bucket
    return -(-num_rows // ROW_BUCKETS[-1]) * ROW_BUCKETS[-1]


def another_bucket(num_rows: int, taken: int) -> int:
    """The smallest bucket that holds ``num_rows`` and is not ``taken``."""
    smallest = bucket_for(num_rows)
    return smallest if smallest != taken else bucket_for(taken + 1)
