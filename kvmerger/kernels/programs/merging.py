"""The Triton kernels of merging: sums over groups that lie one behind the other, and norms and distances of rows.

Every group, row and pair has a lane of its own, which takes the members in their order: no atomics, and a group's bits depend
on its own members alone.

Shapes: F and G flat tokens or rows, D head size, M members of all groups, rows or pairs, S groups of a block, P rows or
pairs of a block, H heads of N rows each, C chunks of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

AT_ONCE = tl.constexpr(4)  # members loaded ahead; they are still added one by one. A group may have thousands
LEAST_COSINE_NORM = tl.constexpr(1e-8)  # as in torch.cosine_similarity
LEAST_UNIT_NORM = tl.constexpr(1e-12)  # as in torch's normalize


# fmt: off
@triton.jit(do_not_specialize=["num_groups"])
def reduce_kernel(
    value_M, end_G, length_G, out_G, num_groups, KIND: tl.constexpr, BLOCK_S: tl.constexpr,
):
    # fmt: on
    """A block of groups' sums, largest values, or the first place of those ("sum", "max", "argmax")."""
    s_S = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_group_S = s_S < num_groups
    length_S = tl.load(length_G + s_S, mask=is_group_S, other=0)
    first_S = tl.load(end_G + s_S, mask=is_group_S, other=0) - length_S
    start = 0.0 if KIND == "sum" else float("-inf")
    value_S = tl.full([BLOCK_S], start, value_M.dtype.element_ty)
    place_S = first_S
    for first in range(0, tl.max(length_S), AT_ONCE):
        for offset in tl.static_range(AT_ONCE):
            index = first + offset
            member_S = tl.load(value_M + first_S + index, mask=index < length_S, other=start)
            if KIND == "sum":
                value_S += member_S
            else:
                # Greater, not equal: the first of equals stays. NaN stays the maximum once it is met.
                place_S = tl.where(member_S > value_S, first_S + index, place_S)
                value_S = tl.where((member_S > value_S) | (member_S != member_S), member_S, value_S)
    tl.store(out_G + s_S, place_S if KIND == "argmax" else value_S, mask=is_group_S)


# fmt: off
@triton.jit(do_not_specialize=["num_groups"])
def merge_kernel(
    k_FD, v_FD, position_F, member_M, end_G, length_G, target_G, key_weight_M, value_weight_M,
    k_GD, v_GD, position_G, num_groups,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    MERGES_KEYS: tl.constexpr, MERGES_VALUES: tl.constexpr,
):
    # fmt: on
    """A block of groups as slots. What is not merged, and groups of one, are their target's own bits."""
    s_S, d_D = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    is_group_S = s_S < num_groups
    is_in_SD = is_group_S[:, None] & (d_D < HEAD_DIM)[None, :]
    length_S = tl.load(length_G + s_S, mask=is_group_S, other=0)
    first_S = tl.load(end_G + s_S, mask=is_group_S, other=0) - length_S
    target_S = tl.load(target_G + s_S, mask=is_group_S, other=0)
    tl.store(position_G + s_S, tl.load(position_F + target_S, mask=is_group_S), mask=is_group_S)
    own_SD = target_S[:, None] * HEAD_DIM + d_D[None, :]
    k_SD, v_SD = tl.zeros([BLOCK_S, BLOCK_D], tl.float32), tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    # A group of one must keep its bits: a weight of nearly 1 would not.
    is_many_S = length_S > 1
    for first in range(0, tl.max(tl.where(is_many_S, length_S, 0)), AT_ONCE):
        for offset in tl.static_range(AT_ONCE):
            m_S = first_S + first + offset
            is_member_S = is_many_S & (first + offset < length_S)
            member_S = tl.load(member_M + m_S, mask=is_member_S, other=0)
            from_SD = member_S[:, None] * HEAD_DIM + d_D[None, :]
            is_member_SD = is_member_S[:, None] & (d_D < HEAD_DIM)[None, :]
            if MERGES_KEYS:
                weight_S = tl.load(key_weight_M + m_S, mask=is_member_S, other=0.0)
                key_SD = tl.load(k_FD + from_SD, mask=is_member_SD, other=0.0)
                k_SD += weight_S[:, None] * key_SD.to(tl.float32)
            if MERGES_VALUES:
                weight_S = tl.load(value_weight_M + m_S, mask=is_member_S, other=0.0)
                value_SD = tl.load(v_FD + from_SD, mask=is_member_SD, other=0.0)
                v_SD += weight_S[:, None] * value_SD.to(tl.float32)
    to_SD = s_S[:, None] * HEAD_DIM + d_D[None, :]
    own_k_SD, own_v_SD = tl.load(k_FD + own_SD, mask=is_in_SD), tl.load(v_FD + own_SD, mask=is_in_SD)
    if MERGES_KEYS:
        own_k_SD = tl.where(is_many_S[:, None], k_SD.to(own_k_SD.dtype), own_k_SD)
    if MERGES_VALUES:
        own_v_SD = tl.where(is_many_S[:, None], v_SD.to(own_v_SD.dtype), own_v_SD)
    tl.store(k_GD + to_SD, own_k_SD, mask=is_in_SD)
    tl.store(v_GD + to_SD, own_v_SD, mask=is_in_SD)


