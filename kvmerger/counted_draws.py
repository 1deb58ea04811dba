"""Random numbers that are looked up, not drawn one after the other: the same on every device, in any order.

A generator's state would have to be carried along, and CUDA's gives other numbers than the CPU's for the same seed.

Shapes: whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# Odd multipliers and shifts of a 32-bit finaliser with low bias (Chris Wellons, "Prospecting for Hash Functions", 2018).
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
_LAST_SHIFT = 16
# fp32 holds 24 bits exactly, so no draw is rounded up to 1.
_DRAWN_BITS = 24


def uniform(seed: int, shape: Sequence[int], count: Tensor) -> Tensor:
    """Numbers in [0, 1), fp32 of ``shape`` on the device of ``count`` (int64, no dimension).

    Each depends on ``seed``, its place in ``shape`` and ``count`` alone.
    """
    bits = _mixed(torch.zeros_like(count), seed & _MASK)
    bits = _mixed(bits, (seed >> 32) & _MASK)
    bits = _mixed(bits, count & _MASK)
    for size in shape:
        bits = _mixed(bits[..., None], torch.arange(size, device=count.device))
    return (bits >> (32 - _DRAWN_BITS)).float() / 2**_DRAWN_BITS


def _mixed(bits: Tensor, more: Tensor | int) -> Tensor:
    # Products of two 32-bit numbers overflow int64; their low 32 bits, all that is kept, are right nevertheless.
    bits = (bits * _ROUNDS[0][1] + more + 1) & _MASK
    for shift, multiplier in _ROUNDS:
        bits = ((bits ^ (bits >> shift)) * multiplier) & _MASK
    return bits ^ (bits >> _LAST_SHIFT)
