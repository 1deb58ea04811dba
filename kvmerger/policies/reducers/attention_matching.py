"""Attention matching: give kept slots the logits and values with which attention comes out as over all tokens.

Shapes: H KV heads, K queries, S kept slots of the longest head, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.policies.parameters import require_count, require_flag, require_positive
from kvmerger.policies.reducers.fitted import (
    Attended,
    FittedReducer,
    Slots,
    mean_square,
    ridge_step,
)
from kvmerger.policies.registry import name_of, register_wrapper


@register_wrapper("attention_matching")
@dataclass(frozen=True)
class AttentionMatching(FittedReducer):
    """Fit the kept slots' logits and values so that queries of a repetition get what the full cache gives them.

    Based on "Fast KV Compaction via Attention Matching" (arXiv 2602.16284). Keys stay. First each slot's factor, at least 0:
    summed over slots, exp(logit) times factor is to be the sum over all tokens, by least squares; its logarithm is added to
    the slot's logit. Then values, by least squares on outputs. Both have a ridge that draws them to what eviction leaves,
    since there may be more slots than queries; the authors draw to 0, or not at all.

    Attributes:
        ridge: of the values' fit, as a share of the mean squared attention of a query.
        bias_ridge: of the factors' fit, likewise.
        max_bias: largest size of what is added to a logit, in nats.
        num_steps: projected gradient steps after the factors are solved for and cut.
        fit_values: False keeps values: logits alone are fitted.
    """

    ridge: float = 0.1
    bias_ridge: float = 1.0
    max_bias: float = 3.0
    num_steps: int = 2
    fit_values: bool = True

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and values outside their domain."""
        super().__post_init__()
        for name in ("ridge", "bias_ridge", "max_bias"):
            require_positive(name_of(self), name, getattr(self, name))
        require_count(name_of(self), "num_steps", self.num_steps, at_least=0)
        require_flag(name_of(self), "fit_values", self.fit_values)

    @property
    def adds_log_mass(self) -> bool:
        """Always."""
        return True

    def fitted(self, slots: Slots, full: Attended, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Values and log factors."""
        bias_HS = self._factors(slots, full).log()
        if not self.fit_values:
            return slots.v_HSD, bias_HS
        share_HKS = slots.shares(bias_HS)
        residual_HKD = full.out_HKD - share_HKS @ slots.v_HSD
        change_HSD = ridge_step(share_HKS, residual_HKD, self.ridge * mean_square(share_HKS))
        return slots.v_HSD + change_HSD, bias_HS

    def _factors(self, slots: Slots, full: Attended) -> Tensor:
        """What each slot's exp(logit) is multiplied with, within exp(±max_bias): (H, S)."""
        # Below the highest score of all tokens, kept or not: nothing overflows, and no row is larger than another for it.
        mass_HKS = (slots.score_HKS - full.highest_HK[:, :, None]).exp()
        wanted_HK1 = (full.lse_HK - full.highest_HK).exp()[:, :, None]
        missing_HK1 = wanted_HK1 - mass_HKS.sum(dim=2, keepdim=True)
        factor_HS1 = 1 + ridge_step(mass_HKS, missing_HK1, self.bias_ridge * mean_square(mass_HKS))
        least, most = math.exp(-self.max_bias), math.exp(self.max_bias)
        factor_HS1 = factor_HS1.clamp(least, most)
        # Rows' and columns' largest sums bound the square of the largest singular value: steps of that size never climb.
        row_H, column_H = (mass_HKS.sum(dim=dim).amax(dim=1) for dim in (2, 1))
        step_H11 = 1 / (row_H * column_H).clamp_min(torch.finfo(mass_HKS.dtype).tiny)[:, None, None]
        for _ in range(self.num_steps):
            gradient_HS1 = mass_HKS.mT @ (mass_HKS @ factor_HS1 - wanted_HK1)
            factor_HS1 = (factor_HS1 - step_H11 * gradient_HS1).clamp(least, most)
        return factor_HS1[:, :, 0]
