"""H2O: keep the recent tokens and the heavy hitters, the few tokens that receive most of the attention.

Shapes: H KV heads, N tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget, share_of
from kvmerger.device import upload
from kvmerger.policies.parameters import require_share
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, Need


@register("h2o")
@dataclass(frozen=True)
class H2O(ScoringPolicy):
    """Keep the most recent tokens and, of the others, those with most accumulated attention.

    Based on "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models" (arXiv 2306.14048),
    in its prompt-phase form: applied once, to the attention all prompt tokens paid (s_j = Σ_t A_tj), where the original
    drops one token at each step of decoding. Mass is averaged over the query heads of a group; the authors' code has
    one KV head per query head. Early tokens can collect more; ``observed_attention`` corrects for that.

    Attributes:
        recent_share: share (0–1) of a head's slots that goes to the most recent tokens, rounded down. Half, as the
            authors' equal ratios 0.1 + 0.1 of the prompt.
    """

    recent_share: float = 0.5

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        require_share("h2o", "recent_share", self.recent_share)

    def needs(self) -> frozenset[Need]:
        """Column sums of the prompt's attention."""
        return frozenset({ATTENTION_MASS})

    def scores(self, evidence: Evidence) -> Tensor:
        """Accumulated attention: fp32 (H, N)."""
        return evidence.get(ATTENTION_MASS)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Accumulated attention, ``inf`` for each head's recent share: fp32 (H, N)."""
        mass_HN = self.scores(evidence)
        recent_H = [share_of(num_slots, self.recent_share) for num_slots in budget.num_slots_H]
        first_recent_H = evidence.num_tokens - upload(recent_H, mass_HN.device)
        column_N = torch.arange(evidence.num_tokens, device=mass_HN.device)
        return mass_HN.masked_fill(column_N >= first_recent_H[:, None], float("inf"))
