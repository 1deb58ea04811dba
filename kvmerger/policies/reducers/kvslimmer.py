"""KVSlimmer's merging on another policy's slots: the lightest adjacent pair of which at most one holds a kept token.

Shapes: H KV heads, N tokens, F = H·N flat tokens, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.reference.nearest import EVICTED
from kvmerger.merging.pair_weights import PAIR_WEIGHTS, PairWeights, mean_values, pair_weights
from kvmerger.merging.pairs import lowest_pairs
from kvmerger.policies.mergers.paired_slots import KEYS, Keys, needs_of_keys, paired_slots
from kvmerger.policies.parameters import require_choices
from kvmerger.policies.reducers.base import AttentionReducer
from kvmerger.policies.registry import name_of, register_wrapper
from kvmerger.prefill.attention_sources import AttentionSource
from kvmerger.prefill.evidence import Evidence, Need


@register_wrapper("kvslimmer")
@dataclass(frozen=True)
class PairReducer(AttentionReducer):
    """Merge adjacent pairs, the lightest first, until every slot holds one kept token; a slot of l tokens has log l.

    KVSlimmer (arXiv 2603.00907) with its slots chosen by another policy: pairs, keys and what a slot counts are as in the
    policy ``kvslimmer``, a slot has the position of its kept token, and no token is lost. Each head has its own slots, and no
    pair is lighter for being late: what is recent is for the ranking to say.

    Attributes:
        weights, keys: as there.
    """

    attention_source: AttentionSource = "window"
    weights: PairWeights = "hessian"
    keys: Keys = "before_rope"

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and values outside their domain."""
        super().__post_init__()
        require_choices(name_of(self), vars(self), {"weights": PAIR_WEIGHTS, "keys": KEYS})

    @property
    def adds_log_mass(self) -> bool:
        """Every slot has that of its tokens."""
        return True

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, attention, and the model's rotation where keys are averaged before it."""
        return super().needs() | needs_of_keys(self.keys)

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """Merge every dropped token into a kept one; a head that keeps none is evicted."""
        num_heads, num_tokens = is_kept_HN.shape
        alpha_HN, output_HD = mean_values(self._mass(evidence), layer.v_HND, len(evidence.layers))
        rounds = lowest_pairs(alpha_HN, (num_tokens,) * num_heads, math.inf, is_kept_HN)
        paired = pair_weights(self.weights, rounds, alpha_HN, layer.v_HND, output_HD)
        # Each slot has one kept token; of all others nothing is noted, and a slot without one stays at EVICTED.
        own_F = torch.arange(num_heads * num_tokens, device=layer.device)
        noted_F = own_F.masked_fill(~is_kept_HN.flatten(), EVICTED)
        kept_F = torch.full_like(own_F, EVICTED).scatter_reduce(0, paired.first_F, noted_F, "amax")[
            paired.first_F
        ]
        target_F = torch.where(kept_F == EVICTED, EVICTED, kept_F % num_tokens)
        return paired_slots(layer, evidence, target_F.view_as(is_kept_HN), paired, self.keys)
