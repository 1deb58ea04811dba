"""A blend of the attention that the last tokens pay and the attention that all tokens pay.

Shapes: H KV heads, N tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from kvmerger.policies.parameters import require_share
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.registry import register
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, Need


@register("blended_attention")
@dataclass(frozen=True)
class BlendedAttention(SnapKV):
    """Keep SnapKV's window and, of the others, what the window and the whole prompt attend to most, blended.

    This project's own: SnapKV's pooled window attention (arXiv 2404.14469) and H2O's accumulated attention
    (arXiv 2306.14048), each divided by its mean over the head's tokens before the window. The window knows what was
    asked last, the prompt what is asked in general.

    Attributes:
        mass_share: weight of the accumulated attention, 0 (SnapKV) to 1 (H2O's ranking beside SnapKV's window).
    """

    mass_share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what SnapKV refuses, and shares outside 0 to 1."""
        super().__post_init__()
        require_share("blended_attention", "mass_share", self.mass_share)

    def needs(self) -> frozenset[Need]:
        """The window's attention and the whole prompt's."""
        return super().needs() | {ATTENTION_MASS}

    def _scores_before_window(self, evidence: Evidence) -> Tensor:
        """The weighted sum of both, each over its head's mean: fp32 (H, tokens before the window)."""
        window_HN = super()._scores_before_window(evidence)
        mass_HN = evidence.get(ATTENTION_MASS)[:, : window_HN.shape[1]]
        # Without that division the mass, a sum over all queries, would drown the window's mean.
        return (1 - self.mass_share) * _relative(window_HN) + self.mass_share * _relative(mass_HN)


def _relative(scores_HN: Tensor) -> Tensor:
    """Scores over their head's mean."""
    return scores_HN / scores_HN.mean(dim=1, keepdim=True)
