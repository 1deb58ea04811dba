"""R-KV: keep what the newest tokens attend to and what no newer key repeats.

Shapes: Q query heads, H KV heads, G = Q/H, N tokens, W tokens of the window, M = N − W tokens before it, B rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.policies.parameters import require_share
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.registry import register
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence

# Bounds the fp32 cosines of a block of rows with all keys (64 MiB).
_MOST_COSINES = 2**24


def grouped_window_attention(window_tokens: int) -> Need:
    """Attention that the last ``window_tokens`` pay to those before them, of the largest logit of a group: fp32 (H, M)."""
    return Need("grouped_window_attention", (window_tokens,))


def key_redundancy(threshold: float) -> Need:
    """How much of its head each key repeats, as shares of one: fp32 (H, N)."""
    return Need("key_redundancy", (threshold,))


@register_evidence("grouped_window_attention", reads_queries=True, is_of_window=True)
def _grouped_window_attention(states: LayerStates, window_tokens: int) -> Tensor:
    num_heads, num_tokens, _ = states.k_HND.shape
    before = slice(0, max(0, num_tokens - window_tokens))
    q_HGWD = states.q_QND[:, -window_tokens:].float().unflatten(0, (num_heads, -1)) * states.scaling
    logits_HGWM = q_HGWD @ states.k_HND[:, None, before].float().transpose(2, 3)
    # The largest logit of the group, before the softmax: the attention of no head in particular.
    return logits_HGWM.amax(dim=1).softmax(dim=-1).mean(dim=1)


@register_evidence("key_redundancy", reads_queries=False)
def _key_redundancy(states: LayerStates, threshold: float) -> Tensor:
    unit_HND = F.normalize(states.k_HND.float(), dim=-1)
    num_heads, num_tokens, _ = unit_HND.shape
    sum_HN = unit_HND.new_zeros(num_heads, num_tokens)
    place_N = torch.arange(num_tokens, device=unit_HND.device)
    block = max(1, _MOST_COSINES // (num_heads * num_tokens))
    for first in range(0, num_tokens, block):
        row_B = place_N[first : first + block]
        cosine_HBN = unit_HND[:, row_B] @ unit_HND.transpose(1, 2)
        cosine_HBN[:, torch.arange(len(row_B), device=row_B.device), row_B] = 0.0
        # Of the keys that a token repeats the newest is not charged.
        newest_HB = torch.where(cosine_HBN > threshold, place_N, -1).amax(dim=2)
        sum_HN += cosine_HBN.masked_fill_(place_N == newest_HB[..., None], 0.0).sum(dim=1)
    return (sum_HN / num_tokens).softmax(dim=1)


@register("rkv")
@dataclass(frozen=True)
class RKV(SnapKV):
    """Keep a window, what it attends to, and of keys that are alike the newest.

    Based on "R-KV: Redundancy-aware KV Cache Compression for Reasoning Models" (arXiv 2505.24133) and its authors' code at
    d15c976: λ times the window's attention before it, of each group's largest logits, max-pooled, less 1 − λ times the
    softmax of each key's mean cosine with all others, in which of a token's near copies (cosine above ``threshold``) the
    newest is left out. Meant for long answers: as ``rkv+periodic`` with ``every: 128``. Differs from the code in two things:
    the newest copy is the one that stands last in the text, where theirs is the one stored last; and where a token has no
    near copy nothing is left out, where theirs leaves out the first key.

    Attributes:
        window_size: tokens that look, always kept.
        kernel_size: tokens that attention is pooled over; odd.
        importance: λ, the share (0–1) of attention in the score.
        threshold: cosine above which a key counts as a copy.
    """

    window_size: int = 8
    kernel_size: int = 7
    importance: float = 0.07
    threshold: float = 0.5

    compresses_stacks = False

    def __post_init__(self) -> None:
        """Refuse what SnapKV refuses, and shares outside 0 to 1."""
        super().__post_init__()
        require_share(self._name, "importance", self.importance)
        require_share(self._name, "threshold", self.threshold)

    def needs(self) -> frozenset[Need]:
        """The window's attention by groups, and redundancy."""
        return frozenset({grouped_window_attention(self.window_size), key_redundancy(self.threshold)})

    def _scores_before_window(self, evidence: Evidence) -> Tensor:
        attention_HM = evidence.get(grouped_window_attention(self.window_size))
        redundancy_HM = evidence.get(key_redundancy(self.threshold))[:, : -self.window_size]
        pooled_HM = F.max_pool1d(attention_HM, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        return self.importance * pooled_HM - (1 - self.importance) * redundancy_HM