# fmt: off
@triton.jit(do_not_specialize=["num_pairs"])
def pairs_kernel(
    x_FD, y_GD, first_M, second_M, out_M, num_pairs,
    KIND: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):
    # fmt: on
    """A block of pairs' "cosine" or "distance", or "norm" of the rows themselves."""
    p_P, d_D = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    is_pair_P = p_P < num_pairs
    is_in_PD = is_pair_P[:, None] & (d_D < HEAD_DIM)[None, :]
    if KIND == "norm":
        x_PD = tl.load(x_FD + p_P[:, None] * HEAD_DIM + d_D[None, :], mask=is_in_PD, other=0.0).to(tl.float32)
        # `sqrt_rn` is rounded correctly; the plain one is an approximation, other bits than the reference's.
        out_P = tl.sqrt_rn(tl.sum(x_PD * x_PD, axis=1))
    else:
        first_P = tl.load(first_M + p_P, mask=is_pair_P, other=0)
        second_P = tl.load(second_M + p_P, mask=is_pair_P, other=0)
        x_PD = tl.load(x_FD + first_P[:, None] * HEAD_DIM + d_D[None, :], mask=is_in_PD, other=0.0).to(tl.float32)
        y_PD = tl.load(y_GD + second_P[:, None] * HEAD_DIM + d_D[None, :], mask=is_in_PD, other=0.0).to(tl.float32)
        if KIND == "cosine":
            x_norm_P = tl.maximum(tl.sqrt_rn(tl.sum(x_PD * x_PD, axis=1)), LEAST_COSINE_NORM)
            y_norm_P = tl.maximum(tl.sqrt_rn(tl.sum(y_PD * y_PD, axis=1)), LEAST_COSINE_NORM)
            out_P = tl.sum((x_PD / x_norm_P[:, None]) * (y_PD / y_norm_P[:, None]), axis=1)
        else:
            out_P = tl.sqrt_rn(tl.sum((x_PD - y_PD) * (x_PD - y_PD), axis=1))
    tl.store(out_M + p_P, out_P, mask=is_pair_P)


# fmt: off
@triton.jit(do_not_specialize=["num_tokens", "chunk_tokens"])
def unit_sum_kernel(
    x_FD, sum_HCD, num_tokens, chunk_tokens,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):
    # fmt: on
    """The sum of one chunk of a head's rows, each divided by its norm."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d_D, sum_PD = tl.arange(0, BLOCK_D), tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    end = tl.minimum((chunk + 1) * chunk_tokens, num_tokens)
    for first in range(chunk * chunk_tokens, end, BLOCK_P):
        n_P = first + tl.arange(0, BLOCK_P)
        is_in_PD = (n_P < end)[:, None] & (d_D < HEAD_DIM)[None, :]
        from_PD = (head * num_tokens + n_P)[:, None] * HEAD_DIM + d_D[None, :]
        x_PD = tl.load(x_FD + from_PD, mask=is_in_PD, other=0.0).to(tl.float32)
        norm_P = tl.maximum(tl.sqrt_rn(tl.sum(x_PD * x_PD, axis=1)), LEAST_UNIT_NORM)
        sum_PD += x_PD / norm_P[:, None]
    to_D = (head * tl.num_programs(0) + chunk) * HEAD_DIM + d_D
    tl.store(sum_HCD + to_D, tl.sum(sum_PD, axis=0), mask=d_D < HEAD_DIM)
