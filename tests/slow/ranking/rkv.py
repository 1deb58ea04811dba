"""R-KV written down slowly, in Python's floats: a row of cosines at a time, and the group's largest logit query by query."""

from __future__ import annotations

import math


def _softmax(numbers: list[float]) -> list[float]:
    top = max(numbers)
    shares = [math.exp(number - top) for number in numbers]
    return [share / sum(shares) for share in shares]


def _dot(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def scores(
    queries: list[list[list[float]]], keys: list[list[float]], scaling: float, window: int, kernel: int, share: float,
    threshold: float,
) -> list[float]:  # fmt: skip
    """Of one KV head whose group asks ``queries`` (query head, token, channel): a score for each token before the window."""
    num_before, num_tokens = len(keys) - window, len(keys)
    attention = [0.0] * num_before
    for step in range(num_before, num_tokens):
        logits = [
            max(_dot(head[step], keys[place]) for head in queries) * scaling for place in range(num_before)
        ]
        attention = [it + more / window for it, more in zip(attention, _softmax(logits), strict=True)]
    half = kernel // 2
    pooled = [max(attention[max(0, place - half) : place + half + 1]) for place in range(num_before)]
    units = [[x / math.sqrt(_dot(key, key)) for x in key] for key in keys]
    charged = [0.0] * num_tokens
    for row in range(num_tokens):
        cosines = [0.0 if place == row else _dot(units[row], units[place]) for place in range(num_tokens)]
        copies = [place for place, cosine in enumerate(cosines) if cosine > threshold]
        if copies:
            cosines[copies[-1]] = 0.0
        charged = [it + cosine / num_tokens for it, cosine in zip(charged, cosines, strict=True)]
    redundancy = _softmax(charged)
    return [share * pooled[place] - (1 - share) * redundancy[place] for place in range(num_before)]
