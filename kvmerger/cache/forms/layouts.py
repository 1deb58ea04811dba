"""Code layouts: how one side of a layer (its keys, or its values) is written as codes, scales and offsets.

A layout is plain data that a kernel can be compiled for. What the codes mean is defined in `quantise`.

Shapes: S slots of a layer, its heads one after the other, H heads, D head size, G numbers that share a scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

import torch

from kvmerger.names import FormError

_SCALE_DTYPES = {
    "signed": torch.float32,
    "e4m3": torch.float32,
    "unsigned": torch.float16,
    "gaussian": torch.float16,
    "e2m1": torch.float8_e4m3fn,
}


class Grid(StrEnum):
    """The numbers that codes stand for, before scale and offset.

    SIGNED: two's complement, -127 to 127 in 8 bits. UNSIGNED: 0 to 2^bits - 1. E4M3: 8-bit floats of torch's
    ``float8_e4m3fn``. E2M1: 4-bit floats, the sign above the index of one of 0, 0.5, 1, 1.5, 2, 3, 4, 6. GAUSSIAN: the index
    of a Lloyd-Max point of the normal distribution (`quantise.gaussian_points`).
    """

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    E4M3 = "e4m3"
    E2M1 = "e2m1"
    GAUSSIAN = "gaussian"


class Per(StrEnum):
    """What shares one scale. NOTHING: there is none, it is 1. SLOT: a slot. BLOCK: some channels of a slot.

    CHANNEL: some slots of a head, channel by channel; the last of a head's groups may be short.
    """

    NOTHING = "nothing"
    SLOT = "slot"
    BLOCK = "block"
    CHANNEL = "channel"


@dataclass(frozen=True, slots=True)
class CodeLayout:
    """How one side is coded.

    Attributes:
        bits: of a code: 2, 3, 4 or 8.
        group: channels of a BLOCK, or slots of a CHANNEL's group; 0 where a scale is not for a group.
        is_rotated: whether vectors were multiplied by an orthonormal Hadamard matrix first.
    """

    grid: Grid
    bits: int
    per: Per
    group: int = 0
    is_rotated: bool = False

    @property
    def has_offset(self) -> bool:
        """Whether the smallest number of a group is stored and added to all of it."""
        return self.grid is Grid.UNSIGNED

    @property
    def has_global(self) -> bool:
        """Whether a head has one more scale for all of it."""
        return self.grid is Grid.E2M1

    @property
    def scale_dtype(self) -> torch.dtype:
        """Of scales, and of offsets where there are any."""
        return _SCALE_DTYPES[self.grid]

    def code_bytes(self, head_dim: int) -> int:
        """Bytes of one slot's codes."""
        return head_dim * self.bits // 8

    def num_scales(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """Scales of a layer."""
        num_slots = sum(num_slots_H)
        match self.per:
            case Per.NOTHING:
                return 0
            case Per.SLOT:
                return num_slots
            case Per.BLOCK:
                return num_slots * -(-head_dim // self.group)
            case Per.CHANNEL:
                return head_dim * sum(-(-num_slots // self.group) for num_slots in num_slots_H)

    def num_bytes(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """Bytes of a layer's codes, scales, offsets and heads' scales: what `quantise.encode` takes, exactly."""
        num_scales = Fraction(self.num_scales(num_slots_H, head_dim))
        return self._bytes_of(sum(num_slots_H), num_scales, len(num_slots_H), head_dim)

    def most_bytes(self, num_slots: int, num_heads: int, head_dim: int) -> int:
        """The most that ``num_slots`` slots take, however heads share them; see `Form.most_bytes`."""
        num_scales = Fraction(self.num_scales((num_slots,), head_dim))
        if self.per is Per.CHANNEL:
            # A slot at least is in a head's last group. No whole number of groups: layers may share among each other too.
            num_scales = head_dim * Fraction(num_slots + num_heads * (self.group - 1), self.group)
        return self._bytes_of(num_slots, num_scales, num_heads, head_dim)

    def _bytes_of(self, num_slots: int, num_scales: Fraction, num_heads: int, head_dim: int) -> int:
        a_scale = self.scale_dtype.itemsize * (2 if self.has_offset else 1)
        heads = num_heads * torch.float32.itemsize if self.has_global else 0
        return num_slots * self.code_bytes(head_dim) + math.ceil(num_scales * a_scale) + heads

    def check(self, head_dim: int) -> None:
        """Raise `FormError` where heads of ``head_dim`` numbers cannot be written so."""
        numbers = 8 if self.bits == 3 else 8 // self.bits  # that share bytes
        if head_dim % numbers:
            raise FormError(
                f"codes of {self.bits} bits need heads of a multiple of {numbers} numbers, the model's have {head_dim}"
            )
        if self.is_rotated and head_dim & (head_dim - 1):
            raise FormError(
                f"a Hadamard rotation needs heads of a power of two numbers, the model's have {head_dim}: take a form that "
                f"does not rotate"
            )
