"""SimLayerKV: layers that look at first and recent tokens only keep those, all others everything.

Shapes: L layers of a stack, H KV heads of all of them, Q query heads, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.outcomes.base import OutcomePolicy
from kvmerger.policies.parameters import require_count, require_share
from kvmerger.policies.registry import register
from kvmerger.prefill.evidence import Evidence, Need, window_attention

_LAST_QUERY = window_attention(1)


@register("simlayerkv")
@dataclass(frozen=True)
class SimLayerKV(OutcomePolicy):
    """Keep first and recent tokens in layers whose last query looks at little else, and everything in the others.

    Based on "SimLayerKV: A Simple Framework for Layer-Level KV Cache Reduction" (arXiv 2410.13846). A layer is lazy where
    the last query's attention on the first ``n_initial`` and the last ``n_recent`` tokens, averaged over query heads, is
    above ``lazy_threshold``; it then keeps just those. The authors set the threshold for each model: Llama-3 0.9, Llama-2
    0.65, Mistral 0.8, Qwen 0.85. In query-agnostic mode the last query is the context's. A prompt no longer than both
    parts is kept whole.

    Attributes:
        lazy_threshold: attention (0–1) above which a layer is lazy; at 1 none is.
        n_initial: first tokens of a lazy layer.
        n_recent: recent tokens of a lazy layer.
    """

    lazy_threshold: float = 0.9
    n_initial: int = 4
    n_recent: int = 1024

    layers_differ = True
    heads_agree = True
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_share("simlayerkv", "lazy_threshold", self.lazy_threshold)
        require_count("simlayerkv", "n_initial", self.n_initial, at_least=0)
        require_count("simlayerkv", "n_recent", self.n_recent)

    def needs(self) -> frozenset[Need]:
        """The last query's attention."""
        return frozenset({_LAST_QUERY})

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), the same in all heads of a layer."""
        is_lazy_L1 = self._nearby_attention(evidence)[:, None] > self.lazy_threshold
        return evidence.for_heads(self._is_near(evidence) | ~is_lazy_L1)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged; count what decided."""
        nearby_H = evidence.for_heads(self._nearby_attention(evidence))
        counters = {
            "nearby_attention": PerHead(nearby_H),
            "lazy_ratio": PerHead((nearby_H > self.lazy_threshold).float()),
        }
        return super().compress(layer, evidence, budget).counting(counters)

    def _nearby_attention(self, evidence: Evidence) -> Tensor:
        """The last query's attention on first and recent tokens, mean over query heads: fp32 (L,)."""
        attention_LN = evidence.by_layer(evidence.get(_LAST_QUERY)).mean(dim=1)
        # Rounding may bring the sum above 1, where a threshold of 1 would find a lazy layer.
        return attention_LN.masked_fill(~self._is_near(evidence), 0).sum(dim=1).clamp_max(1)

    def _is_near(self, evidence: Evidence) -> Tensor:
        """First and recent tokens: bool (N,)."""
        place_N = torch.arange(evidence.num_tokens, device=evidence.device)
        return (place_N < self.n_initial) | (place_N >= evidence.num_tokens - self.n_recent)
