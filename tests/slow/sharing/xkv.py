"""XKV's slots one by one, each to the layer that gains most: written apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence


def gains(of_layer: Sequence[Sequence[float]]) -> list[float]:
    """What a layer gains by each slot of every head, from the heads' scores; infinite ones count as their head's best."""
    finite = [[score for score in of_head if score != math.inf] for of_head in of_layer]
    lowest = min(0.0, *(min(of_head) for of_head in finite))
    total = math.fsum(score - lowest for of_head in finite for score in of_head)
    ranked = [
        sorted((min(score, max(rest)) - lowest for score in of_head), reverse=True)
        for of_head, rest in zip(of_layer, finite, strict=True)
    ]
    return [math.fsum(of_rank) / total if total else 0.0 for of_rank in zip(*ranked, strict=True)]


def slots(scores: Sequence[Sequence[Sequence[float]]], num_slots: int, least: int) -> list[int]:
    """Slots per head of every layer, which has ``least`` anyway, from the scores of its heads' tokens."""
    gains_of = [gains(layer) for layer in scores]
    taken = [least for _ in scores]
    for _ in range((num_slots - least) * len(scores)):
        layers = [layer for layer, already in enumerate(taken) if already < len(gains_of[layer])]
        best = min(layers, key=lambda layer: (-gains_of[layer][taken[layer]], taken[layer], layer))
        taken[best] += 1
    return taken


def gained(gains_of: Sequence[Sequence[float]], slots_of: Sequence[int], least: int) -> float:
    """What layers gain by their slots beyond the least."""
    return math.fsum(gain for layer, num in zip(gains_of, slots_of, strict=True) for gain in layer[least:num])
