"""Whole blocks, chosen one after the other in Python floats: what `+blocks16` is held to, written apart from it."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kept(scores_LHN: Sequence[Sequence[Sequence[float]]], num_slots: int, block_size: int) -> list[int]:
    """The tokens that all these layers keep: the last block if it is not full, then the best full ones that still fit."""
    num_tokens = len(scores_LHN[0][0])
    full = [range(at, at + block_size) for at in range(0, num_tokens - block_size + 1, block_size)]
    left_over = range(len(full) * block_size, num_tokens)
    blocks = [*full, *([left_over] if left_over else [])]
    worth = [0.0] * len(blocks)
    for scores_HN in scores_LHN:
        sums = [sum(scores_N[token] for scores_N in scores_HN for token in block) for block in blocks]
        sizes = [abs(number) for number in sums if math.isfinite(number)]
        mean = sum(sizes) / len(sizes) if sizes else 0.0
        for place, number in enumerate(sums):
            worth[place] += number / mean if mean else number
    found = list(left_over)
    for place in sorted(range(len(full)), key=lambda place: (-worth[place], place)):
        if len(found) + block_size <= num_slots:
            found += full[place]
    return sorted(found)
