"""The Triton kernels of ragged attention and its mass: what one program computes. They know nothing of torch.

A program's numbers come from its own row alone: how many slots a part has follows from the head's own length, parts are
counted from its first slot, and they are put together in ascending order. Nothing is added atomically. All that a program
is responsible for is written, zeros included: outputs may start as any memory.

Of a row that is packed these programs compute the tail alone; `programs.packed` reads its prefix. Its tail's parts come
first, so that they are few programs where all rows are packed.

Shapes: R rows, H KV heads, G query heads of a KV head, T tokens, X = T·G queries of a KV head (x = t·G + g), D head size,
S slots or tail tokens of a block, P parts: the splits of a prefix, then those of its tail; M rows that asked for their mass,
W flat slots of a row, J columns of the row table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvmerger.kernels.programs.table import (
    FIRST_SLOT,
    IS_PACKED,
    KEYS,
    LOG_MASS,
    NUM_COLUMNS,
    NUM_SLOTS,
    VALUES,
    prefix_parts,
    split_slots,
)


# One argument a line, signatures would be longer than what they introduce.
# fmt: off
@triton.jit(do_not_specialize=["num_parts"])
def attend_kernel(
    q_RQTD, columns_RHJ, tail_k_RHCD, tail_v_RHCD, tail_start_R, num_new_R, out, log_sum_exp,
    scaling, num_heads, num_groups, num_tokens, num_parts,
    q_stride_R, q_stride_Q, q_stride_T, tail_stride_R, tail_stride_H,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr,
    SPLIT_SLOTS: tl.constexpr, MOST_PARTS: tl.constexpr, IS_SPLIT: tl.constexpr, ONLY_PACKED: tl.constexpr,
):
    # fmt: on
    """One row, KV head and block of queries, over one part of the slots (IS_SPLIT) or over all of them.

    Of packed rows only parts of tails are computed, with ONLY_PACKED nothing else.

    ``out`` is (R, H, P, X, D) fp32 when split, else (R, T, Q, D) in the queries' dtype; ``log_sum_exp`` is (R, H, P, X), or
    (R, H, X). A program whose part the row does not have writes nothing.
    """
    part, row_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = row_head // num_heads, row_head % num_heads
    x_X = tl.program_id(2) * BLOCK_X + tl.arange(0, BLOCK_X)
    d_D = tl.arange(0, BLOCK_D)
    token_X, query_head_X = x_X // num_groups, head * num_groups + x_X % num_groups
    num_new, tail_start = tl.load(num_new_R + row), tl.load(tail_start_R + row)
    head_columns = columns_RHJ + row_head * NUM_COLUMNS
    is_packed = tl.load(head_columns + IS_PACKED) != 0
    num_slots = tl.where(is_packed, 0, tl.load(head_columns + NUM_SLOTS).to(tl.int32))
    prefix_begin, prefix_end, tail_begin, tail_end, is_mine = _bounds(
        part, num_slots, tail_start, num_new, tl.program_id(2) * BLOCK_X,
        num_groups, BLOCK_X, SPLIT_SLOTS, MOST_PARTS, IS_SPLIT,
    )
    if ONLY_PACKED:
        is_mine = is_mine & is_packed
    elif not IS_SPLIT:
        is_mine = is_mine & (is_packed == 0)
    if is_mine:
        q_start_X = row * q_stride_R + query_head_X * q_stride_Q + token_X.to(tl.int64) * q_stride_T
        is_query_XD = (token_X < num_new)[:, None] & (d_D < HEAD_DIM)[None, :]
        q_XD = tl.load(q_RQTD + q_start_X[:, None] + d_D[None, :], mask=is_query_XD, other=0.0)
        acc_XD, max_X, sum_X = _over_prefix(
            q_XD, head_columns, prefix_begin, prefix_end, d_D, scaling, HEAD_DIM, BLOCK_D, BLOCK_X, BLOCK_S
        )
        tail_offset = row * tail_stride_R + head * tail_stride_H
        acc_XD, max_X, sum_X = _over_tail(
            q_XD, tail_k_RHCD + tail_offset, tail_v_RHCD + tail_offset, tail_begin, tail_end,
            tail_start + token_X, d_D, scaling, acc_XD, max_X, sum_X, HEAD_DIM, BLOCK_S,
        )
        place_X = (row_head * num_parts + part) * num_tokens * num_groups + x_X
        out_X = place_X
        if not IS_SPLIT:
            out_X = (row * num_tokens + token_X) * num_heads * num_groups + query_head_X
        has_sum_X = (token_X < num_new) & (sum_X > 0.0)
        _store(acc_XD, max_X, sum_X, has_sum_X, token_X < num_tokens, d_D, out, out_X, log_sum_exp, place_X, HEAD_DIM)


@triton.jit
def _store(
    acc_XD, max_X, sum_X, has_sum_X, is_place_X, d_D, out, out_X, log_sum_exp, place_X, HEAD_DIM: tl.constexpr
):
    """Write output, divided, and log-sum-exp; zeros and -inf for a query that saw nothing."""
    divisor_X = tl.where(has_sum_X, sum_X, 1.0)
    out_XD = tl.where(has_sum_X[:, None], acc_XD / divisor_X[:, None], 0.0).to(out.dtype.element_ty)
    lse_X = tl.where(has_sum_X, max_X + tl.log(divisor_X), float("-inf"))
    is_place_XD = is_place_X[:, None] & (d_D < HEAD_DIM)[None, :]
    tl.store(out + out_X[:, None] * HEAD_DIM + d_D[None, :], out_XD, mask=is_place_XD)
    tl.store(log_sum_exp + place_X, lse_X, mask=is_place_X)


@triton.jit
def _bounds(
    part, num_slots, tail_start, num_new, first_x, num_groups,
    BLOCK_X: tl.constexpr, SPLIT_SLOTS: tl.constexpr, MOST_PARTS: tl.constexpr, IS_SPLIT: tl.constexpr,
):  # fmt: skip
    """Where a program's slots and tail tokens begin and end, and whether there is anything for it to do."""
    # Nobody in this block looks behind its last query's own token.
    last_token = tl.minimum((first_x + BLOCK_X - 1) // num_groups, num_new - 1)
    has_query = first_x // num_groups < num_new
    prefix_begin, prefix_end = 0, tl.where(has_query, num_slots, 0)
    tail_begin, tail_end = 0, tl.where(has_query, tail_start + last_token + 1, 0)
    is_mine = part == 0
    if IS_SPLIT:
        part_slots = split_slots(num_slots, SPLIT_SLOTS, MOST_PARTS)
        num_prefix_parts = tl.cdiv(num_slots, part_slots)
        num_own_parts = num_prefix_parts + tl.cdiv(tail_start + num_new, SPLIT_SLOTS)
        is_mine = has_query & (part < num_own_parts)
        prefix_begin = part * part_slots
        prefix_end = tl.minimum(prefix_end, prefix_begin + part_slots)
        tail_begin = tl.where(part < num_prefix_parts, tail_end, (part - num_prefix_parts) * SPLIT_SLOTS)
        tail_end = tl.minimum(tail_end, tail_begin + SPLIT_SLOTS)
    return prefix_begin, prefix_end, tail_begin, tail_end, is_mine


@triton.jit
def _over_prefix(
    q_XD, head_columns, begin, end, d_D, scaling,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Attention over the slots from ``begin`` to ``end``: output not yet divided, largest score, sum."""
    # Slots are multiples of 16 bytes and storages aligned to more; without being told, loads would go value by value.
    k_SD = tl.multiple_of(tl.load(head_columns + KEYS).to(tl.pointer_type(q_XD.dtype)), 16)
    v_SD = tl.multiple_of(tl.load(head_columns + VALUES).to(tl.pointer_type(q_XD.dtype)), 16)
    log_mass_address = tl.load(head_columns + LOG_MASS)
    log_mass_S = log_mass_address.to(tl.pointer_type(tl.float32))
    acc_XD = tl.zeros([BLOCK_X, BLOCK_D], dtype=tl.float32)
    max_X = tl.full([BLOCK_X], float("-inf"), dtype=tl.float32)
    sum_X = tl.zeros([BLOCK_X], dtype=tl.float32)
    for start in range(begin, end, BLOCK_S):
        s_S = start + tl.arange(0, BLOCK_S)
        is_slot_S = s_S < end
        log_mass = tl.load(log_mass_S + s_S, mask=is_slot_S & (log_mass_address != 0), other=0.0)
        logit_S = tl.where(is_slot_S, log_mass, float("-inf"))
        acc_XD, max_X, sum_X = _take_in(
            q_XD, k_SD, v_SD, s_S, is_slot_S, logit_S[None, :], d_D, scaling, acc_XD, max_X, sum_X, HEAD_DIM
        )
    return acc_XD, max_X, sum_X


@triton.jit
def _over_tail(
    q_XD, k_CD, v_CD, begin, end, last_seen_X, d_D, scaling, acc_XD, max_X, sum_X,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The same over tail tokens, each query up to its ``last_seen_X``, added to what is there already."""
    for start in range(begin, end, BLOCK_S):
        s_S = start + tl.arange(0, BLOCK_S)
        is_slot_S = s_S < end
        is_seen_XS = (s_S[None, :] <= last_seen_X[:, None]) & is_slot_S[None, :]
        logit_XS = tl.where(is_seen_XS, 0.0, float("-inf"))
        acc_XD, max_X, sum_X = _take_in(
            q_XD, k_CD, v_CD, s_S, is_slot_S, logit_XS, d_D, scaling, acc_XD, max_X, sum_X, HEAD_DIM
        )
    return acc_XD, max_X, sum_X


@triton.jit
def _take_in(
    q_XD, k_SD, v_SD, s_S, is_slot_S, logit_XS, d_D, scaling, acc_XD, max_X, sum_X, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """Take one block of slots into the running output, maximum and sum; ``logit_XS`` is added to the scores."""
    place_SD = s_S[:, None].to(tl.int64) * HEAD_DIM + d_D[None, :]
    is_held_SD = is_slot_S[:, None] & (d_D < HEAD_DIM)[None, :]
    key_SD = tl.load(k_SD + place_SD, mask=is_held_SD, other=0.0)
    value_SD = tl.load(v_SD + place_SD, mask=is_held_SD, other=0.0)
    score_XS = tl.dot(q_XD, tl.trans(key_SD), input_precision="ieee") * scaling + logit_XS
    new_max_X = tl.maximum(max_X, tl.max(score_XS, axis=1))
    # A query that has seen nothing yet has no maximum, and -inf - -inf is no number.
    base_X = tl.where(new_max_X == float("-inf"), 0.0, new_max_X)
    prob_XS = tl.exp(score_XS - base_X[:, None])
    decay_X = tl.exp(max_X - base_X)
    sum_X = sum_X * decay_X + tl.sum(prob_XS, axis=1)
    acc_XD = acc_XD * decay_X[:, None]
    # In half precision a probability is its rounded value and the rounding's remainder: nearly fp32 for one more dot.
    rounded_XS = prob_XS.to(value_SD.dtype)
    acc_XD = tl.dot(rounded_XS, value_SD, acc_XD, input_precision="ieee")
    if value_SD.dtype != tl.float32:
        remainder_XS = (prob_XS - rounded_XS.to(tl.float32)).to(value_SD.dtype)
        acc_XD = tl.dot(remainder_XS, value_SD, acc_XD, input_precision="ieee")
    return acc_XD, new_max_X, sum_X


# fmt: off
@triton.jit(do_not_specialize=["num_parts"])
def combine_kernel(
    part_out_RHPXD, part_lse_RHPX, columns_RHJ, tail_start_R, num_new_R, out_RTQD, lse_RHX,
    num_heads, num_groups, num_tokens, num_parts,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    SPLIT_SLOTS: tl.constexpr, MOST_PARTS: tl.constexpr, TAIL_SLOTS: tl.constexpr,
    PACKED_SLOTS: tl.constexpr, MOST_PACKED_PARTS: tl.constexpr, ONLY_PACKED: tl.constexpr,
):
    # fmt: on
    """Put the parts of one query together, in their order; zeros for a query that the row does not have.

    PACKED_SLOTS and MOST_PACKED_PARTS cut the prefixes of packed rows. With ONLY_PACKED other rows' outputs stay as they are.
    """
    x = tl.program_id(0)
    row_head = tl.program_id(1).to(tl.int64)
    row, head = row_head // num_heads, row_head % num_heads
    num_queries = num_tokens * num_groups
    token, num_new = x // num_groups, tl.load(num_new_R + row)
    is_packed = tl.load(columns_RHJ + row_head * NUM_COLUMNS + IS_PACKED) != 0
    num_slots = tl.load(columns_RHJ + row_head * NUM_COLUMNS + NUM_SLOTS).to(tl.int32)
    # As they are counted where they are written: parts beyond these never were.
    packed_parts = prefix_parts(num_slots, PACKED_SLOTS, MOST_PACKED_PARTS)
    own_parts = tl.where(is_packed, packed_parts, prefix_parts(num_slots, SPLIT_SLOTS, MOST_PARTS))
    own_parts += tl.cdiv(tl.load(tail_start_R + row) + num_new, TAIL_SLOTS)
    own_parts = tl.where(token < num_new, own_parts, 0)
    d_D = tl.arange(0, BLOCK_D)
    acc_D = tl.zeros([BLOCK_D], dtype=tl.float32)
    max_1 = tl.full([1], float("-inf"), dtype=tl.float32)
    sum_1 = tl.zeros([1], dtype=tl.float32)
    for first in range(0, own_parts, BLOCK_P):
        p_P = first + tl.arange(0, BLOCK_P)
        is_part_P = p_P < own_parts
        place_P = (row_head * num_parts + p_P) * num_queries + x
        lse_P = tl.load(part_lse_RHPX + place_P, mask=is_part_P, other=float("-inf"))
        place_PD, is_held_PD = place_P[:, None] * HEAD_DIM + d_D[None, :], is_part_P[:, None] & (d_D < HEAD_DIM)[None, :]
        part_PD = tl.load(part_out_RHPXD + place_PD, mask=is_held_PD, other=0.0)
        new_max_1 = tl.maximum(max_1, tl.max(lse_P, axis=0))
        base_1 = tl.where(new_max_1 == float("-inf"), 0.0, new_max_1)
        weight_P = tl.exp(lse_P - base_1)
        decay_1 = tl.exp(max_1 - base_1)
        acc_D = acc_D * decay_1 + tl.sum(weight_P[:, None] * part_PD, axis=0)
        sum_1 = sum_1 * decay_1 + tl.sum(weight_P, axis=0)
        max_1 = new_max_1
    has_sum_1 = sum_1 > 0.0
    safe_sum_1 = tl.where(has_sum_1, sum_1, 1.0)
    out_D = tl.where(has_sum_1, acc_D / safe_sum_1, 0.0)
    out_start = ((row * num_tokens + token) * num_heads * num_groups + head * num_groups + x % num_groups) * HEAD_DIM
    is_mine = is_packed | (not ONLY_PACKED)
    tl.store(out_RTQD + out_start + d_D, out_D.to(out_RTQD.dtype.element_ty), mask=(d_D < HEAD_DIM) & is_mine)
    lse_1 = tl.where(has_sum_1, max_1 + tl.log(safe_sum_1), float("-inf"))
    tl.store(lse_RHX + row_head * num_queries + x + tl.arange(0, 1), lse_1, mask=is_mine)


# fmt: off
@triton.jit(do_not_specialize=["prefix_width", "tail_width", "num_prefix_blocks"])
def mass_kernel(
    q_RQTD, columns_RHJ, tail_k_RHCD, tail_start_R, num_new_R, lse_RHX, row_M, prefix_mass_MW, tail_mass_MHY,
    scaling, num_heads, num_groups, num_tokens, prefix_width, tail_width, num_prefix_blocks,
    q_stride_R, q_stride_Q, q_stride_T, tail_stride_R, tail_stride_H,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr,
):
    # fmt: on
    """One block of slots of one asking row's head, unless it is packed, or one block of its tail."""
    block, asking = tl.program_id(0), (tl.program_id(1) // num_heads).to(tl.int64)
    head, row = tl.program_id(1) % num_heads, tl.load(row_M + asking).to(tl.int64)
    d_D, num_new = tl.arange(0, BLOCK_D), tl.load(num_new_R + row)
    tail_start = tl.load(tail_start_R + row)
    head_columns = columns_RHJ + (row * num_heads + head) * NUM_COLUMNS
    is_tail = block >= num_prefix_blocks
    is_packed = tl.load(head_columns + IS_PACKED) != 0
    num_slots = tl.where(is_packed, 0, tl.load(head_columns + NUM_SLOTS).to(tl.int32))
    s_S = tl.where(is_tail, block - num_prefix_blocks, block) * BLOCK_S + tl.arange(0, BLOCK_S)
    end = tl.where(is_tail, tail_start + num_new, num_slots)
    tail_address = (tail_k_RHCD + row * tail_stride_R + head * tail_stride_H).to(tl.int64, bitcast=True)
    address = tl.where(is_tail, tail_address, tl.load(head_columns + KEYS))
    k_SD = tl.multiple_of(address.to(tl.pointer_type(q_RQTD.dtype.element_ty)), 16)
    is_held_SD = (s_S < end)[:, None] & (d_D < HEAD_DIM)[None, :]
    key_SD = tl.load(k_SD + s_S[:, None].to(tl.int64) * HEAD_DIM + d_D[None, :], mask=is_held_SD, other=0.0)
    log_mass_address = tl.where(is_tail, 0, tl.load(head_columns + LOG_MASS))
    log_mass_S = log_mass_address.to(tl.pointer_type(tl.float32))
    logit_S = tl.load(log_mass_S + s_S, mask=(s_S < end) & (log_mass_address != 0), other=0.0)
    mass_S = tl.zeros([BLOCK_S], dtype=tl.float32)
    for first_x in range(0, num_new * num_groups, BLOCK_X):
        x_X = first_x + tl.arange(0, BLOCK_X)
        token_X, query_head_X = x_X // num_groups, head * num_groups + x_X % num_groups
        q_start_X = row * q_stride_R + query_head_X * q_stride_Q + token_X.to(tl.int64) * q_stride_T
        is_query_XD = (token_X < num_new)[:, None] & (d_D < HEAD_DIM)[None, :]
        q_XD = tl.load(q_RQTD + q_start_X[:, None] + d_D[None, :], mask=is_query_XD, other=0.0)
        place_X = (row * num_heads + head) * num_tokens * num_groups + x_X
        lse_X = tl.load(lse_RHX + place_X, mask=token_X < num_new, other=0.0)
        score_XS = tl.dot(q_XD, tl.trans(key_SD), input_precision="ieee") * scaling + logit_S[None, :]
        is_seen_XS = (s_S[None, :] <= (tail_start + token_X)[:, None]) | (is_tail == 0)
        is_seen_XS = is_seen_XS & (token_X < num_new)[:, None]
        mass_S += tl.sum(tl.where(is_seen_XS, tl.exp(score_XS - lse_X[:, None]), 0.0), axis=0)
    mass_S /= num_groups
    first_slot = tl.load(head_columns + FIRST_SLOT)
    tl.store(prefix_mass_MW + asking * prefix_width + first_slot + s_S, mass_S, mask=(s_S < end) & (is_tail == 0))
    tail_place_S = (asking * num_heads + head) * tail_width + s_S
    # Up to the width: where the host knows bounds alone it reads behind a row's end, and there no query saw anything.
    tl.store(tail_mass_MHY + tail_place_S, mass_S, mask=(s_S < tail_width) & is_tail)
