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


def fates(
    k_ND: Sequence[Sequence[float]], kept: set[int], massive: set[int], min_cosine: float
) -> tuple[int, int]:
    """How many massive tokens of one head are dropped and merged, where each token without a slot joins the kept one of the
    highest cosine, if that is ``min_cosine`` or more, and changes its value.
    """
    joined: dict[int, list[int]] = {token: [] for token in kept}
    for token in set(range(len(k_ND))) - kept:
        best = max(kept, key=lambda it: _cosine(k_ND[token], k_ND[it]))
        if _cosine(k_ND[token], k_ND[best]) >= min_cosine:
            joined[best].append(token)
    merged = {member for members in joined.values() for member in members}
    merged |= {token for token, members in joined.items() if members}
    return len(massive - kept - merged), len(massive & merged)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5
