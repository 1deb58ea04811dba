"""The Triton kernels of a ranking: which scores of one row are among its highest, and the copy of the slots so chosen.

Nothing is sorted. One program has one row: scores become whole numbers in the same order, the lowest number that still counts
is found bit by bit by counting, and of equal ones the earliest are taken, as a stable sort of torch's would. Whole numbers
are not rounded, so every call gives the same bits.

Shapes: H rows, N columns, B columns of a block, K places of all rows together or chosen slots, F flat slots
to choose from, S slots of a block, D head size.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Counts of a block that holds fewer than 2²⁰ columns, three of them side by side in one number of 64 bits.
COUNT_BITS = tl.constexpr(20)
COUNT_MASK = tl.constexpr(2**20 - 1)


# fmt: off
@triton.jit(do_not_specialize=["num_columns"])
def highest_kernel(
    score_HN, count_H, start_H, place_K, is_marked_HN, num_columns, score_stride_H, score_stride_N,
    BLOCK_B: tl.constexpr, KEY_BITS: tl.constexpr, GIVES_PLACES: tl.constexpr,
):
    # fmt: on
    """The flat places of a row's ``count`` highest scores, from ``start`` on; or marks, where no places are wanted."""
    row = tl.program_id(0).to(tl.int64)
    score_N = score_HN + row * score_stride_H
    count = tl.load(count_H + row)
    # Kept in registers: rows that fit one block are read once in all rounds.
    first_key_B = _keys(score_N, 0, num_columns, score_stride_N, BLOCK_B, KEY_BITS)
    # Bits as of a number without sign, two more in every round: `lowest` makes keys of them, which have one.
    lowest = tl.full([], 1, first_key_B.dtype) << (KEY_BITS - 1)
    bits = tl.zeros([], first_key_B.dtype)
    for step in range(1, KEY_BITS // 2 + 1):
        one = tl.full([], 1, first_key_B.dtype) << (KEY_BITS - 2 * step)
        two = one << 1
        bits_1, bits_2, bits_3 = bits | one, bits | two, bits | one | two
        at_least_1, at_least_2, at_least_3 = _numbers_at_least(
            first_key_B, score_N, num_columns, score_stride_N, bits_1 ^ lowest, bits_2 ^ lowest, bits_3 ^ lowest,
            BLOCK_B, KEY_BITS,
        )
        bits = tl.where(at_least_3 >= count, bits_3, tl.where(
            at_least_2 >= count, bits_2, tl.where(at_least_1 >= count, bits_1, bits)
        ))
    threshold = bits ^ lowest
    num_above = tl.sum((first_key_B > threshold).to(tl.int64))
    for first in range(BLOCK_B, num_columns, BLOCK_B):
        key_B = _keys(score_N, first, num_columns, score_stride_N, BLOCK_B, KEY_BITS)
        num_above += tl.sum((key_B > threshold).to(tl.int64))
    num_ties, place = count - num_above, tl.load(start_H + row)
    for first in range(0, num_columns, BLOCK_B):
        key_B = _keys(score_N, first, num_columns, score_stride_N, BLOCK_B, KEY_BITS)
        is_tie_B = key_B == threshold
        is_taken_B = (key_B > threshold) | (is_tie_B & (tl.cumsum(is_tie_B.to(tl.int32), 0) <= num_ties))
        column_B = first + tl.arange(0, BLOCK_B)
        if GIVES_PLACES:
            number_B = tl.cumsum(is_taken_B.to(tl.int32), 0)
            tl.store(place_K + place + number_B - 1, row * num_columns + column_B, mask=is_taken_B)
            place += tl.sum(is_taken_B.to(tl.int64))
        else:
            tl.store(is_marked_HN + row * num_columns + column_B, is_taken_B, mask=column_B < num_columns)
        num_ties -= tl.sum(is_tie_B.to(tl.int64))


@triton.jit
def _numbers_at_least(
    first_key_B, score_N, num_columns, stride_N, key_1, key_2, key_3,
    BLOCK_B: tl.constexpr, KEY_BITS: tl.constexpr,
):  # fmt: skip
    """How many keys of a row are at least each of three; ``first_key_B`` are those of its first block."""
    counts = tl.sum(_passed(first_key_B, key_1, key_2, key_3))
    num_1, num_2, num_3 = counts & COUNT_MASK, (counts >> COUNT_BITS) & COUNT_MASK, counts >> (2 * COUNT_BITS)
    for first in range(BLOCK_B, num_columns, BLOCK_B):
        counts = tl.sum(_passed(
            _keys(score_N, first, num_columns, stride_N, BLOCK_B, KEY_BITS), key_1, key_2, key_3
        ))
        num_1 += counts & COUNT_MASK
        num_2 += (counts >> COUNT_BITS) & COUNT_MASK
        num_3 += counts >> (2 * COUNT_BITS)
    return num_1, num_2, num_3


@triton.jit
def _passed(key_B, key_1, key_2, key_3):
    """A one in each of three counts whose key is reached."""
    passed_B = (key_B >= key_1).to(tl.int64) | ((key_B >= key_2).to(tl.int64) << COUNT_BITS)
    return passed_B | ((key_B >= key_3).to(tl.int64) << (2 * COUNT_BITS))


@triton.jit
def _keys(score_N, first, num_columns, stride_N, BLOCK_B: tl.constexpr, KEY_BITS: tl.constexpr):
    """Whole numbers in the order of a block's scores: zeros are equal, NaN is highest, and behind the row's end is lowest."""
    column_B = first + tl.arange(0, BLOCK_B)
    is_in_B = column_B < num_columns
    score_B = tl.load(score_N + column_B.to(tl.int64) * stride_N, mask=is_in_B, other=0.0)
    if KEY_BITS == 64:
        key_B = score_B.to(tl.int64, bitcast=True)
    else:
        score_B = score_B.to(tl.float32)
        key_B = score_B.to(tl.int32, bitcast=True)
    # Of two negative numbers the one with larger magnitude has the larger bits. Shifting brings the sign to every bit.
    sign_B = key_B >> (KEY_BITS - 1)
    most = ~(tl.full([], 1, key_B.dtype) << (KEY_BITS - 1))
    key_B = tl.where(score_B == 0.0, 0, key_B ^ (sign_B & most))
    key_B = tl.where(score_B != score_B, most, key_B)
    return tl.where(is_in_B, key_B, ~most)


# fmt: off
@triton.jit(do_not_specialize=["num_chosen"])
def take_kernel(
    k_FD, v_FD, position_F, slot_K, k_KD, v_KD, position_K, num_chosen,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):
    # fmt: on
    """One block of chosen slots."""
    # A whole model's slots have more than 2³¹ numbers.
    chosen_S = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_chosen_S, d_D = chosen_S < num_chosen, tl.arange(0, BLOCK_D)
    slot_S = tl.load(slot_K + chosen_S, mask=is_chosen_S, other=0)
    is_in_SD = is_chosen_S[:, None] & (d_D < HEAD_DIM)[None, :]
    from_SD = slot_S[:, None] * HEAD_DIM + d_D[None, :]
    to_SD = chosen_S[:, None] * HEAD_DIM + d_D[None, :]
    k_SD = tl.load(k_FD + from_SD, mask=is_in_SD)
    v_SD = tl.load(v_FD + from_SD, mask=is_in_SD)
    tl.store(k_KD + to_SD, k_SD, mask=is_in_SD)
    tl.store(v_KD + to_SD, v_SD, mask=is_in_SD)
    position_S = tl.load(position_F + slot_S, mask=is_chosen_S)
    tl.store(position_K + chosen_S, position_S, mask=is_chosen_S)
