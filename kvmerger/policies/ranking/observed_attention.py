"""Observed attention: a token's score is the mean attention it received from the tokens that could see it.

Shapes: H KV heads, N tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, Need


@register("observed_attention")
@dataclass(frozen=True)
class ObservedAttention(ScoringPolicy):
    """Keep the tokens with most attention per query that could see them.

    Based on the scores of H2O (arXiv 2306.14048), as kvpress's ``observed_attention`` corrects them: token j of N is seen
    by N − j queries, and its accumulated attention is divided by that number. No recent window, nothing protected; with
    one, and without the division, it is ``h2o``. The mean over a group's query heads is the same. kvpress needs eager
    attention for it; here the attention matrix never exists as a whole.
    """

    compresses_stacks = True

    def needs(self) -> frozenset[Need]:
        """Column sums of the prompt's attention."""
        return frozenset({ATTENTION_MASS})

    def scores(self, evidence: Evidence) -> Tensor:
        """Mean attention received: fp32 (H, N)."""
        # Causal: token j is seen by itself and all later ones, N − j in all.
        num_seeing_N = torch.arange(evidence.num_tokens, 0, -1, device=evidence.device)
        return evidence.get(ATTENTION_MASS) / num_seeing_N
