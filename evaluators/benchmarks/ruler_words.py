"""The words RULER draws from: wonderwords' lists, sorted, so that a draw is the same on every machine."""

from __future__ import annotations

import functools


@functools.cache
def words_of(*categories: str) -> list[str]:
    """The different words of "noun", "adjective" or "verb" together, sorted."""
    from wonderwords import RandomWord

    return sorted(set(RandomWord().filter(include_categories=list(categories))))
