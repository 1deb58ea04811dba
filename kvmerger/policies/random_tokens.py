"""The floor every policy must beat: a random choice that is the same wherever and however often an item runs."""

from dataclasses import dataclass

import torch

from kvmerger.budget import Budget
from kvmerger.evidence import Evidence
from kvmerger.layer_cache import LayerCache
from kvmerger.policies.base import Policy, PolicyError
from kvmerger.policies.registry import register
from kvmerger.policies.selection import keep_highest

# Layers get seeds this far apart, so that neighbouring sweep seeds never meet on another layer.
_LAYER_SEED_STRIDE = 1_000_003


@register("random")
@dataclass(frozen=True)
class Random(Policy):
    """Keep tokens drawn uniformly, per layer and KV head.

    The draw depends on ``seed``, the sweep's seed, the prompt's tokens and the layer only: not on the machine, the
    shard or the order. Other values of ``seed`` are independent repeats within one sweep.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no seed."""
        if not isinstance(self.seed, int):
            raise PolicyError(f"random: seed must be a whole number, got {self.seed!r}")

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep a random set of each head's tokens."""
        layer_seed = (evidence.layer_index + 1) * _LAYER_SEED_STRIDE
        # On the CPU in any case: CUDA's generator gives other numbers for the same seed.
        generator = torch.Generator().manual_seed((evidence.prompt_seed << 16) + layer_seed + self.seed)
        scores_HN = torch.rand(layer.num_heads, evidence.num_tokens, generator=generator)
        return keep_highest(layer, scores_HN.to(layer.k_SD.device), budget)
