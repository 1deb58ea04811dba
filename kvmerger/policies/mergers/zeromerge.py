"""ZeroMerge's prefill step: recent tokens, the most attended ones, and a few slots for the average of all others.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for, share_of
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.device import upload
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.merging.merge import groups_of, merge_groups
from kvmerger.merging.targets import own_index
from kvmerger.merging.weights import normalised_weights
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.parameters import is_number, require_count, require_ratio
from kvmerger.policies.registry import register
from kvmerger.prefill.evidence import ATTENTION_MASS, Evidence, Need, attention_mass


@register("zeromerge")
@dataclass(frozen=True)
class ZeroMerge(Policy):
    """Keep the tail and the most attended tokens; average the others, in order, into a few residual slots.

    Based on ZeroMerge (arXiv 2503.10714) as its authors' code does it after prefill: K and V are averaged alike, and a
    residual slot of w tokens gets 0.6·log w on its logit. What it does at each decoding step is left out. A residual
    slot has the position of its first token.

    Attributes:
        tail_ratio: fraction of the budget for the most recent tokens.
        num_residual: residual slots per head.
        log_mass_scale: times log w.
    """

    tail_ratio: float = 0.4
    num_residual: int = 1
    log_mass_scale: float = 0.6

    keeps_slots_unchanged = False
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_ratio("zeromerge", "tail_ratio", self.tail_ratio)
        require_count("zeromerge", "num_residual", self.num_residual)
        if not is_number(self.log_mass_scale) or not 0 <= self.log_mass_scale <= 1:
            raise PolicyError(f"zeromerge: log_mass_scale is from 0 to 1, got {self.log_mass_scale!r}")

    @property
    def adds_log_mass(self) -> bool:
        """Every slot has that of the tokens it stands for."""
        return True

    def needs(self) -> frozenset[Need]:
        """Attention to rank tokens by."""
        return frozenset({ATTENTION_MASS})

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The budget must hold the residual slots and something beside them."""
        if not isinstance(budget, LikeVariant):
            self._require_room(num_slots_for(budget, shape.num_tokens), shape.num_tokens)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Group what is neither tail nor top, and average each group."""
        self._require_room(min(budget.num_slots_H), evidence.num_tokens)
        if min(budget.num_slots_H) == evidence.num_tokens:
            return layer
        target_HN = self._targets(attention_mass(evidence, ATTENTION_MASS), budget)
        groups = groups_of(target_HN)
        weight_M = normalised_weights(torch.ones_like(groups.member_M, dtype=torch.float32), groups)
        return merge_groups(
            layer,
            groups,
            key_weight_M=weight_M,
            value_weight_M=weight_M,
            log_mass_S=self.log_mass_scale * groups.runs.length_R.float().log(),
        )

    def _targets(self, mass_HN: Tensor, budget: Budget) -> Tensor:
        """Itself for tail and top, the first token of its stretch for every other: int64 (H, N)."""
        index_HN = own_index(mass_HN)
        # The tail gets inf and is thereby among the highest, so one ranking finds both the tail and the top.
        num_tail_H = [self._num_tail(num_slots) for num_slots in budget.num_slots_H]
        first_recent_H = mass_HN.shape[1] - upload(num_tail_H, mass_HN.device)
        ranked_HN = mass_HN.masked_fill(index_HN >= first_recent_H[:, None], float("inf"))
        num_kept_H = tuple(num_slots - self.num_residual for num_slots in budget.num_slots_H)
        is_kept_HN = is_among_highest(ranked_HN, num_kept_H)
        # The others in order, cut into num_residual stretches whose sizes differ by one at most.
        num_others_H1 = (~is_kept_HN).sum(dim=1, keepdim=True)
        place_HN = (~is_kept_HN).long().cumsum(dim=1) - 1
        stretch_HN = place_HN * self.num_residual // num_others_H1.clamp_min(1)
        stretch_HN = stretch_HN.masked_fill(is_kept_HN, self.num_residual)
        # One column more than there are stretches: kept tokens go there, and nobody reads it. A minimum is the same in
        # whatever order the device takes it.
        first_HR = index_HN.new_full((len(num_kept_H), self.num_residual + 1), index_HN.shape[1])
        first_HR.scatter_reduce_(1, stretch_HN, index_HN, "amin")
        return torch.where(is_kept_HN, index_HN, first_HR.gather(1, stretch_HN))

    def _num_tail(self, num_slots: int) -> int:
        return share_of(num_slots, self.tail_ratio)

    def _require_room(self, num_slots: int, num_tokens: int) -> None:
        num_tail = self._num_tail(num_slots)
        if num_slots <= self.num_residual or num_slots < num_tail + self.num_residual:
            raise BudgetError(
                f"zeromerge: a tail of {num_tail} (tail_ratio={self.tail_ratio}) and num_residual={self.num_residual} do "
                f"not fit a budget of {num_slots} slots of {num_tokens} tokens with a token beside the residual; raise the "
                f"budget, or lower tail_ratio or num_residual"
            )
