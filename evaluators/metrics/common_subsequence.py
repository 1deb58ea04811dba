"""The length of the longest common subsequence, with one integer for a row of the table: memory is linear in the texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

WordT = TypeVar("WordT", bound=Hashable)


def common_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How long the longest common subsequence is (bit-parallel: Crochemore et al. 2001, Hyyrö 2004)."""
    places = places_of(other)
    every = (1 << len(other)) - 1
    level = every
    for word in one:
        matched = level & places.get(word, 0)
        level = ((level + matched) | (level - matched)) & every
    return len(other) - level.bit_count()


def places_of(words: Sequence[WordT]) -> dict[WordT, int]:
    """Where each word stands: bit i is set where it is word i."""
    places: dict[WordT, int] = {}
    for index, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << index
    return places


def rising_columns(one: Sequence[WordT], other: Sequence[WordT]) -> tuple[dict[WordT, int], list[int]]:
    """`places_of` the other's words, and for each number of words of one the columns where the common length rises.

    Bit j - 1 of `rises[i]` is set when the longest common subsequence of i words of one with j words of the other is one
    longer than with j - 1.
    """
    places = places_of(other)
    every = (1 << len(other)) - 1
    level, rises = every, [0]
    for word in one:
        matched = level & places.get(word, 0)
        level = ((level + matched) | (level - matched)) & every
        rises.append(every & ~level)
    return places, rises
