"""ZipVL's count and choice, token by token: written apart from the policy."""

from __future__ import annotations

from collections.abc import Sequence


def masses(matrix_QNN: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """What every token gets from all queries, mean over query heads."""
    num_tokens = len(matrix_QNN[0])
    return [
        sum(row[token] for of_head in matrix_QNN for row in of_head) / len(matrix_QNN)
        for token in range(num_tokens)
    ]


def kept(mass_N: Sequence[float], share: float) -> list[int]:
    """The tokens that every head of the layer keeps."""
    num_tokens = len(mass_N)
    if share == 1:
        return list(range(num_tokens))
    held, count = 0.0, 0
    for mass in sorted(mass_N, reverse=True):
        held, count = held + mass, count + 1
        if held >= share * sum(mass_N):
            break
    by_query = {token: mass / (num_tokens - token) for token, mass in enumerate(mass_N)}
    return sorted(sorted(by_query, key=lambda token: (-by_query[token], token))[:count])
