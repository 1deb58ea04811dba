"""Massive tokens number by number: written apart from the evidence."""

from __future__ import annotations

from collections.abc import Sequence


def times_median(stream_NE: Sequence[Sequence[float]], sampled_SE: Sequence[Sequence[float]]) -> list[float]:
    """Each token's largest magnitude, divided by the median of the magnitudes of the sampled tokens (the lower of two)."""
    ordered = sorted(abs(number) for token in sampled_SE for number in token)
    median = ordered[(len(ordered) - 1) // 2]
    return [max(max(token), -min(token)) / median for token in stream_NE]
