"""Fixed-sequence certificates of one policy written out, one context after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Losses = Mapping[str, Sequence[float | None]]
"""Context → losses of its items; None where the policy has no number."""


def slow_certified(levels: Sequence[Losses], most_loss: float, share: float, error: float) -> int:
    """How many of the levels, mildest first, are certified."""
    certified = 0
    for losses in levels:
        bad = 0
        for items in losses.values():
            is_bad = False
            for loss in items:
                if loss is None or loss - most_loss > 1e-9:
                    is_bad = True
            bad += is_bad
        number = len(losses)
        tail = 0.0
        for k in range(bad + 1):
            tail += math.comb(number, k) * share**k * (1 - share) ** (number - k)
        if tail > error:
            return certified
        certified += 1
    return certified
