"""Massive tokens number by number: written apart from the evidence."""

from __future__ import annotations

from collections.abc import Sequence


def times_median(stream_NE: Sequence[Sequence[float]], sampled_SE: Sequence[Sequence[float]]) -> list[float]:
    """Each token's largest magnitude, divided by the median of the magnitudes of the sampled tokens (the lower of two)."""
    ordered = sorted(abs(number) for token in sampled_SE for number in token)
    median = ordered[(len(ordered) - 1) // 2]
    return [max(max(token), -min(token)) / median for token in stream_NE]


def protected(
    scores_HN: Sequence[Sequence[float]], massive: set[int], num_slots_H: Sequence[int]
) -> list[set[int]]:
    """What each head keeps: its best tokens, then each massive one that is missing, for the worst that is not massive."""
    kept_by_head = []
    for scores, num_slots in zip(scores_HN, num_slots_H, strict=True):
        ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
        kept = ranked[:num_slots]
        for token in sorted(massive):
            worst = next((it for it in reversed(kept) if it not in massive), None)
            if token not in kept and worst is not None:
                kept.remove(worst)
                kept.insert(0, token)
        kept_by_head.append(set(kept))
    return kept_by_head
