"""FastGen's kinds of tokens by masks on whole maps of attention, query by query: written apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

Map = Sequence[Sequence[float]]


def group_map(maps: Sequence[Map]) -> list[list[float]]:
    """The mean of the query heads' maps."""
    return [
        [sum(numbers) / len(maps) for numbers in zip(*rows, strict=True)] for rows in zip(*maps, strict=True)
    ]


def near(of_head: Map, window_tokens: int) -> list[float]:
    """What each key gets from the queries that have it in their window."""
    return [
        math.fsum(of_head[query][key] for query in range(key, min(key + window_tokens, len(of_head))))
        for key in range(len(of_head))
    ]


def kinds(
    of_head: Map, classes: Sequence[int], shares: tuple[float, float], n_initial: int
) -> tuple[list[list[int]], list[float]]:
    """What each of the five kinds keeps at the prompt's end, and the attention that it recovers.

    Args:
        classes: of every token 0, 1 (special) or 2 (punctuation).
        shares: of the tokens, the frequent ones and those of a window.
    """
    num_tokens = len(of_head)
    num_frequent, window = (math.floor(share * num_tokens + 1e-9) for share in shares)
    window = max(1, window)
    special = {token for token, it in enumerate(classes) if it == 1 or token < n_initial}
    punctuation = special | {token for token, it in enumerate(classes) if it == 2}
    means = {
        token: sum(row[token] for row in of_head) / (num_tokens - token)
        for token in range(num_tokens)
        if token not in punctuation
    }
    frequent = punctuation | set(sorted(means, key=lambda token: -means[token])[:num_frequent])

    def seen_of(query: int) -> list[set[int]]:
        local = frequent | set(range(query - window + 1, query + 1))
        return [special, punctuation, frequent, local, set(range(query + 1))]

    recovered = [0.0] * 5
    for query, row in enumerate(of_head):
        for place, seen in enumerate(seen_of(query)):
            recovered[place] += sum(row[key] for key in seen if 0 <= key <= query) / num_tokens
    kept = [sorted(token for token in seen if token >= 0) for seen in seen_of(num_tokens - 1)]
    return kept, recovered
