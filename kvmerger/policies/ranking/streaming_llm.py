"""StreamingLLM: keep the first tokens (attention sinks) and a recent window, nothing in between."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.policies.base import PolicyError
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence


@register("streaming_llm")
@dataclass(frozen=True)
class StreamingLLM(ScoringPolicy):
    """Keep the first ``n_sink`` tokens and the most recent ones.

    Based on "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453). Differs from it in that keys
    keep the positions they were computed at; the original assigns positions inside the cache.
    """

    n_sink: int = 4

    compresses_stacks = True
    heads_agree = True

    def __post_init__(self) -> None:
        """Refuse what is no number of tokens."""
        if not isinstance(self.n_sink, int) or self.n_sink < 0:
            raise PolicyError(f"streaming_llm: n_sink must be a whole number from 0 on, got {self.n_sink!r}")

    @property
    def num_protected(self) -> int:
        """The sinks and at least one recent token."""
        return self.n_sink + 1

    def scores(self, evidence: Evidence) -> Tensor:
        """A token's position, ``inf`` for sinks: fp64 (H, N)."""
        # fp64: fp32 tells whole numbers apart up to 2²⁴ only.
        scores_N = torch.arange(evidence.num_tokens, dtype=torch.float64, device=evidence.device)
        scores_N[: self.n_sink] = float("inf")
        return scores_N.expand(evidence.num_heads, -1)
