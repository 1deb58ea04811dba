"""A random choice of tokens, the least any policy must beat; it is the same wherever and however often an item runs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.device import upload
from kvmerger.policies.base import PolicyError
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence


@register("random")
@dataclass(frozen=True)
class Random(ScoringPolicy):
    """Keep tokens drawn uniformly, per layer and KV head.

    The draw depends on ``seed``, the sweep's seed, the prompt's tokens and the layer only: not on the machine, the
    shard or the order. Other values of ``seed`` are independent repeats within one sweep.
    """

    seed: int = 0

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse what is no seed."""
        if not isinstance(self.seed, int):
            raise PolicyError(f"random: seed must be a whole number, got {self.seed!r}")

    def scores(self, evidence: Evidence) -> Tensor:
        """Uniform in [0, 1): fp32 (H, N)."""
        return random_numbers(evidence, self.seed)


def random_numbers(evidence: Evidence, seed: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on prompt, layer and ``seed`` alone: fp32 (H, N)."""
    return upload(torch.cat([_drawn(layer, seed) for layer in evidence.layers]), evidence.device)


def _drawn(evidence: Evidence, seed: int) -> Tensor:
    # On the CPU in any case: CUDA's generator gives other numbers for the same seed.
    generator = torch.Generator().manual_seed(evidence.draw_seed + seed)
    return torch.rand(evidence.num_heads, evidence.num_tokens, generator=generator)
