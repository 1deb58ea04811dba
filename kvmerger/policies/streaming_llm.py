"""Attention sinks and a recent window, nothing in between."""

from dataclasses import dataclass

import torch

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.evidence import Evidence
from kvmerger.layer_cache import LayerCache
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.registry import register
from kvmerger.policies.selection import keep_highest


@register("streaming_llm")
@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keep the first ``n_sink`` tokens and the most recent ones.

    Based on "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453). Differs from it in that keys
    keep the positions they were computed at; the original assigns positions inside the cache.
    """

    n_sink: int = 4

    def __post_init__(self) -> None:
        """Refuse what is no number of tokens."""
        if not isinstance(self.n_sink, int) or self.n_sink < 0:
            raise PolicyError(f"streaming_llm: n_sink must be a whole number from 0 on, got {self.n_sink!r}")

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The budget must hold the sinks and at least one recent token."""
        if not isinstance(budget, LikeVariant):
            self._require_room(num_slots_for(budget, shape.num_tokens), shape.num_tokens)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep sinks and window in every head."""
        self._require_room(min(budget.num_slots_H), evidence.num_tokens)
        scores_N = torch.arange(evidence.num_tokens, dtype=torch.float64, device=layer.k_SD.device)
        scores_N[: self.n_sink] = float("inf")
        return keep_highest(layer, scores_N.expand(layer.num_heads, -1), budget)

    def _require_room(self, num_slots: int, num_tokens: int) -> None:
        if num_slots <= self.n_sink:
            raise BudgetError(
                f"streaming_llm: {num_slots} slots per head of {num_tokens} tokens leave no recent token beside "
                f"n_sink={self.n_sink}; raise the budget or lower n_sink"
            )
