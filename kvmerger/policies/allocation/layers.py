"""Base of what shares slots out among layers by what each prompt's own layers say, whatever ranks tokens within a layer.

Shapes: L layers, H KV heads, N tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.registry import name_of, path_of
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.wrapper import RankingWrapper
from kvmerger.prefill.evidence import Evidence


@dataclass(frozen=True)
class LayerAllocator(RankingWrapper):
    """Base of allocators by layer. Subclasses give `slots_of_layers`; the ranking in front chooses within a layer.

    Heads of a layer get as many slots each, layers unlike numbers, and the model exactly what the budget allows. A layer has
    at least what the ranking protects, or one slot.

    Attributes:
        inner: the ranking, one that keeps each head's highest scores and gives all heads and layers the same.
    """

    layers_differ = True

    def __post_init__(self) -> None:
        """Refuse what has no scores, chooses in its own way, or shares slots out itself."""
        if not isinstance(self.inner, ScoringPolicy) or type(self.inner).select is not ScoringPolicy.select:
            raise PolicyError(
                f"{name_of(self)} shares slots out among layers, each of which keeps its highest scores, and "
                f"{path_of(self.inner)} does not choose so; put a ranking in front, as in snapkv+{name_of(self)}, and what "
                f"shares out among heads behind, as in snapkv+{name_of(self)}+adakv"
            )
        for part in self.inner.parts:
            if part.layers_differ or part.heads_differ:
                raise PolicyError(
                    f"{name_of(self)} shares slots out among layers, and {name_of(part)} has shared them out already; leave "
                    f"one of them out"
                )

    @property
    def heads_agree(self) -> bool:  # type: ignore[override]
        """As the ranking says."""
        return self.inner.heads_agree

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` unless there are slots beyond each layer's least, and two layers to share them out among."""
        if isinstance(budget, LikeVariant):
            raise BudgetError(
                f"{name_of(self)} shares slots out among layers, and the budget {budget} fixes every layer's; use "
                f"{path_of(self.inner)} alone, or a budget such as 0.5"
            )
        super().check(shape, budget)
        num_slots = num_slots_for(budget, shape.num_tokens)
        if num_slots <= self.least_slots or shape.num_layers == 1:
            raise BudgetError(
                f"{name_of(self)}: {num_slots} slots, of which every layer has {self.least_slots} anyway, on "
                f"{shape.num_layers} layer(s) leave nothing to share out; raise the budget, let the ranking protect less or "
                f"use {path_of(self.inner)} alone"
            )

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Move slots between layers; their sum stays."""
        # `check` has refused budgets that differ between layers or heads: the first stands for all.
        even, num_tokens = budget_L[0], evidence_L[0].num_tokens
        if even.num_slots_H[0] >= num_tokens:
            return budget_L
        return [
            Budget.uniform(num_slots, len(even.num_slots_H), num_slots / num_tokens)
            for num_slots in self.slots_of_layers(even, evidence_L)
        ]

    @abc.abstractmethod
    def slots_of_layers(self, even: Budget, evidence_L: Sequence[Evidence]) -> Sequence[int]:
        """Slots per head of every layer, from `least_slots` to all tokens; they sum to L times those of ``even``."""

    @property
    def least_slots(self) -> int:
        """Slots per head that every layer gets."""
        # One: a layer without any would answer from the tail alone.
        return max(1, self.num_protected)

    def scores(self, evidence: Evidence) -> Tensor:
        """The ranking's: (H, N)."""
        return self.inner.scores(evidence)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """The ranking's at ``budget``: (H, N)."""
        return self.inner.scores_at(evidence, budget)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """As the ranking does, with what it counts."""
        return self.inner.compress(layer, evidence, budget)
