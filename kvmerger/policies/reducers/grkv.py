"""GRKV: repair the kept slots' values by ridge regression on outputs, within a bound.

Shapes: H KV heads, K queries, S kept slots of the longest head, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.policies.parameters import require_count, require_positive
from kvmerger.policies.reducers.fitted import Attended, FittedReducer, Slots, ridge_step
from kvmerger.policies.registry import name_of, register_wrapper


@register_wrapper("grkv")
@dataclass(frozen=True)
class GRKV(FittedReducer):
    """Change the kept slots' values as far as a ridge and a cap allow, so that outputs are the full cache's again.

    Based on GRKV (arXiv 2605.31105), its step on values; the released step on keys, by Gauss-Newton, is left out. Queries are
    those of a repetition of the context; the authors turn the prompt's own to its end. The last tokens' values stay. A head
    whose fit is no better than eviction on the queries it was fitted to is merely evicted. Keys stay, and no logit is added
    to. ``grkv`` alone stands for ``snapkv+adakv+criticalkv+grkv``.

    Attributes:
        ridge: λ of the fit.
        weight: of all queries together, against which the ridge is weighed.
        max_change: largest norm of a head's change, as a share of its values' norm.
        num_fixed: last tokens of the prompt whose values stay.
    """

    num_queries: int = 256
    ridge: float = 0.01
    weight: float = 6.0
    max_change: float = 0.1
    num_fixed: int = 32

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and values outside their domain."""
        super().__post_init__()
        for name in ("ridge", "weight", "max_change"):
            require_positive(name_of(self), name, getattr(self, name))
        require_count(name_of(self), "num_fixed", self.num_fixed, at_least=0)

    def fitted(self, slots: Slots, full: Attended, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Values; nothing is added to logits."""
        share_HKS = slots.shares()
        residual_HKD = full.out_HKD - share_HKS @ slots.v_HSD
        is_mutable_HS = slots.position_HS < num_tokens - self.num_fixed
        mutable_HKS = share_HKS * is_mutable_HS[:, None]
        num_queries = share_HKS.shape[1]
        ridge_H = mutable_HKS.new_full((share_HKS.shape[0],), self.ridge * num_queries / self.weight)
        change_HSD = ridge_step(mutable_HKS, residual_HKD, ridge_H)
        change_HSD = change_HSD * self._within_cap(change_HSD, slots)
        before_H11, after_H11 = (
            it.square().sum(dim=(1, 2), keepdim=True)
            for it in (residual_HKD, residual_HKD - mutable_HKS @ change_HSD)
        )
        return slots.v_HSD + torch.where(after_H11 < before_H11, change_HSD, 0.0), None

    def _within_cap(self, change_HSD: Tensor, slots: Slots) -> Tensor:
        """What to multiply a change with so that its cap holds once it is stored: (H, 1, 1)."""
        # Storing rounds by at most half an epsilon of what is stored.
        rounding = torch.finfo(slots.dtype).eps * (1 + self.max_change)
        norm_H11, values_H11 = (it.norm(dim=(1, 2), keepdim=True) for it in (change_HSD, slots.v_HSD))
        most_H11 = max(self.max_change - rounding, 0.0) * values_H11
        return (most_H11 / norm_H11.clamp_min(torch.finfo(norm_H11.dtype).tiny)).clamp_max(1.0)
