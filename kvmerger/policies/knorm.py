"""Keys with small norms attract attention: keep those."""

from dataclasses import dataclass

from kvmerger.budget import Budget
from kvmerger.evidence import KEY_NORMS, Evidence, Need
from kvmerger.layer_cache import LayerCache
from kvmerger.policies.base import Policy
from kvmerger.policies.registry import register
from kvmerger.policies.selection import keep_highest


@register("knorm")
@dataclass(frozen=True)
class Knorm(Policy):
    """Keep the keys with the smallest L2 norm.

    Based on "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression" (arXiv 2406.11430), applied to
    keys after RoPE as kvpress's ``knorm`` does. Rotation does not change a norm. Nothing is protected.
    """

    def needs(self) -> frozenset[Need]:
        """Key norms."""
        return frozenset({KEY_NORMS})

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep each head's smallest-norm keys."""
        return keep_highest(layer, -evidence.get(KEY_NORMS), budget)
