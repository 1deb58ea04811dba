"""Codes of 2, 3, 4 and 8 bits as bytes, and back.

The bytes of a slot are cut so that a kernel can unpack them without moving numbers between lanes: with 4 bits the low
halves of the bytes are the slot's first half, with 2 bits each quarter of the slot has its own two bits of every byte. With 3
bits the two low bits lie as codes of 2 bits do, and behind them the high ones: bit b of byte i is that of channel i + b·D/8.

Shapes: S slots, D numbers of a slot, B bytes of a slot.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed(code_SD: Tensor, bits: int) -> Tensor:
    """Codes (uint8, each below 2^bits) as bytes (S, D·bits/8), uint8."""
    if bits == 8:
        return code_SD
    if bits == 3:
        return torch.cat([packed(code_SD & 3, 2), packed(code_SD >> 2, 1)], dim=1)
    parts = code_SD.chunk(8 // bits, dim=1)
    byte_SB = parts[0].clone()
    for index, part in enumerate(parts[1:], start=1):
        byte_SB |= part << (index * bits)
    return byte_SB


def unpacked(byte_SB: Tensor, bits: int) -> Tensor:
    """The codes (S, D) that `packed` wrote, uint8."""
    if bits == 8:
        return byte_SB
    if bits == 3:
        num_low = byte_SB.shape[1] * 2 // 3
        low_SD, high_SD = unpacked(byte_SB[:, :num_low], 2), unpacked(byte_SB[:, num_low:], 1)
        return low_SD | high_SD << 2
    mask = (1 << bits) - 1
    return torch.cat([byte_SB >> shift & mask for shift in range(0, 8, bits)], dim=1)
