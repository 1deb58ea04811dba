"""Numbers of bits that a policy gives each slot's value and each channel of a head's keys, for the form that stores them so.

Shapes: S slots of a layer, its heads one after the other, H heads, D head size, W widths, X anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.device import upload

CODED_WIDTHS = (2, 4, 8)
"""Bits of numbers that are codes."""
PLAIN_WIDTH = 16
"""Stands for a number in the model's own dtype, whatever bits that has."""
WIDTHS = (0, *CODED_WIDTHS, PLAIN_WIDTH)


class WidthCounts(NamedTuple):
    """How many slots' values, and how many channels, each head has of each of `WIDTHS`."""

    v_HW: Sequence[Sequence[int]]
    k_HW: Sequence[Sequence[int]]


class Widths(NamedTuple):
    """What a slot's value and a channel of a head's keys take, in bits, each one of `WIDTHS`; 0 is not stored, and read as 0.

    v_S and k_HD: uint8 (S,) and (H, D). counts: where they are known, so that nobody has to wait for the device to count.
    """

    v_S: Tensor
    k_HD: Tensor
    counts: WidthCounts | None = None

    def counted(self, num_slots_H: Sequence[int]) -> WidthCounts:
        """`counts`; waits for the device where they are not known."""
        if self.counts is not None:
            return self.counts
        head_S = torch.arange(len(num_slots_H)).repeat_interleave(torch.tensor(num_slots_H))
        is_v_SW, is_k_HW = is_width(self.v_S).cpu(), is_width(self.k_HD).sum(dim=1)
        v_HW = torch.zeros(len(num_slots_H), len(WIDTHS), dtype=torch.int64)
        return WidthCounts(v_HW.index_add_(0, head_S, is_v_SW.long()).tolist(), is_k_HW.tolist())


def is_width(width_X: Tensor) -> Tensor:
    """Which of `WIDTHS` each one is: bool (X, W)."""
    return width_X[..., None] == upload(torch.tensor(WIDTHS, dtype=torch.uint8), width_X.device)


def codes_above(x: Tensor, offset: Tensor, scale: Tensor, width: int) -> Tensor:
    """Codes of ``width`` bits (uint8) of numbers that are ``offset + scale · code``, fp32; 0 where ``scale`` is."""
    step = torch.where(scale > 0, scale, 1.0)
    return ((x - offset) / step).round_().clamp_(0, 2**width - 1).to(torch.uint8)
