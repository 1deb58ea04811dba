"""CriticalKV: half of the slots by a ranking, the other half by its scores times how much a value moves the output.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget, share_of
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.base import PolicyError
from kvmerger.policies.parameters import is_number, require_share
from kvmerger.policies.registry import path_of, register_wrapper
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.selection import take_highest, take_selected
from kvmerger.policies.wrapper import RankingWrapper
from kvmerger.prefill.evidence import Evidence, Need
from kvmerger.prefill.output_norms import value_output_norms

_NORMS = value_output_norms(1)


@register_wrapper("criticalkv")
@dataclass(frozen=True)
class CriticalKV(RankingWrapper):
    """Keep half by the ranking in front, and the rest by its scores times how much a value moves the output.

    Based on "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective" (arXiv 2502.03805). The
    second half goes to the highest (score + epsilon)·‖W_o v‖₁, the norm averaged over the query heads of a group. Behind
    ``+adakv`` heads have the slots that it gives them by the ranking alone, and the tokens it guarantees (the paper's
    Critical-AdaKV). What the ranking protects stays protected. Scores should be shares of attention: ``epsilon`` is measured
    on them, and a negative score becomes worse with the norm. ``expected_attention`` has values' norms in its own already:
    put it in front with ``use_vnorm: false``.

    Attributes:
        inner: whose scores count.
        epsilon: added to a score before it is multiplied; of a long prompt's mean attention, 1 ÷ N, it is a large part.
        first_stage_ratio: share (0–1) of each head's slots that the ranking alone decides.
    """

    epsilon: float = 1e-4
    first_stage_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what has no scores, and values outside their domain."""
        if not isinstance(self.inner, ScoringPolicy):
            raise PolicyError(
                f"criticalkv needs a policy that ranks tokens by scores, and {path_of(self.inner)} does not"
            )
        if not (is_number(self.epsilon) and self.epsilon >= 0):
            raise PolicyError(f"criticalkv: epsilon must be a number from 0 on, got {self.epsilon!r}")
        require_share("criticalkv", "first_stage_ratio", self.first_stage_ratio)

    def needs(self) -> frozenset[Need]:
        """What the ranking reads, and the norms."""
        return super().needs() | {_NORMS}

    def scores(self, evidence: Evidence) -> Tensor:
        """The product alone, which the second half is chosen by: (H, N)."""
        return self._product(self.inner.scores(evidence), evidence)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """The product, ``inf`` for what the ranking alone decides in heads of ``budget``: (H, N)."""
        return self._two_stages(evidence, budget, budget.num_slots_H)

    def _two_stages(self, evidence: Evidence, budget: Budget, num_slots_H: tuple[int, ...]) -> Tensor:
        scores_HN = self.inner.checked_scores(evidence, budget)
        first_H = tuple(share_of(num_slots, self.first_stage_ratio) for num_slots in num_slots_H)
        # One at least, as in kvpress, unless there is no first stage at all.
        least = int(self.first_stage_ratio > 0)
        first_H = tuple(max(least, count) for count in first_H)
        is_first_HN = is_among_highest(scores_HN, first_H)
        return self._product(scores_HN, evidence).masked_fill(is_first_HN, torch.inf)

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), in every head as many as the ranking keeps there."""
        if self._inner_is_plain:
            return super().select(evidence, budget)
        num_slots_H = tuple(self.inner.selected(evidence, budget).sum(dim=1).tolist())
        return is_among_highest(self._two_stages(evidence, budget, num_slots_H), num_slots_H)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged."""
        if not self._inner_is_plain:
            return take_selected(layer, self.selected(evidence, budget))
        # How many are kept is known, and the device not waited for.
        self._require_room(min(budget.num_slots_H), evidence.num_tokens)
        return take_highest(layer, self.checked_scores(evidence, budget), budget)

    @property
    def _inner_is_plain(self) -> bool:
        """Whether the ranking keeps the highest scores of each head by itself, as many as the budget says."""
        return type(self.inner).select is ScoringPolicy.select

    def _product(self, scores_HN: Tensor, evidence: Evidence) -> Tensor:
        product_HN = (scores_HN + self.epsilon) * evidence.get(_NORMS)
        # Infinity times a norm of 0 is no number.
        return product_HN.masked_fill(scores_HN == torch.inf, torch.inf)
