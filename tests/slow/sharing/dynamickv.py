"""DynamicKV's marks one by one, and shares within bounds by trying factors: written apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

_HALVINGS = 120


def shares(weights: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Whole numbers within bounds that sum to ``total``, by trying factors."""
    exact_weights = [Fraction(weight) for weight in weights]
    if sum(min(most, max(least, most if weight else 0)) for weight in exact_weights) < total:
        # Those with a weight take all they can.
        takers = [index for index, weight in enumerate(exact_weights) if weight]
        others = [index for index in range(len(weights)) if index not in takers]
        rest, more = divmod(total - most * len(takers), len(others))
        return [
            most if index in takers else rest + int(others.index(index) < more)
            for index in range(len(weights))
        ]
    low, high = Fraction(0), Fraction(most) / min(weight for weight in exact_weights if weight)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = sum(min(Fraction(most), max(Fraction(least), middle * weight)) for weight in exact_weights)
        low, high = (low, middle) if reached >= total else (middle, high)
    # From above: whole shares stay whole.
    found = [float(min(Fraction(most), max(Fraction(least), high * weight))) for weight in exact_weights]
    whole = [math.floor(share + 1e-9) for share in found]
    by_remainder = sorted(
        range(len(found)), key=lambda index: (-round(found[index] - whole[index], 9), index)
    )
    for index in by_remainder[: total - sum(whole)]:
        whole[index] += 1
    return whole


def slots(
    scores: Sequence[Sequence[Sequence[float]]], num_slots: int, least: int, most_times_mean: float
) -> list[int]:
    """Slots per head of every layer, from the scores of its heads' tokens; protected tokens have infinity."""
    num_layers, num_heads, num_tokens = len(scores), len(scores[0]), len(scores[0][0])
    beyond = num_slots - least
    ranked = sorted(
        (-score, head, token, layer)
        for layer, of_layer in enumerate(scores)
        for head, of_head in enumerate(of_layer)
        for token, score in enumerate(of_head)
        if score != math.inf
    )
    marks = [0] * num_layers
    for *_, layer in ranked[: beyond * num_heads * num_layers]:
        marks[layer] += 1
    most = min(math.floor(most_times_mean * beyond), num_tokens - least)
    return [least + share for share in shares(marks, beyond * num_layers, 0, most)]
