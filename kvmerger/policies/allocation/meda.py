"""MEDA: layers that attend widely get more slots, by the entropy of their attention.

Shapes: L layers, Q query heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvmerger.budget import Budget, share_of
from kvmerger.policies.allocation.layers import LayerAllocator
from kvmerger.policies.allocation.shares import in_proportion
from kvmerger.policies.parameters import require_ratio
from kvmerger.policies.registry import register_wrapper
from kvmerger.prefill.evidence import Evidence, Need
from kvmerger.prefill.row_entropy import ROW_ENTROPY


@register_wrapper("meda")
@dataclass(frozen=True)
class Meda(LayerAllocator):
    """Share slots out among layers by the softmax of the mean entropy of their attention.

    Based on "MEDA: Dynamic KV Cache Allocation for Efficient Multimodal Long-Context Inference" (arXiv 2502.17599) as
    its authors' script runs it: the entropy, in nats, is that of each query's whole attention row, averaged over queries
    and query heads, and a layer's share of the slots is softmax(entropy) within bounds. Of the method itself ``h2o`` is
    the ranking, half recent tokens and half heavy hitters. Differs in that the sum is exact also where a bound cuts a
    share: what one layer cannot take goes to the others in proportion. A nat more is 2.7 times the slots, so that at
    small budgets most layers are at their least. The cross-modal entropy, which the script does not call, and the
    merging are left out.

    Attributes:
        inner: chooses within a layer.
        least_share: share (0–1) of its tokens that every layer keeps, as far as the budget goes.
    """

    least_share: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what is no ranking, and what is no share."""
        super().__post_init__()
        require_ratio("meda", "least_share", self.least_share)

    def needs(self) -> frozenset[Need]:
        """What the ranking reads, and the entropy."""
        return super().needs() | {ROW_ENTROPY}

    def slots_of_layers(self, even: Budget, evidence_L: Sequence[Evidence]) -> Sequence[int]:
        """What softmax of the layers' entropies gives, within bounds."""
        entropy_L = torch.stack([evidence.get(ROW_ENTROPY).double().mean() for evidence in evidence_L])
        mean, num_tokens = even.num_slots_H[0], evidence_L[0].num_tokens
        least = max(self.least_slots, min(share_of(num_tokens, self.least_share), mean))
        return in_proportion(entropy_L.softmax(dim=0).tolist(), mean * len(evidence_L), least, num_tokens)
