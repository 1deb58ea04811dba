"""SimLayerKV's layers by one query's attention, number by number: written apart from the policy."""

from __future__ import annotations

from collections.abc import Sequence


def nearby_attention(last_rows: Sequence[Sequence[float]], n_initial: int, n_recent: int) -> float:
    """What the last query's heads attend to first and recent tokens, on average."""
    total = 0.0
    for row in last_rows:
        for token, prob in enumerate(row):
            if token < n_initial or token >= len(row) - n_recent:
                total += prob
    return total / len(last_rows)


def kept(last_rows: Sequence[Sequence[float]], threshold: float, n_initial: int, n_recent: int) -> list[int]:
    """The tokens that every head of the layer keeps."""
    tokens = range(len(last_rows[0]))
    if nearby_attention(last_rows, n_initial, n_recent) <= threshold:
        return list(tokens)
    return [token for token in tokens if token < n_initial or token >= len(tokens) - n_recent]
