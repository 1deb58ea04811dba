"""RDKV by its definition, in Python floats: water-filling one step at a time, bytes and codes number by number."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence


def filled(gains: Sequence[Sequence[float]], costs: Sequence[int], budget: int) -> list[int]:
    """How many steps each unit goes: of all next steps the one that gains most per byte, until that does not fit.

    ``gains`` are those of each unit's steps, ``costs`` the bytes of each step. Of equal ones the lower step comes first, then
    the earlier unit.
    """
    levels = [0] * len(gains)
    while True:
        steps = [
            (-its[level] / costs[level], level, unit)
            for unit, (its, level) in enumerate(zip(gains, levels, strict=True))
            if level < len(costs)
        ]
        if not steps:
            return levels
        _, level, unit = min(steps)
        if costs[level] > budget:
            return levels
        budget -= costs[level]
        levels[unit] += 1


def most_gained(gains: Sequence[Sequence[float]], costs: Sequence[int], budget: int) -> float:
    """The most that any choice of at most ``budget`` bytes takes off the error, by trying all."""
    best = 0.0
    for levels in itertools.product(range(len(costs) + 1), repeat=len(gains)):
        if sum(sum(costs[:level]) for level in levels) <= budget:
            best = max(best, sum(sum(its[:level]) for its, level in zip(gains, levels, strict=True)))
    return best


def value_bytes(width: int, head_dim: int, itemsize: int) -> int:
    """Of one token's value: codes, two bf16 numbers, one byte for the width."""
    if width == 0:
        return 0
    return head_dim * itemsize + 1 if width == 16 else head_dim * width // 8 + 2 * 2 + 1


def column_bytes(width: int, num_slots: int, itemsize: int) -> int:
    """Of one channel of a head's keys, but for the byte of its width: codes, two fp32 numbers."""
    if width == 0:
        return 0
    return num_slots * itemsize if width == 16 else math.ceil(num_slots * width / 8) + 2 * 4


def stored(numbers: Sequence[float], width: int, ends: str) -> list[float]:
    """What ``numbers``, which share a scale, become in ``width`` bits; ``ends`` is how scale and minimum are held.

    ``fp32``, or ``bf16``, where the minimum is rounded down and the scale up.
    """
    if width == 16:
        return list(numbers)
    if width == 0:
        return [0.0] * len(numbers)
    low, high = min(numbers), max(numbers)
    if ends == "bf16":
        low = _bf16(low, up=False)
        scale = _bf16((high - low) / (2**width - 1), up=True)
    else:
        scale = struct.unpack("f", struct.pack("f", (high - low) / (2**width - 1)))[0]
    most = 2**width - 1
    codes = [min(most, max(0, round((number - low) / scale))) if scale else 0 for number in numbers]
    return [low + scale * code for code in codes]


def _bf16(number: float, *, up: bool) -> float:
    """The nearest of bf16's numbers that is not below (``up``) or not above ``number``, which fp32 holds."""
    (bits,) = struct.unpack("I", struct.pack("f", number))
    kept = bits & 0xFFFF0000
    (towards_zero,) = struct.unpack("f", struct.pack("I", kept))
    exact = struct.unpack("f", struct.pack("I", bits))[0]
    if towards_zero == exact or (towards_zero > exact) == up:
        return towards_zero
    return struct.unpack("f", struct.pack("I", kept + 0x10000))[0]
