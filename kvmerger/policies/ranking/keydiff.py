"""KeyDiff: keep the keys whose direction differs most from the mean direction of all keys.

Shapes: H KV heads, N tokens, F = H·N flat tokens, D head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.kernels import dispatch
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence

ANCHOR_COSINES = Need("anchor_cosines")


@register_evidence(ANCHOR_COSINES.name, reads_queries=False)
def _anchor_cosines(states: LayerStates) -> Tensor:
    """Cosine of each key with its head's mean normalised key: fp32 (H, N)."""
    anchor_HD = dispatch.mean_units(states.k_HND)
    # Every token with its own head's anchor, by index: the keys are not copied and no anchor is repeated.
    token_F = torch.arange(states.k_HND[..., 0].numel(), device=states.k_HND.device)
    head_F = token_F // states.k_HND.shape[1]
    cosine_F = dispatch.pair_cosines(states.k_HND.flatten(0, 1), token_F, head_F, anchor_HD)
    return cosine_F.view(states.k_HND.shape[:2])


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
