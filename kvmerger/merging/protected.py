"""How many tokens KVMerger protects from merging at a budget: the recent ones and the attention-heavy ones.

The paper states two set-ups, 0.17 recent + 0.12 heavy at 50 % and 0.08 + 0.02 at 35 % (arXiv 2407.08454; read as
fractions, see the card's §1.5). Between and beyond them we interpolate linearly, through nothing at 0: that is our
choice, not the paper's. No torch here: labels and plans need these numbers too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ProtectedRatios(NamedTuple):
    """Fractions of the compressed part kept as single entries, each 0–1."""

    recent_ratio: float
    heavy_ratio: float


# Kept ratio → protected fractions; the ends continue the neighbouring set-up's proportion of the budget.
_KEPT_RATIO = (0.0, 0.35, 0.50, 1.0)
_RECENT_RATIO = (0.0, 0.08, 0.17, 0.34)
_HEAVY_RATIO = (0.0, 0.02, 0.12, 0.24)


def protected_ratios(kept_ratio: float) -> ProtectedRatios:
    """Protected fractions for a budget that keeps ``kept_ratio`` (0–1) of the slots."""
    return ProtectedRatios(
        recent_ratio=round(float(np.interp(kept_ratio, _KEPT_RATIO, _RECENT_RATIO)), 6),
        heavy_ratio=round(float(np.interp(kept_ratio, _KEPT_RATIO, _HEAVY_RATIO)), 6),
    )
