"""Massive tokens stay, in place of those that a ranking keeps with its lowest scores.

Shapes: L layers of a stack, H KV heads of all of them, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.policies.base import PolicyError
from kvmerger.policies.parameters import require_positive
from kvmerger.policies.registry import path_of, register_wrapper
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.wrapper import RankingWrapper
from kvmerger.prefill.evidence import Evidence, Need
from kvmerger.prefill.massive import MASSIVE, TIMES_MEDIAN


@register_wrapper("protect_massive")
@dataclass(frozen=True)
class ProtectMassive(RankingWrapper):
    """Keep massive tokens in all heads of a layer, in place of the lowest-ranked tokens that the ranking in front would keep.

    A token is massive in a layer where its largest magnitude in the stream that the layer starts from is above
    ``times_median`` medians of that stream's magnitudes ("Massive Activations in Large Language Models", arXiv 2402.17762,
    without its bound in absolute numbers; "House of Cards: Massive Weights in LLMs", arXiv 2410.01866, on where they arise).
    Such a token is protected as sinks are: it counts in the budget, no number of slots changes, and a layer without one is
    the ranking's own, bit for bit. Where a head's slots do not hold all that is protected, the earlier tokens stay. What acts
    while answering goes by its own rule, and may drop massive tokens then.

    Attributes:
        inner: the ranking, one that keeps each head's highest scores.
        times_median: above so many medians a token is massive.
    """

    times_median: float = TIMES_MEDIAN

    def __post_init__(self) -> None:
        """Refuse what does not rank or chooses in its own way, and a bound that is none."""
        if not isinstance(self.inner, ScoringPolicy) or type(self.inner).select is not ScoringPolicy.select:
            raise PolicyError(
                f"protect_massive raises scores of a policy that keeps the highest, and {path_of(self.inner)} does not "
                f"choose so; put a ranking in front, as in snapkv+protect_massive, and whatever else changes it behind"
            )
        require_positive("protect_massive", "times_median", self.times_median)

    @property
    def heads_agree(self) -> bool:  # type: ignore[override]
        """As the ranking says: a token is massive for all heads of a layer."""
        return self.inner.heads_agree

    def needs(self) -> frozenset[Need]:
        """What the ranking reads, and how massive tokens are."""
        return super().needs() | {MASSIVE}

    def scores(self, evidence: Evidence) -> Tensor:
        """The ranking's scores, ``inf`` for massive tokens: (H, N)."""
        return self._raised(self.inner.scores(evidence), evidence)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """The ranking's scores at ``budget``, ``inf`` for massive tokens: (H, N)."""
        return self._raised(self.inner.checked_scores(evidence, budget), evidence)

    def _raised(self, scores_HN: Tensor, evidence: Evidence) -> Tensor:
        is_massive_LN = evidence.by_layer(evidence.get(MASSIVE)) > self.times_median
        return scores_HN.masked_fill(evidence.for_heads(is_massive_LN), torch.inf)
