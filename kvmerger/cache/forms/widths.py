"""Numbers of bits that a policy gives each slot's value and each channel of a head's keys, for the form that stores them so.

Shapes: S slots of a layer, its heads one after the other, H heads, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CODED_WIDTHS = (2, 4, 8)
"""Bits of numbers that are codes."""
PLAIN_WIDTH = 16
"""Stands for a number in the model's own dtype, whatever bits that has."""
WIDTHS = (0, *CODED_WIDTHS, PLAIN_WIDTH)


class Widths(NamedTuple):
    """What a slot's value and a channel of a head's keys take, in bits, each one of `WIDTHS`; 0 is not stored, and read as 0.

    v_S and k_HD: uint8 (S,) and (H, D).
    """

    v_S: Tensor
    k_HD: Tensor


def codes_above(x: Tensor, offset: Tensor, scale: Tensor, width: int) -> Tensor:
    """Codes of ``width`` bits (uint8) of numbers that are ``offset + scale · code``, fp32; 0 where ``scale`` is."""
    step = torch.where(scale > 0, scale, 1.0)
    return ((x - offset) / step).round_().clamp_(0, 2**width - 1).to(torch.uint8)
