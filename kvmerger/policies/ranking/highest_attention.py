"""Highest attention: keep what a sample of a repetition's queries attends to most, by the root of its mean square.

Shapes: H KV heads, N tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, Need
from kvmerger.prefill.repeat_evidence import repeat_mean_square


@register("highest_attention")
@dataclass(frozen=True)
class HighestAttention(ScoringPolicy):
    """Keep the tokens with the largest mean squared attention of queries that repeat the context.

    Based on "Fast KV Compaction via Attention Matching" (arXiv 2602.16284), whose AM-HighestAttn chooses keys so before it
    fits the rest: ``attention_matching`` is this with ``+attention_matching``. Nothing is protected.

    Attributes:
        num_queries: of each KV head, all heads of its group together; half as many as there are tokens at most.
    """

    num_queries: int = 1024

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse no queries."""
        require_count("highest_attention", "num_queries", self.num_queries)

    def needs(self) -> frozenset[Need]:
        """The mean square."""
        return frozenset({repeat_mean_square(self.num_queries)})

    def scores(self, evidence: Evidence) -> Tensor:
        """The mean square, which has the order of its root: fp32 (H, N)."""
        return evidence.get(repeat_mean_square(self.num_queries))
