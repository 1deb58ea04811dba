"""Keep the keys with small norms, which tend to receive much attention."""

from dataclasses import dataclass

from torch import Tensor

from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import KEY_NORMS, Evidence, Need


@register("knorm")
@dataclass(frozen=True)
class Knorm(ScoringPolicy):
    """Keep the keys with the smallest L2 norm.

    Based on "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression" (arXiv 2406.11430), applied to
    keys after RoPE as kvpress's ``knorm`` does. Rotation does not change a norm. Nothing is protected.
    """

    compresses_stacks = True

    def needs(self) -> frozenset[Need]:
        """Key norms."""
        return frozenset({KEY_NORMS})

    def scores(self, evidence: Evidence) -> Tensor:
        """Minus the norm: fp32 (H, N)."""
        return -evidence.get(KEY_NORMS)
