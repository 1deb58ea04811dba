"""RDKV's weights of tokens: what the last queries attend to. Before a form they are a ranking, ``rdkv+int4``.

Shapes: Q query heads, H KV heads, N tokens, W tokens of the window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.budget import BudgetError, BudgetSpec
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import register_before_form
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, Need, window_attention


@register_before_form("rdkv")
@dataclass(frozen=True)
class RDKVRanking(ScoringPolicy):
    """Keep the tokens that the last queries attend to most, none of them forced: bits for those, and none for the others.

    Based on RDKV (arXiv 2605.08317), whose water-filling is a threshold on weights where there is one width beside none, as
    with a form behind it; ``rdkv`` alone is the whole method (`policies.widths.rdkv`). A weight is the window's attention,
    summed over it and divided by how many of its queries see the token, averaged over the group and over neighbours.

    Attributes:
        window_size: last tokens whose attention counts.
        kernel_size: neighbours that are averaged, reflected at either end; odd.
    """

    window_size: int = 32
    kernel_size: int = 5

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse an empty window and an even kernel."""
        require_count("rdkv", "window_size", self.window_size, at_least=1)
        require_count("rdkv", "kernel_size", self.kernel_size, at_least=1)
        # An even kernel would shift all scores by half a token.
        if self.kernel_size % 2 == 0:
            raise PolicyError(f"rdkv: kernel_size must be odd, got {self.kernel_size}")

    def needs(self) -> frozenset[Need]:
        """The window's attention."""
        return frozenset({window_attention(self.window_size)})

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The prompt must be longer than the window and than half a kernel."""
        least = max(self.window_size, self.kernel_size // 2)
        if shape.num_tokens <= least:
            raise BudgetError(
                f"rdkv: the compressed part has {shape.num_tokens} tokens and must have more than {least}; lower window_size "
                f"and kernel_size or leave out such short prompts"
            )
        super().check(shape, budget)

    def scores(self, evidence: Evidence) -> Tensor:
        """The weights: fp32 (H, N)."""
        # The mean over all of the window, also of tokens that only its later queries see.
        attention_QN = evidence.get(window_attention(self.window_size))
        ago_N = torch.arange(evidence.num_tokens, 0, -1, device=evidence.device)
        weight_QN = attention_QN * (self.window_size / ago_N.clamp_max(self.window_size))
        weight_HN = weight_QN.unflatten(0, (evidence.num_heads, -1)).mean(dim=1)
        half = self.kernel_size // 2
        padded_H1N = F.pad(weight_HN[:, None], (half, half), mode="reflect") if half else weight_HN[:, None]
        return F.avg_pool1d(padded_H1N, self.kernel_size, stride=1)[:, 0]
