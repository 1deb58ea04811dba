"""Bounds on what the engine does at once, and how many rows a batch has: few sizes, so that few shapes are ever computed."""

from __future__ import annotations

from dataclasses import dataclass

# A row's last bits depend on how many rows its batch has, and each number of rows is a recording of its own: few of them.
LONG_ANSWER_TOKENS = 1024
"""Where an answer may be longer, rows that bound what they hold decode apart: tails are as long as the batch's longest."""
MOST_FIDELITY_TOKENS = 1024
ROW_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True, slots=True)
class Limits:
    """max_rows: rows decoded together, unless one variant's questions are more already; the others follow in groups.

    max_fidelity_tokens: of the full row's answer, for KL; at least 1. Of long answers it is more, see `fidelity_tokens`.
    """

    max_rows: int = 64
    max_fidelity_tokens: int = 128

    def __post_init__(self) -> None:
        """Refuse limits that leave nothing to run."""
        if self.max_rows < 1 or self.max_fidelity_tokens < 1:
            raise ValueError(f"limits must be at least 1, got {self}")

    def fidelity_tokens(self, max_new_tokens: int) -> int:
        """How many tokens of the full row's answer all rows are compared along, where it may have ``max_new_tokens``."""
        # What acts once in a while has not acted by the 128th token. All rows are forced through these, step by step where
        # something acts, and their hidden states are held: a share, so that it stays less work than the answer itself.
        if max_new_tokens <= LONG_ANSWER_TOKENS:
            return self.max_fidelity_tokens
        return max(self.max_fidelity_tokens, min(MOST_FIDELITY_TOKENS, max_new_tokens // 4))


def bucket_for(num_rows: int) -> int:
    """The smallest bucket that holds ``num_rows``; beyond the largest, the next multiple of it."""
    for bucket in ROW_BUCKETS:
        if bucket >= num_rows:
            return bucket
    return -(-num_rows // ROW_BUCKETS[-1]) * ROW_BUCKETS[-1]


def another_bucket(num_rows: int, taken: int) -> int:
    """The smallest bucket that holds ``num_rows`` and is not ``taken``."""
    # For the A/A row, whose only difference from the full row is the batch's shape.
    smallest = bucket_for(num_rows)
    return smallest if smallest != taken else bucket_for(taken + 1)
