"""XKV: the next slot goes to the layer whose next best tokens hold the largest share of its own attention.

Shapes: L layers, H KV heads, N tokens in the order of their rank, each head's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.allocation.layers import LayerAllocator
from kvmerger.policies.registry import register_wrapper
from kvmerger.prefill.evidence import Evidence


@register_wrapper("xkv")
@dataclass(frozen=True)
class XKV(LayerAllocator):
    """Share slots out among layers so that the layers' kept shares of their scores sum to as much as they can.

    Based on "XKV: Personalized KV Cache Memory Reduction for Long-Context LLM Inference" (arXiv 2412.05896) and its authors'
    code. What a layer gains by its s-th slot is the s-th highest score of every head, over the sum of all of the layer's
    scores; protected tokens are not among them. Gains fall with s, so that the authors' greedy choice (each slot to the
    layer that gains most by it) is the exact optimum, and is found as the highest of all layers' gains at once. Differs in
    that it is done for every prompt, where the authors take the mean over 10 to 20 % of the requests; a token's score is its
    KV head's, not each query head's; of equal gains every layer gets its first before any gets a second, where the authors'
    first layer takes them all. Their other mode, which stops where the kept shares reach a target, is left out.

    Attributes:
        inner: whose scores count. Where a layer has scores below 0, they count from the lowest on.
    """

    def slots_of_layers(self, even: Budget, evidence_L: Sequence[Evidence]) -> Sequence[int]:
        """Each layer's least, and one more for each of its gains that is among the model's highest."""
        num_layers, least = len(evidence_L), self.least_slots
        beyond = (even.num_slots_H[0] - least) * num_layers
        gain_LN = torch.stack([self._gains(evidence, even) for evidence in evidence_L])
        # Layers last: of equal gains the lower rank, then the earlier layer.
        gain_NL = gain_LN[:, least:].T.reshape(1, -1)
        is_taken_NL = is_among_highest(gain_NL, (beyond,))
        taken_L: list[int] = is_taken_NL.view(-1, num_layers).sum(dim=0).tolist()
        return [least + taken for taken in taken_L]

    def _gains(self, evidence: Evidence, even: Budget) -> Tensor:
        """What a layer gains by each slot: fp64 (N,), from the most on."""
        # fp64: of some ten thousand tokens the last gains differ by less than fp32 can tell.
        ranked_HN = self.inner.checked_scores(evidence, even).double().sort(dim=1, descending=True).values
        finite_HN = ranked_HN.masked_fill(~ranked_HN.isfinite(), 0)
        above_HN = torch.where(ranked_HN.isfinite(), ranked_HN - finite_HN.min(), 0)
        # A layer whose scores are all alike 0 gains nothing by any slot.
        total = above_HN.sum().clamp_min(torch.finfo(torch.float64).tiny)
        # What must stay is no part of the sum, and beyond the least (recent or massive tokens) gains as its head's best.
        best_H1 = above_HN.amax(dim=1, keepdim=True)
        return torch.where(ranked_HN == torch.inf, best_H1, above_HN).sum(dim=0) / total
