"""The columns of the row table as constants of programs, and how a prefix is cut into parts. Knows nothing of torch."""

from __future__ import annotations

import triton
import triton.language as tl

from kvmerger.cache import columns

NUM_COLUMNS = tl.constexpr(columns.NUM_COLUMNS)
KEYS = tl.constexpr(columns.KEYS)
VALUES = tl.constexpr(columns.VALUES)
LOG_MASS = tl.constexpr(columns.LOG_MASS)
FIRST_SLOT = tl.constexpr(columns.FIRST_SLOT)
NUM_SLOTS = tl.constexpr(columns.NUM_SLOTS)
IS_PACKED = tl.constexpr(columns.IS_PACKED)
K_SCALE = tl.constexpr(columns.K_SCALE)
K_OFFSET = tl.constexpr(columns.K_OFFSET)
K_GLOBAL = tl.constexpr(columns.K_GLOBAL)
V_SCALE = tl.constexpr(columns.V_SCALE)
V_OFFSET = tl.constexpr(columns.V_OFFSET)
V_GLOBAL = tl.constexpr(columns.V_GLOBAL)


@triton.jit
def split_slots(num_slots, SPLIT_SLOTS: tl.constexpr, MOST_PARTS: tl.constexpr):
    """Slots of each part of a prefix: whole multiples of SPLIT_SLOTS, as many as make at most MOST_PARTS parts."""
    return SPLIT_SLOTS * tl.maximum(tl.cdiv(num_slots, SPLIT_SLOTS * MOST_PARTS), 1)


@triton.jit
def prefix_parts(num_slots, SPLIT_SLOTS: tl.constexpr, MOST_PARTS: tl.constexpr):
    """Parts of a prefix."""
    return tl.cdiv(num_slots, split_slots(num_slots, SPLIT_SLOTS, MOST_PARTS))
