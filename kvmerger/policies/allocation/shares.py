"""Whole slots in proportion to weights, within bounds, with an exact sum: what allocators by layer share out by.

Shapes: L layers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction


def in_proportion(weight_L: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """Whole numbers from ``least`` to ``most`` that sum to ``total``, as near to the weights' proportion as that allows.

    One factor turns weights into shares, which are cut at the bounds; rounding is by largest remainder, and of equal ones the
    earlier layer gets the slot. Weights of 0 share evenly what the others cannot take.

    Args:
        weight_L: finite, from 0 on.
        total: from L·``least`` to L·``most``.
    """
    exact_L = _within_bounds([Fraction(weight) for weight in weight_L], total, least, most)
    whole_L = [math.floor(exact) for exact in exact_L]
    # A stable sort: of equal remainders the earlier layer comes first.
    by_remainder = sorted(range(len(whole_L)), key=lambda layer: whole_L[layer] - exact_L[layer])
    for layer in by_remainder[: total - sum(whole_L)]:
        whole_L[layer] += 1
    return whole_L


def _within_bounds(weight_L: Sequence[Fraction], total: int, least: int, most: int) -> list[Fraction]:
    """Fractions of which the whole numbers are made; they sum to ``total`` exactly."""

    # Fractions, not floats: the sum must come out to the slot, and rounding would decide who gets the last one.
    def shares(factor: Fraction) -> list[Fraction]:
        return [min(max(factor * weight, Fraction(least)), Fraction(most)) for weight in weight_L]

    weighing = [weight for weight in weight_L if weight]
    steps = sorted({bound / weight for weight in weighing for bound in (Fraction(least), Fraction(most))})
    place = bisect.bisect_left(steps, Fraction(total), key=lambda factor: sum(shares(factor), Fraction(0)))
    if place == len(steps):
        # All that weigh anything have the most there is, and this is not enough.
        num_others = len(weight_L) - len(weighing)
        rest = total - most * len(weighing)
        return [Fraction(most) if weight else Fraction(rest, num_others) for weight in weight_L]
    if place == 0:
        return shares(steps[0])
    # Between two steps the sum is a line.
    low, high = steps[place - 1], steps[place]
    at_low, at_high = sum(shares(low)), sum(shares(high))
    return shares(low + (high - low) * (total - at_low) / (at_high - at_low))
