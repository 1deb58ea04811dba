"""WeightedKV: a dropped token's value is folded into the next kept token; its key is dropped.

Shapes: H KV heads, N tokens, M members of all groups, S groups (slots).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.merging.merge import Groups, groups_of, merge_groups
from kvmerger.merging.targets import first_kept_after
from kvmerger.policies.reducers.base import AttentionReducer
from kvmerger.policies.registry import register_wrapper
from kvmerger.prefill.evidence import Evidence

# A float running sum may differ from call to call on CUDA, an integer one cannot. 2⁻³² nats is below fp32's own rounding
# of the weights, and a million tokens of e^±88 each still fit.
_STEPS_PER_NAT = 2.0**32


@register_wrapper("weighted_kv")
@dataclass(frozen=True)
class WeightedKV(AttentionReducer):
    """Fold the values of dropped tokens, left to right, into the next kept token, weighted by average attention.

    Based on WeightedKV (arXiv 2503.01330), v ← (ā_j v_j + ā v) ÷ (ā_j + ā), where ā_j and ā are what the dropped and the
    kept token got on average from those that could see them. The method drops one token at each decoding step; this
    is its form after prefill, with all dropped tokens at once. What no kept token follows is evicted.
    """

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """Fold values into the next kept token's; keys stay."""
        groups = groups_of(first_kept_after(is_kept_HN))
        weight_M = _folded(self._average_attention(evidence).flatten(), groups)
        return merge_groups(layer, groups, key_weight_M=None, value_weight_M=weight_M)

    def _average_attention(self, evidence: Evidence) -> Tensor:
        """Mass over the queries that could see the token: fp32 (H, N)."""
        mass_HN = self._mass(evidence)
        num_tokens = mass_HN.shape[1]
        # Causal: token j is seen by itself and all later ones.
        num_seeing_N = torch.arange(num_tokens, 0, -1, device=mass_HN.device)
        if self.attention_source == "window":
            num_seeing_N = num_seeing_N.clamp_max(self.mass_window)
        return mass_HN / num_seeing_N


def _folded(attention_F: Tensor, groups: Groups) -> Tensor:
    """Each member's weight after all folds of its group: fp32 (M,), summing to 1 within each group.

    A fold of token j multiplies what is there by ā ÷ (ā_j + ā), so a member's weight is its own share times the
    remainders of all folds after it. The target, last of its group, comes in with 1 before the first fold.
    """
    runs = groups.runs
    member_M, target_M = (attention_F[index].double() for index in (groups.member_M, groups.target_M))
    remainder_M = (target_M / (member_M + target_M)).log().masked_fill(groups.is_target_M, 0.0)
    steps_M = (remainder_M * _STEPS_PER_NAT).round().long()
    # One running sum over all groups; differences of it are a group's own, and exact because they are of integers.
    until_M = steps_M.cumsum(0)
    last_S = runs.length_R.cumsum(0) - 1
    after_M = (until_M[last_S][runs.run_F] - until_M).double() / _STEPS_PER_NAT
    all_S = (
        until_M[last_S] - until_M[last_S - runs.length_R + 1] + steps_M[last_S - runs.length_R + 1]
    ).double()
    share_M = member_M / (member_M + target_M) * after_M.exp()
    return torch.where(groups.is_target_M, (all_S / _STEPS_PER_NAT).exp()[runs.run_F], share_M).float()
