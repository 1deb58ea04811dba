"""ChunkKV: keep whole chunks of neighbouring tokens, the same ones in all heads of a layer.

Shapes: L layers of a stack, H KV heads of all of them, N tokens, C chunks, T tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.budget import Budget
from kvmerger.policies.base import PolicyError
from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import path_of, register_wrapper
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.wrapper import RankingWrapper
from kvmerger.prefill.evidence import Evidence


@register_wrapper("chunkkv")
@dataclass(frozen=True)
class ChunkKV(RankingWrapper):
    """Keep the chunks whose tokens the ranking in front scores highest on average, summed over the heads of a layer.

    Based on "ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference" (arXiv 2502.00299),
    with kvpress's length of a chunk; the paper's sharing of indices between layers is left out. The budget is exact: of the
    first chunk that no longer fits the best tokens stay. What the ranking protects in any head is kept before all chunks,
    and the chunks it lies in are the next.

    Attributes:
        inner: whose scores count.
        chunk_length: tokens of a chunk, counted from the first; the last one may be shorter.
    """

    chunk_length: int = 20

    heads_agree = True

    def __post_init__(self) -> None:
        """Refuse what has no scores or chooses in its own way, and an empty chunk."""
        if (
            not isinstance(self.inner, ScoringPolicy)
            or type(self.inner).select is not ScoringPolicy.select
            or any(part.heads_differ for part in self.inner.parts)
        ):
            raise PolicyError(
                f"chunkkv keeps the same tokens in all heads, by a policy that only scores; {path_of(self.inner)} is none"
            )
        require_count("chunkkv", "chunk_length", self.chunk_length)

    def scores(self, evidence: Evidence) -> Tensor:
        """By the ranking's scores: fp32 (H, N)."""
        return self._places(self.inner.scores(evidence), evidence)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Minus each token's place in the order in which tokens are kept, ``inf`` for protected ones: fp32 (H, N)."""
        return self._places(self.inner.checked_scores(evidence, budget), evidence)

    def _places(self, scores_HN: Tensor, evidence: Evidence) -> Tensor:
        # The sum over a layer's heads; infinite where any head protects the token.
        score_LN = evidence.by_layer(scores_HN.float()).sum(dim=1)
        num_tokens = score_LN.shape[1]
        padding = -num_tokens % self.chunk_length
        # The last chunk is divided by the tokens it has.
        chunk_LCT = F.pad(score_LN, (0, padding)).unflatten(1, (-1, self.chunk_length))
        length_C = torch.full_like(chunk_LCT[0, :, 0], self.chunk_length)
        length_C[-1] -= padding
        mean_LC = chunk_LCT.sum(dim=2) / length_C
        # A stable sort by tokens, then one by their chunks: within a chunk the best come first, and ties to the earlier.
        by_score_LN = score_LN.sort(dim=1, descending=True, stable=True).indices
        chunk_LN = torch.div(by_score_LN, self.chunk_length, rounding_mode="floor")
        # Chunks of equal means would be shuffled together: numbered, each has a rank of its own.
        rank_LC = mean_LC.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
        by_chunk_LN = rank_LC.gather(1, chunk_LN).sort(dim=1, stable=True).indices
        order_LN = by_score_LN.gather(1, by_chunk_LN)
        place_LN = torch.empty_like(order_LN).scatter_(
            1, order_LN, torch.arange(num_tokens, device=order_LN.device).expand_as(order_LN)
        )
        # Exact in fp32 up to 2^24 tokens.
        kept_first_LN = (-place_LN.float()).masked_fill(score_LN == torch.inf, torch.inf)
        return evidence.for_heads(kept_first_LN)
