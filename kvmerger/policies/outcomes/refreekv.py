"""ReFreeKV: a layer drops what its last query would not miss, from the oldest tokens on.

Shapes: L layers of a stack, H KV heads of all of them, G query heads of each, N tokens, M candidates: the tokens that may go,
first those that stay longest.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.policies.outcomes.base import OutcomePolicy
from kvmerger.policies.parameters import require_choice, require_count, require_ratio
from kvmerger.policies.registry import register
from kvmerger.prefill.evidence import Evidence, Need, window_attention

_LAST_QUERY = window_attention(1)


@register("refreekv")
@dataclass(frozen=True)
class ReFreeKV(OutcomePolicy):
    """Keep of each layer the fewest tokens, in a fixed order, that leave the norm of the last query's attention as it was.

    Based on "ReFreeKV: Towards Threshold-Free KV Cache Compression" (arXiv 2502.16886, first titled "DBudgetKV") and its
    authors' code. The first ``n_initial`` tokens stay; all others are candidates, from the last backwards. A layer keeps the
    fewest of them for which the root of the sum of squared attention, averaged over query heads, is at least
    1 − ``threshold`` of what it is for all candidates: one count per layer, which all heads share. The defaults are the
    text's; the authors' script is ``ranked_by: attention, threshold: 0.05, whole_layers: 0``. In query-agnostic mode the last
    query is the context's, and says little of what an answer needs. A prompt without candidates is kept whole.

    Attributes:
        threshold: share (0–1) of the norm that may be lost; at 0 everything stays.
        whole_layers: first layers of the model that keep everything.
        ranked_by: recency, or attention: the last ``window_size`` tokens stay in place of the first ones, and each head's
            candidates come by what these attend to (which the script calls h2o).
        n_initial: first tokens that stay, where candidates come by recency.
        window_size: last tokens that stay, where they come by attention.
    """

    threshold: float = 0.01
    whole_layers: int = 2
    ranked_by: str = "recency"
    n_initial: int = 4
    window_size: int = 8

    layers_differ = True
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_ratio("refreekv", "threshold", self.threshold)
        require_count("refreekv", "whole_layers", self.whole_layers, at_least=0)
        require_choice("refreekv", "ranked_by", self.ranked_by, ("recency", "attention"))
        require_count("refreekv", "n_initial", self.n_initial, at_least=0)
        require_count("refreekv", "window_size", self.window_size)

    @property
    def heads_agree(self) -> bool:  # type: ignore[override]
        """By recency they do; by attention every head has an order of its own."""
        return self.ranked_by == "recency"

    def needs(self) -> frozenset[Need]:
        """The last query's attention, and the window's where candidates come by it."""
        return frozenset({_LAST_QUERY} | ({self._window} if self.ranked_by == "attention" else set()))

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """Whether the layer is one of the first."""
        return self._is_whole(evidence)

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), as many in all heads of a layer."""
        is_kept_HN = torch.ones(
            evidence.num_heads, evidence.num_tokens, dtype=torch.bool, device=evidence.device
        )
        order_HM = self._candidates(evidence)
        num_candidates = order_HM.shape[1]
        if self._is_whole(evidence) or self.threshold == 0 or num_candidates == 0:
            return is_kept_HN
        order_LHM = evidence.by_layer(order_HM)
        num_kept_L = torch.stack(list(map(self._num_kept, evidence.layers, order_LHM)))
        place_M = torch.arange(num_candidates, device=evidence.device)
        return is_kept_HN.scatter_(1, order_HM, place_M < evidence.for_heads(num_kept_L[:, None]))

    def _is_whole(self, evidence: Evidence) -> bool:
        return evidence.layer_index < self.whole_layers

    def _candidates(self, evidence: Evidence) -> Tensor:
        """Tokens that may go, in the order in which they stay: int64 (H, M)."""
        if self.ranked_by == "recency":
            num_candidates = max(0, evidence.num_tokens - self.n_initial)
            last_first_M = evidence.num_tokens - 1 - torch.arange(num_candidates, device=evidence.device)
            return last_first_M.expand(evidence.num_heads, -1)
        attention_QN = evidence.get(self._window)[:, : -self.window_size]
        attention_HM = attention_QN.unflatten(0, (evidence.num_heads, -1)).mean(dim=1)
        # Stable: of equals the earlier stays.
        return attention_HM.sort(dim=1, descending=True, stable=True).indices

    def _num_kept(self, evidence: Evidence, order_HM: Tensor) -> Tensor:
        """How many candidates stay in every head of one layer: int64 of no dimension, from 1 on."""
        row_HGN = evidence.get(_LAST_QUERY).unflatten(0, (evidence.num_heads, -1))
        row_HGM = row_HGN.gather(2, order_HM[:, None].expand(-1, row_HGN.shape[1], -1))
        # fp64: the last of some ten thousand squares would be lost in an fp32 sum.
        norm_M = row_HGM.double().square().cumsum(dim=2).sqrt().mean(dim=(0, 1))
        return (norm_M < (1 - self.threshold) * norm_M[-1]).sum() + 1

    @property
    def _window(self) -> Need:
        return window_attention(self.window_size)
