"""Policies that rank tokens: each token gets a score, and the highest scores are kept.

Most methods differ in their scores alone. How many tokens each head keeps, and whether the others are merged, is decided by
wrappers, which accept any such policy: ``snapkv+adakv``.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.base import CacheShape
from kvmerger.policies.registry import path_of
from kvmerger.policies.returned import checked_scores
from kvmerger.policies.selection import SelectingPolicy, take_highest
from kvmerger.prefill.evidence import Evidence


@dataclass(frozen=True)
class ScoringPolicy(SelectingPolicy):
    """Base of policies that keep the tokens they score highest. Subclasses give `scores`."""

    @abc.abstractmethod
    def scores(self, evidence: Evidence) -> Tensor:
        """How much each token is worth keeping: floats (H, N), ``inf`` for tokens that must stay."""

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """`scores`, for methods whose protected part grows with the budget; for all others the same at every budget."""
        return self.scores(evidence)

    def checked_scores(self, evidence: Evidence, budget: Budget) -> Tensor:
        """`scores_at`, which every ranking of them asks through this: floats (H, N), on the evidence's device.

        Raises:
            PolicyError: that is not what came.
        """
        return checked_scores(
            self.scores_at(evidence, budget),
            (evidence.num_heads, evidence.num_tokens),
            evidence.device,
            path_of(self),
            len(evidence.layers),
        )

    @property
    def num_protected(self) -> int:
        """Tokens per head that the method always keeps, such as sinks and windows; budgets below it are refused."""
        return 0

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The budget must hold what is protected."""
        # How many slots a like budget gives is known only after its variant has run: `select` looks again.
        if not isinstance(budget, LikeVariant):
            self._require_room(num_slots_for(budget, shape.num_tokens), shape.num_tokens)

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """Always None: any layers may form a stack."""
        # Even with unequal budgets: a head's scores depend on no other head, and ranking takes a count for each head.
        return None

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), ``budget.num_slots_H[h]`` of them in head h. Ties go to the earlier token.

        Raises:
            BudgetError: a head's budget does not hold what is protected.
        """
        self._require_room(min(budget.num_slots_H), evidence.num_tokens)
        return is_among_highest(self.checked_scores(evidence, budget), budget.num_slots_H)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged."""
        # A subclass may choose in its own way. Where it does not, how many are kept is known, and the device not waited for.
        if type(self).select is not ScoringPolicy.select:
            return super().compress(layer, evidence, budget)
        self._require_room(min(budget.num_slots_H), evidence.num_tokens)
        return take_highest(layer, self.checked_scores(evidence, budget), budget)

    def _require_room(self, num_slots: int, num_tokens: int) -> None:
        if num_slots < self.num_protected:
            raise BudgetError(
                f"{self} always keeps {self.num_protected} tokens per head, and the budget is {num_slots} slots of "
                f"{num_tokens} tokens; raise the budget or protect less"
            )
