"""Which units get how many bits: steps to the next width are taken by falling gain per byte, until one does not fit.

A unit is whatever has a width of its own: a token's value, or a channel of keys. Deterministic, never over the budget, and
the least weighted error of all choices that take the bytes it takes, where each unit's gains per byte fall step by step.

Shapes: H heads, J steps from no bits at all to the widest, X units of a head, F = J·X.
"""

from __future__ import annotations

import torch
from torch import Tensor


def steps_taken(gain_HJX: Tensor, cost_HJ: Tensor, budget_H: Tensor) -> Tensor:
    """How many steps each unit goes: int64 (H, X), from 0 to J. Does not wait for the device.

    Args:
        gain_HJX: how much each step takes off the weighted error, floats from 0 on.
        cost_HJ: bytes of each step, int64 from 0 on, the same for all units of a head.
        budget_H: bytes of each head, int64.
    """
    num_steps, num_units = gain_HJX.shape[1:]
    slope_HJX = gain_HJX / cost_HJ.clamp_min(1)[..., None]
    # A step cannot come before the one under it: where a slope does not fall, it counts as the last one did.
    slope_HJX = slope_HJX.cummin(dim=1).values
    # Steps first, so that of equal slopes the lower step, and then the earlier unit, comes first.
    order_HF = slope_HJX.flatten(1).sort(dim=1, descending=True, stable=True).indices
    cost_HF = cost_HJ.repeat_interleave(num_units, dim=1).gather(1, order_HF)
    is_taken_HF = cost_HF.cumsum(dim=1) <= budget_H[:, None]
    taken_HF = torch.zeros_like(order_HF).scatter_(1, order_HF, is_taken_HF.long())
    return taken_HF.unflatten(1, (num_steps, num_units)).sum(dim=1)
