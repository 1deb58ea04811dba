"""Ada-KV: the heads of a layer compete for its slots, since some attend more widely than others.

Shapes: L layers, H KV heads, N tokens, F tokens of all heads of a layer.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, share_of
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_share
from kvmerger.policies.registry import name_of, path_of, register_wrapper
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.wrapper import RankingWrapper
from kvmerger.prefill.evidence import Evidence


@register_wrapper("adakv")
@dataclass(frozen=True)
class AdaKV(RankingWrapper):
    """Keep a layer's highest-scored tokens whichever head they are in, after each head has got a share of its own.

    Based on "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation" (arXiv 2407.11550), Algorithm 1, with
    the paper's floor; no head is left empty while ``alpha`` is above 0. Any ranking can stand in front of it:
    ``snapkv+adakv`` (kvpress writes ``adakv_snapkv``). Heads end up with different lengths, and the memory of what is
    dropped is really freed.

    Attributes:
        inner: whose scores count. They must be comparable between the heads of a layer.
        alpha: share (0–1) of its even budget that every head keeps whatever the others' scores are.
    """

    alpha: float = 0.2

    version = 2
    heads_differ = True

    def __post_init__(self) -> None:
        """Refuse what has no scores, or shares slots out among heads itself, and shares outside 0–1."""
        if not isinstance(self.inner, ScoringPolicy):
            raise PolicyError(
                f"adakv needs a policy that ranks tokens by scores, and {path_of(self.inner)} does not"
            )
        for part in self.inner.parts:
            if part.heads_differ:
                raise PolicyError(
                    f"adakv shares slots out among heads, and the heads of {name_of(part)} compete already; leave adakv out"
                )
        require_share("adakv", "alpha", self.alpha)

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` where the ranking does, and for a budget that fixes every head's slots."""
        if isinstance(budget, LikeVariant):
            raise BudgetError(
                f"adakv shares slots out among heads, and the budget {budget} fixes every head's; "
                f"use the ranking alone, or a budget such as 0.5"
            )
        super().check(shape, budget)

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """The budget, since heads share it."""
        # Not the ranking's None: `select` divides the stack's slots evenly among its layers.
        return budget

    def scores(self, evidence: Evidence) -> Tensor:
        """The ranking's scores: (H, N)."""
        return self.inner.scores(evidence)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """The ranking's scores at an even ``budget``, ``inf`` for what every head keeps whatever the others' are: (H, N)."""
        scores_HN = self.inner.checked_scores(evidence, budget)
        # Protected tokens have inf and come first, so one floor covers both them and the share. A share that rounds to no
        # slot counts as one, as in kvpress: a head without a slot would answer from the tail alone.
        floor = max(share_of(budget.num_slots_H[0], self.alpha), self.num_protected, int(self.alpha > 0))
        is_safe_HN = is_among_highest(scores_HN, (floor,) * evidence.num_heads)
        return scores_HN.masked_fill(is_safe_HN, float("inf"))

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), the layer's highest scores after each head's share and protected tokens."""
        if len(set(budget.num_slots_H)) > 1:
            raise BudgetError(f"adakv shares out an even budget among heads, got {budget.num_slots_H}")
        self._require_room(budget.num_slots_H[0], evidence.num_tokens)
        scores_HN = self.checked_scores(evidence, budget)
        # Heads compete within their layer alone, also where several layers came as one.
        scores_LF = evidence.by_layer(scores_HN).flatten(1)
        num_layers = len(evidence.layers)
        is_kept_LF = is_among_highest(scores_LF, (budget.num_slots // num_layers,) * num_layers)
        return is_kept_LF.view_as(scores_HN)
