"""TriAttention written down slowly: queries and keys before RoPE, a cosine for each pair, distance and key."""

from __future__ import annotations

import cmath
import math


def scores(
    queries: list[list[complex]],
    keys: list[list[complex]],
    frequencies: list[float],
    places: list[int],
    now: int,
    distances: list[int],
) -> list[float]:
    """Of one query head: how each key, which stands at its place, is seen from ``now``.

    ``queries`` and ``keys`` are as before RoPE: (token, pair of channels).
    """
    pairs = range(len(frequencies))
    mean = [sum(query[pair] for query in queries) / len(queries) for pair in pairs]
    mean_length = [sum(abs(query[pair]) for query in queries) / len(queries) for pair in pairs]
    result = []
    for key, place in zip(keys, places, strict=True):
        seen = 0.0
        for distance in distances:
            for pair, frequency in enumerate(frequencies):
                phase = cmath.phase(mean[pair] * key[pair].conjugate())
                angle = frequency * (now - place + distance) + phase
                seen += abs(mean[pair]) * abs(key[pair]) * math.cos(angle) / len(distances)
        spread = sum((mean_length[pair] - abs(mean[pair])) * abs(key[pair]) for pair in pairs)
        result.append(seen + spread)
    return result


def standardised(scores_N: list[float]) -> list[float]:
    """Less their mean, in units of their deviation."""
    mean = sum(scores_N) / len(scores_N)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores_N) / len(scores_N))
    return [(score - mean) / max(deviation, 1e-6) for score in scores_N]
