"""PyramidKV: lower layers, which attend widely, get more slots than higher ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.registry import register
from kvmerger.prefill.evidence import Evidence


@register("pyramidkv")
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Keep what SnapKV keeps, with slots that decrease linearly from the first layer to the last.

    Based on "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling" (arXiv 2406.02069) and its
    authors' code: every layer keeps the window; the other slots, C − w on average, fall linearly from
    2(C − w) − (C − w)/β to (C − w)/β. Where the first layer would get more than the prompt has, it gets that, and the
    slope flattens so that the sum stays (above about half of the prompt). Layers are rounded by largest remainder: the
    model keeps exactly the slots it was allowed. A budget that the window fills is refused.

    Attributes:
        beta: the last layer gets the average divided by this; above 1. Larger is steeper.
    """

    beta: float = 20

    layers_differ = True

    def __post_init__(self) -> None:
        """Refuse what SnapKV refuses, and a pyramid without slope."""
        super().__post_init__()
        if (
            isinstance(self.beta, bool)
            or not isinstance(self.beta, int | float)
            or not 1 < self.beta < math.inf
        ):
            raise PolicyError(
                f"pyramidkv: beta must be a number above 1 (at 1 all layers get the same: use snapkv), got {self.beta!r}"
            )

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` unless there are slots beyond the window and at least two layers to share them out among."""
        super().check(shape, budget)
        if isinstance(budget, LikeVariant):
            raise BudgetError(
                f"pyramidkv shares slots out among layers, and the budget {budget} fixes every layer's; use snapkv, or a "
                f"budget such as 0.5"
            )
        num_slots = num_slots_for(budget, shape.num_tokens)
        if num_slots <= self.window_size or shape.num_layers == 1:
            raise BudgetError(
                f"pyramidkv: {num_slots} slots, of which the window takes {self.window_size}, on {shape.num_layers} "
                f"layer(s) leave nothing to share out; raise the budget, lower window_size or use snapkv"
            )

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Move slots from later layers to earlier ones; their sum stays."""
        # `check` has refused budgets that differ between layers or heads: the first stands for all.
        num_tokens, even = evidence_L[0].num_tokens, budget_L[0]
        mean = even.num_slots_H[0] - self.window_size
        beyond_window_L = _pyramid(mean, num_tokens - self.window_size, len(budget_L), self.beta)
        return [
            Budget.uniform(num_slots, len(even.num_slots_H), num_slots / num_tokens)
            for num_slots in (self.window_size + beyond for beyond in beyond_window_L)
        ]


def _pyramid(mean: int, most: int, num_layers: int, beta: float) -> list[int]:
    """Whole numbers, never rising, that sum to ``mean * num_layers``; each from 0 to ``most``; 2 layers or more."""
    # Fractions of what the user wrote: with floats the exact sum below could come out one slot off.
    lowest = mean / Fraction(str(beta))
    highest = min(2 * mean - lowest, Fraction(most))
    step = 2 * (highest - mean) / (num_layers - 1)
    exact_L = [highest - layer * step for layer in range(num_layers)]
    whole_L = [math.floor(exact) for exact in exact_L]
    # Largest remainder first; a stable sort, so that of equal ones the earlier layer gets the slot.
    by_remainder = sorted(range(num_layers), key=lambda layer: whole_L[layer] - exact_L[layer])
    for layer in by_remainder[: mean * num_layers - sum(whole_L)]:
        whole_L[layer] += 1
    return whole_L
