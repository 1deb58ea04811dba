"""ZipVL: a layer keeps as many tokens as a share of its attention takes.

Shapes: L layers of a stack, H KV heads of all of them, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import PolicyError
from kvmerger.policies.outcomes.base import OutcomePolicy
from kvmerger.policies.parameters import is_number
from kvmerger.policies.registry import register
from kvmerger.policies.selection import take_selected
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, Need


@register("zipvl")
@dataclass(frozen=True)
class ZipVL(OutcomePolicy):
    """Keep as many tokens of a layer as hold a share of its attention, those with most attention per query that sees them.

    Based on "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification" (arXiv 2410.08584), its second
    version, on the cache alone. A layer's count is the least p for which the p largest sums of attention (over all queries
    and heads) make up ``mass`` of it; the p tokens that stay are those with the largest sum divided by the number of queries
    that see the token. Sums favour early tokens, so that the count depends on the prompt's length, and what the tokens that
    stay hold is not quite ``mass``: the counter ``kept_attention`` tells it. Differs in that all queries count, where the
    authors probe some; their sparse prefill and the first version's low bits for unimportant tokens are left out.

    Attributes:
        mass: share of a layer's attention, above 0; at 1 everything stays.
    """

    mass: float = 0.975

    layers_differ = True
    heads_agree = True
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse what is no share, and none of the attention."""
        # Written as what must hold: every comparison with NaN is false.
        if not (is_number(self.mass) and 0 < self.mass <= 1):
            raise PolicyError(f"zipvl: mass is a share of the attention in (0, 1], got {self.mass!r}")

    def needs(self) -> frozenset[Need]:
        """Column sums of the prompt's attention."""
        return frozenset({ATTENTION_MASS})

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), the same in all heads of a layer."""
        return evidence.for_heads(self._kept(_mass_of_layers(evidence)))

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged; count what attention they hold."""
        mass_LN = _mass_of_layers(evidence)
        is_kept_LN = self._kept(mass_LN)
        held_L = mass_LN.masked_fill(~is_kept_LN, 0).sum(dim=1) / mass_LN.sum(dim=1)
        kept = take_selected(layer, evidence.for_heads(is_kept_LN))
        return kept.counting({"kept_attention": PerHead(evidence.for_heads(held_L))})

    def _kept(self, mass_LN: Tensor) -> Tensor:
        """Which tokens stay in each layer: bool (L, N)."""
        num_tokens = mass_LN.shape[1]
        if self.mass == 1:
            return torch.ones_like(mass_LN, dtype=torch.bool)
        cumulated_LN = mass_LN.sort(dim=1, descending=True).values.cumsum(dim=1)
        count_L1 = (cumulated_LN < self.mass * cumulated_LN[:, -1:]).sum(dim=1, keepdim=True) + 1
        # Causal: a token is seen by itself and all later ones.
        place_N = torch.arange(num_tokens, device=mass_LN.device)
        per_query_LN = mass_LN / (num_tokens - place_N)
        # Stable: of equals the earlier stays.
        order_LN = per_query_LN.sort(dim=1, descending=True, stable=True).indices
        rank_LN = torch.empty_like(order_LN).scatter_(1, order_LN, place_N.expand_as(order_LN))
        return rank_LN < count_L1


def _mass_of_layers(evidence: Evidence) -> Tensor:
    """Attention that each token gets, mean over a layer's heads: fp64 (L, N)."""
    # fp64: of some ten thousand tokens the last sums differ by less than fp32 can tell.
    return evidence.by_layer(evidence.get(ATTENTION_MASS)).double().mean(dim=1)
