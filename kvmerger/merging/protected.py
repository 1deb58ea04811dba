"""How many tokens KVMerger protects from merging at a budget, and the label of a variant that promises no more than that.

No torch here: plans need labels before any policy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kvmerger.budget import AskedBudget, KeptRatio


class ProtectedRatios(NamedTuple):
    """Fractions of the compressed part kept as single entries, each 0–1."""

    recent_ratio: float
    heavy_ratio: float


# Kept ratio → protected fractions. The paper (arXiv 2407.08454) states two set-ups: 0.17 recent + 0.12 heavy at 50 %, and
# 0.08 + 0.02 at 35 %. Interpolating linearly, through nothing at 0, is our choice; beyond 50 % the proportion stays.
_KEPT_RATIO = (0.0, 0.35, 0.50, 1.0)
_RECENT_RATIO = (0.0, 0.08, 0.17, 0.34)
_HEAVY_RATIO = (0.0, 0.02, 0.12, 0.24)


def protected_ratios(kept_ratio: float) -> ProtectedRatios:
    """Protected fractions for a budget that keeps ``kept_ratio`` (0–1) of the slots."""
    return ProtectedRatios(
        recent_ratio=round(float(np.interp(kept_ratio, _KEPT_RATIO, _RECENT_RATIO)), 6),
        heavy_ratio=round(float(np.interp(kept_ratio, _KEPT_RATIO, _HEAVY_RATIO)), 6),
    )


def threshold_label(policy: str, params: Mapping[str, Any], budget: AskedBudget) -> str | None:
    """What follows a variant's name where a cosine threshold decides what is kept, as ``[0.17+0.12]``: recent + heavy.

    None where the budget decides. Such a row must not be named by its budget, which only picks the protected fractions.
    """
    # `KVMerger.budget_is_outcome` says the same of an instance, but importing the class brings torch. A test compares them.
    is_by_threshold = policy == "kvmerger_paper" or params.get("mode") == "threshold"
    if not (is_by_threshold and isinstance(budget, KeptRatio)):
        return None
    by_budget = protected_ratios(budget.ratio)
    recent_ratio, heavy_ratio = (
        default if params.get(name) is None else params[name] for name, default in by_budget._asdict().items()
    )
    return f"[{recent_ratio:g}+{heavy_ratio:g}]"
