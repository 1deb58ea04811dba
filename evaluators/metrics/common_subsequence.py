"""The length of the longest common subsequence, with one integer for a row of the table: memory is linear in the texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def common_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How long the longest common subsequence is (bit-parallel: Crochemore et al. 2001, Hyyrö 2004)."""
    places: dict[Hashable, int] = {}
    for index, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << index
    every = (1 << len(other)) - 1
    level = every
    for word in one:
        matched = level & places.get(word, 0)
        level = ((level + matched) | (level - matched)) & every
    return len(other) - level.bit_count()
