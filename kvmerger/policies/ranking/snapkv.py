"""SnapKV: keep what the prompt's last tokens attended to, smoothed over neighbouring tokens.

Shapes: Q query heads, H KV heads, N tokens.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kvmerger.budget import BudgetError, BudgetSpec
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_count
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, Need, window_attention


@register("snapkv")
@dataclass(frozen=True)
class SnapKV(ScoringPolicy):
    """Keep an observation window and the keys it attends to most.

    Based on "SnapKV: LLM Knows What You are Looking for Before Generation" (arXiv 2404.14469). Scores are the window's
    mean attention, average-pooled over neighbours and averaged over the query heads of a group, with kvpress's defaults.
    The window is the end of the *compressed part*: in query-agnostic mode the question is not in it.
    """

    window_size: int = 64
    kernel_size: int = 5

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse an empty window and an even kernel."""
        require_count(self._name, "window_size", self.window_size, at_least=1)
        require_count(self._name, "kernel_size", self.kernel_size, at_least=1)
        # An even kernel would shift all scores by half a token.
        if self.kernel_size % 2 == 0:
            raise PolicyError(f"{self._name}: kernel_size must be odd, got {self.kernel_size}")

    def needs(self) -> frozenset[Need]:
        """The window's attention."""
        return frozenset({window_attention(self.window_size)})

    @property
    def num_protected(self) -> int:
        """The window."""
        return self.window_size

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The prompt must be longer than the window and the budget must hold it."""
        if shape.num_tokens <= self.window_size:
            raise BudgetError(
                f"{self._name}: the compressed part has {shape.num_tokens} tokens, no more than window_size="
                f"{self.window_size}; lower window_size or leave out such short prompts"
            )
        super().check(shape, budget)

    def scores(self, evidence: Evidence) -> Tensor:
        """Scores before the window, fp32 (H, N), and ``inf`` inside it."""
        return F.pad(self._scores_before_window(evidence), (0, self.window_size), value=float("inf"))

    def _scores_before_window(self, evidence: Evidence) -> Tensor:
        """The window's attention per KV head, pooled over neighbours."""
        attention_QN = evidence.get(window_attention(self.window_size))
        before_window_QN = attention_QN[:, : -self.window_size]
        # Padding counts as zeros, as in the authors' code: tokens at either end score lower. The window itself is cut off
        # before: its attention to itself must not leak into its neighbours' scores.
        pooled_QN = F.avg_pool1d(before_window_QN, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        return pooled_QN.view(evidence.num_heads, -1, pooled_QN.shape[1]).mean(dim=1)

    @property
    def _name(self) -> str:
        """What errors call this policy, or the one that subclasses it."""
        return type(self).__name__.lower()
