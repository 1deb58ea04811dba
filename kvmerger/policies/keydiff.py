"""Keys that point where most others point are replaceable: keep the odd ones.

Shapes: H KV heads, N tokens, D head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.evidence import Evidence, LayerStates, Need, register_evidence
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy

ANCHOR_COSINES = Need("anchor_cosines")


@register_evidence(ANCHOR_COSINES.name, reads_queries=False)
def _anchor_cosines(states: LayerStates) -> Tensor:
    """Cosine of each key with its head's mean normalised key: fp32 (H, N)."""
    k_HND = states.k_HND.float()
    anchor_H1D = F.normalize(k_HND, dim=-1).mean(dim=1, keepdim=True)
    return torch.cosine_similarity(k_HND, anchor_H1D, dim=-1)


@register("keydiff")
@dataclass(frozen=True)
class KeyDiff(ScoringPolicy):
    """Keep the keys least similar to the mean of all normalised keys.

    Based on "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
    Environments" (arXiv 2504.15364): the score is −cos(k, anchor), on keys after RoPE. Applied once to the whole prompt,
    as kvpress's ``keydiff``; the paper's prompts come in blocks and are evicted after each. Nothing is protected.
    """

    compresses_stacks = True

    def needs(self) -> frozenset[Need]:
        """Cosines with the anchor."""
        return frozenset({ANCHOR_COSINES})

    def scores(self, evidence: Evidence) -> Tensor:
        """Minus the cosine: fp32 (H, N)."""
        return -evidence.get(ANCHOR_COSINES)
