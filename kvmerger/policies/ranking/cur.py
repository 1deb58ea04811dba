"""CUR: keep the tokens that contribute most to the matrices of keys and values, measured by leverage scores.

Shapes: H KV heads, N tokens, W tokens of a local window, C windows.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from kvmerger.policies.parameters import require_choice, require_count, require_flag
from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence

LEVERAGE_TYPES = ("key", "value", "kv_avg", "kv_product")


@register_evidence("local_leverage", reads_queries=False)
def _local_leverage(states: LayerStates, leverage_type: str, window_size: int) -> Tensor:
    """Squared norms of keys and values, each as a share of its window's (0: not shared), combined: fp32 (H, N)."""
    key_HN, value_HN = (
        _share_of_window(tensor.float().square().sum(dim=-1), window_size)
        for tensor in (states.k_HND, states.v_HND)
    )
    match leverage_type:
        case "key":
            leverage_HN = key_HN
        case "value":
            leverage_HN = value_HN
        case "kv_avg":
            leverage_HN = (key_HN + value_HN) / 2
        case _:
            leverage_HN = key_HN * value_HN
    return leverage_HN / _positive(leverage_HN.sum(dim=1, keepdim=True))


def _share_of_window(square_HN: Tensor, window_size: int) -> Tensor:
    if not window_size:
        return square_HN
    num_heads, num_tokens = square_HN.shape
    # Zeros fill the last window up, and add nothing to its sum.
    padded_HCW = F.pad(square_HN, (0, -num_tokens % window_size)).view(num_heads, -1, window_size)
    share_HCW = padded_HCW / _positive(padded_HCW.sum(dim=2, keepdim=True))
    return share_HCW.view(num_heads, -1)[:, :num_tokens]


def _positive(total: Tensor) -> Tensor:
    """``total`` with 1 in place of 0, to divide by: where all parts are 0, each one's share is 0."""
    return total.masked_fill(total == 0, 1.0)


@register("cur")
@dataclass(frozen=True)
class CUR(ScoringPolicy):
    """Keep tokens whose keys and values both stand out from their neighbours by norm, and the first ones.

    Based on CurDKV (arXiv 2509.15038), which picks the rows of a CUR decomposition by leverage scores, in the form of
    kvpress's ``cur``: a row's leverage is approximated by its squared norm, as a share of its window of
    ``local_window_size`` tokens; keys' and values' are multiplied. Windows start at token 0, the last may be shorter.
    kvpress's random projection is left out: it is off by default and would need a seed.

    Attributes:
        num_sinks: first tokens, always kept.
        leverage_type: ``key``, ``value``, their mean ``kv_avg``, or ``kv_product``.
        use_local_approximation: False compares squared norms over the whole prompt.
        local_window_size: tokens of a window.
    """

    num_sinks: int = 4
    leverage_type: Literal["key", "value", "kv_avg", "kv_product"] = "kv_product"
    use_local_approximation: bool = True
    local_window_size: int = 16

    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_count("cur", "num_sinks", self.num_sinks, at_least=0)
        require_choice("cur", "leverage_type", self.leverage_type, LEVERAGE_TYPES)
        require_flag("cur", "use_local_approximation", self.use_local_approximation)
        require_count("cur", "local_window_size", self.local_window_size, at_least=1)

    @property
    def num_protected(self) -> int:
        """The sinks."""
        return self.num_sinks

    def needs(self) -> frozenset[Need]:
        """Leverage, with this policy's settings."""
        return frozenset({self._need})

    def scores(self, evidence: Evidence) -> Tensor:
        """Leverages, which sum to 1 in each head, and ``inf`` for sinks: fp32 (H, N)."""
        # A copy to write into: the evidence is every policy's.
        scores_HN = evidence.get(self._need).clone()
        scores_HN[:, : self.num_sinks] = float("inf")
        return scores_HN

    @property
    def _need(self) -> Need:
        window_size = self.local_window_size if self.use_local_approximation else 0
        return Need("local_leverage", (self.leverage_type, window_size))
