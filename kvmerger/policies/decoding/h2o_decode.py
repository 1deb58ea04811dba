"""H2O while answering: the slot that has received the least attention so far leaves; the most recent ones stay.

Shapes: L layers, H KV heads, X columns, as in `decode_rule`.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvmerger.decoding.decode_rule import DecodeRule, DecodeStep
from kvmerger.policies.decoding.base import ScoredDecodingPolicy
from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import register_wrapper


@dataclass(frozen=True)
class LowestScoreLeaves(DecodeRule):
    """The slot with the lowest accumulated attention leaves, in every head by itself; the last ``recent`` tokens stay."""

    # Without ClassVar it would be a field, and so a parameter of the rule.
    reads_attention: ClassVar[bool] = True

    recent: int

    def worth(self, step: DecodeStep) -> Tensor:
        """Attention received so far, ``inf`` for recent tokens."""
        assert step.score_LHX is not None, "the policy leaves scores"
        # By position: columns are in no order but that the last is the newest.
        is_recent_LHX = step.position_LHX > step.newest_position - self.recent
        return step.score_LHX.masked_fill(is_recent_LHX, float("inf"))


@register_wrapper("h2o_decode")
@dataclass(frozen=True)
class H2ODecode(ScoredDecodingPolicy):
    """At each token of the answer the slot with the lowest accumulated attention leaves, one per KV head.

    Based on "H2O: Heavy-Hitter Oracle for Efficient Generative Inference" (arXiv 2306.14048), Algorithm 1. Scores are the
    column sums of prefill, continued by what the tail and each token of the answer pay, averaged over the query heads of
    a group. Differs from it in that the prompt is compressed once, at its end, by what stands in front: ``h2o+h2o_decode``.

    Attributes:
        recent: tokens up to and including the one just read that never leave.
    """

    recent: int = 32

    def __post_init__(self) -> None:
        """Refuse what is no number of tokens."""
        super().__post_init__()
        require_count("h2o_decode", "recent", self.recent)

    @property
    def num_needed(self) -> int:
        """As many as never leave; the slot just read takes part, so one can always leave."""
        return self.recent

    @property
    def needed_for(self) -> str:
        """The parameter `recent`."""
        return f"recent={self.recent}"

    def decode_rule(self, prompt_seed: int) -> DecodeRule:
        """`LowestScoreLeaves`; no part of it is random."""
        return LowestScoreLeaves(self.recent, room=self.room)
