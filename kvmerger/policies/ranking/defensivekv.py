"""DefensiveKV: rank tokens by the most that any of the last queries attends to them, not by the mean.

Shapes: L layers, Q query heads, H KV heads, G = Q/H, N tokens, W tokens of the window, M = N − W tokens before it,
X query heads of a block.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.budget import Budget, share_of
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.kernels.reference import ranking
from kvmerger.kernels.reference.prompt import causal_probs
from kvmerger.policies.parameters import require_choice, require_flag, require_share
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.registry import name_of, register
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence, window_attention
from kvmerger.prefill.output_norms import value_output_norms

Compete = Literal["model", "layer", "head"]
COMPETE = ("model", "layer", "head")
# Bounds the fp32 attention of a window's rows alive at a time (64 MiB).
_MOST_PROBS = 2**24
# Of its own risk, added to a guaranteed token's score: orders them among themselves, and is lost beside any real gap.
_TIE_BREAK = 2.0**-20


def window_peaks(window_tokens: int, kernel_size: int) -> Need:
    """The most attention that a query of the last ``window_tokens`` pays to a token before them: fp32 (H, M).

    Over the window's rows and the query heads of a group. Each row is smoothed over ``kernel_size`` tokens first and scaled
    back to what it pays before the window.
    """
    return Need("window_peaks", (window_tokens, kernel_size))


@register_evidence("window_peaks", reads_queries=True)
def _window_peaks(states: LayerStates, window_tokens: int, kernel_size: int) -> Tensor:
    num_heads, num_tokens = states.k_HND.shape[:2]
    num_before = max(0, num_tokens - window_tokens)
    peak_HM = states.k_HND.new_zeros(num_heads, num_before, dtype=torch.float32)
    if not num_before:
        return peak_HM
    num_groups = states.q_QND.shape[0] // num_heads
    block = max(1, _MOST_PROBS // (num_groups * window_tokens * num_tokens))
    for first in range(0, num_heads, block):
        heads = slice(first, min(first + block, num_heads))
        q_XND = states.q_QND[heads.start * num_groups : heads.stop * num_groups]
        probs_XWN = causal_probs(q_XND, states.k_HND[heads], states.scaling, num_before, num_tokens)
        probs_XWM = probs_XWN[:, :, :num_before]
        smooth_XWM = F.avg_pool1d(probs_XWM, kernel_size, stride=1, padding=kernel_size // 2)
        paid_XW1, left_XW1 = (probs.sum(dim=2, keepdim=True) for probs in (probs_XWM, smooth_XWM))
        # Zeros at both ends count in the pool, so that a row loses what it paid there. 0 ÷ 0 where it paid nothing.
        smooth_XWM = smooth_XWM * (paid_XW1 / left_XW1).nan_to_num(0.0, posinf=0.0)
        peak_HM[heads] = smooth_XWM.unflatten(0, (-1, num_groups)).amax(dim=(1, 2))
    return peak_HM


@register("defensivekv")
@dataclass(frozen=True)
class DefensiveKV(SnapKV):
    """Keep a window and the tokens that any of its queries needs most, whichever head of the layer they are in.

    Based on "Taming the Fragility of KV Cache Eviction in LLM Inference" (arXiv 2510.13334) and its authors' code at
    9251b95. A token's risk is the largest smoothed attention of any window row and query head of the group, at least the
    head's mean risk, times the share that its value has, of all KV heads of the layer, in the L1 norms of W_o·v. Before the
    others come tokens that hold most of the window's attention (by mean): of each head as many as stay below
    ``guaranteed_mass`` less what the layer's heads pay, on average, to the W tokens before the window. Then all heads of the
    layer compete for its slots.

    As in the code: the deduction is of tokens before the window, although the window's own are meant; and of each head no
    more tokens are guaranteed than its even share of the slots holds beside the window.

    Attributes:
        window_size: tokens that look, always kept.
        kernel_size: tokens that attention is smoothed over; odd.
        guaranteed_mass: share (0–1) of the window's attention; 0 guarantees nobody.
        floor_at_mean: False leaves risks below the head's mean as they are.
        compete: whose tokens compete for slots: those of all heads of a ``layer`` or of the ``model``, as published under
            two names, or each ``head``'s own, so that all heads keep equally many.
    """

    window_size: int = 32
    guaranteed_mass: float = 0.9
    floor_at_mean: bool = True
    compete: Compete = "layer"

    def __post_init__(self) -> None:
        """Refuse what SnapKV refuses, and a mass outside 0 to 1."""
        super().__post_init__()
        require_share(self._name, "guaranteed_mass", self.guaranteed_mass)
        require_flag(self._name, "floor_at_mean", self.floor_at_mean)
        require_choice(self._name, "compete", self.compete, COMPETE)

    @property
    def heads_differ(self) -> bool:  # type: ignore[override]
        """Unless each competes for itself."""
        return self.compete != "head"

    @property
    def layers_differ(self) -> bool:  # type: ignore[override]
        """Where all heads of the model compete."""
        return self.compete == "model"

    def needs(self) -> frozenset[Need]:
        """The window's attention, its largest and its mean, and the norms of projected values."""
        return frozenset({self._peaks, window_attention(self.window_size), value_output_norms(1)})

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """What was asked for, which says how many tokens are guaranteed."""
        return budget.asked_ratio

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Every head's slots: how many of the highest scores, of its layer or of all, are its own."""
        if self.compete == "head":
            return budget_L
        scores_LHN = torch.stack(
            [
                self.checked_scores(evidence, budget)
                for evidence, budget in zip(evidence_L, budget_L, strict=True)
            ]
        )
        count_L = tuple(budget.num_slots for budget in budget_L)
        if self.layers_differ:
            # Not the launcher, which has one program for a row: this row is all layers'.
            is_kept_RF = ranking.is_among_highest(scores_LHN.view(1, -1), (sum(count_L),))
        else:
            is_kept_RF = is_among_highest(scores_LHN.flatten(1), count_L)
        num_slots_LH = is_kept_RF.view_as(scores_LHN).sum(dim=2).tolist()
        # The ratio stays what was asked for: `scores_at` gives the same scores again at the new budgets.
        return [
            Budget(tuple(num_slots_H), budget.asked_ratio)
            for num_slots_H, budget in zip(num_slots_LH, budget_L, strict=True)
        ]

    def scores(self, evidence: Evidence) -> Tensor:
        """Scores with as many guaranteed tokens as the whole prompt would hold: fp64 (H, N)."""
        return self._scores(evidence, 1.0)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Risks, from the layer's highest on for guaranteed tokens, ``inf`` inside the window: fp64 (H, N)."""
        return self._scores(evidence, budget.asked_ratio)

    def _scores(self, evidence: Evidence, kept_ratio: float) -> Tensor:
        risk_LHM = self._risks(evidence)
        highest_L11 = risk_LHM.amax(dim=(1, 2), keepdim=True)
        num_held = share_of(evidence.num_tokens, kept_ratio) - self.window_size
        is_sure_LHM = self._are_guaranteed(evidence, max(0, num_held))
        scores_LHM = torch.where(is_sure_LHM, highest_L11 + _TIE_BREAK * risk_LHM, risk_LHM)
        return F.pad(scores_LHM.flatten(0, 1), (0, self.window_size), value=float("inf"))

    def _risks(self, evidence: Evidence) -> Tensor:
        """The worst case's attention, weighted by the value's share: fp64 (L, H, M)."""
        peak_HM = evidence.get(self._peaks).double()
        if self.floor_at_mean:
            peak_HM = torch.maximum(peak_HM, peak_HM.mean(dim=1, keepdim=True))
        norm_HM = evidence.get(value_output_norms(1))[:, : -self.window_size].double()
        norm_LHM = evidence.by_layer(norm_HM)
        # 0 ÷ 0 where no head's value moves the residual stream: nothing is at risk then.
        share_LHM = (norm_LHM / norm_LHM.sum(dim=1, keepdim=True)).nan_to_num(0.0)
        return evidence.by_layer(peak_HM) * share_LHM

    def _are_guaranteed(self, evidence: Evidence, most: int) -> Tensor:
        """The tokens of each head that together hold less than the wanted mass, ``most`` at most: bool (L, H, M)."""
        attention_QM = evidence.get(window_attention(self.window_size))[:, : -self.window_size]
        mean_HM = attention_QM.view(evidence.num_heads, -1, attention_QM.shape[1]).mean(dim=1)
        mean_LHM = evidence.by_layer(mean_HM)
        recent_L11 = mean_LHM[:, :, -self.window_size :].sum(dim=2, keepdim=True).mean(dim=1, keepdim=True)
        falling_LHM, order_LHM = mean_LHM.sort(dim=2, descending=True, stable=True)
        total_LH1 = falling_LHM.sum(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        held_LHM = falling_LHM.cumsum(dim=2) / total_LH1
        is_sure_LHM = held_LHM < self.guaranteed_mass - recent_L11
        is_sure_LHM[:, :, most:] = False
        return torch.zeros_like(is_sure_LHM).scatter_(2, order_LHM, is_sure_LHM)

    @property
    def _peaks(self) -> Need:
        return window_peaks(self.window_size, self.kernel_size)

    @property
    def _name(self) -> str:
        return name_of(self)


@register("layer_defensivekv")
@dataclass(frozen=True)
class LayerDefensiveKV(DefensiveKV):
    """Keep what DefensiveKV keeps, with the heads of all layers competing for all slots.

    Layer-DefensiveKV of arXiv 2510.13334. The window stays in every head of every layer; the authors' code gives it its
    layer's highest score, so that a layer of low scores can lose it.
    """

    compete: Compete = "model"
