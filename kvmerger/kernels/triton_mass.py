"""The Triton kernel of attention mass: probabilities computed again from each query's log-sum-exp, summed per slot.

Each program adds up all queries of its row in ascending order for slots that no other program has: no atomics, and a
row's numbers are its own.

Shapes: M rows that asked; W flat slots of the longest of them, Y tail tokens; the others as in `triton_attend`.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit(do_not_specialize=["prefix_width", "tail_width", "num_prefix_blocks"])
def mass_kernel(
    q_RQTD, prefix_RH5, tail_k_RHCD, tail_start_R, num_new_R, lse_RHX, row_M, prefix_mass_MW, tail_mass_MHY,
    scaling, num_heads, num_groups, num_tokens, prefix_width, tail_width, num_prefix_blocks,
    q_stride_R, q_stride_Q, q_stride_T, tail_stride_R, tail_stride_H,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr,
):
    # fmt: on
    """One block of slots of one asking row's head, or one block of its tail."""
    block, asking = tl.program_id(0), (tl.program_id(1) // num_heads).to(tl.int64)
    head, row = tl.program_id(1) % num_heads, tl.load(row_M + asking).to(tl.int64)
    d_D, num_new = tl.arange(0, BLOCK_D), tl.load(num_new_R + row)
    tail_start = tl.load(tail_start_R + row)
    columns = prefix_RH5 + (row * num_heads + head) * 5
    is_tail = block >= num_prefix_blocks
    s_S = tl.where(is_tail, block - num_prefix_blocks, block) * BLOCK_S + tl.arange(0, BLOCK_S)
    end = tl.where(is_tail, tail_start + num_new, tl.load(columns + 4).to(tl.int32))
    tail_address = (tail_k_RHCD + row * tail_stride_R + head * tail_stride_H).to(tl.int64, bitcast=True)
    address = tl.where(is_tail, tail_address, tl.load(columns))
    k_SD = tl.multiple_of(address.to(tl.pointer_type(q_RQTD.dtype.element_ty)), 16)
    is_held_SD = (s_S < end)[:, None] & (d_D < HEAD_DIM)[None, :]
    key_SD = tl.load(k_SD + s_S[:, None].to(tl.int64) * HEAD_DIM + d_D[None, :], mask=is_held_SD, other=0.0)
    log_mass_address = tl.where(is_tail, 0, tl.load(columns + 2))
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
    first_slot = tl.load(columns + 3)
    tl.store(prefix_mass_MW + asking * prefix_width + first_slot + s_S, mass_S, mask=(s_S < end) & (is_tail == 0))
    tail_place_S = (asking * num_heads + head) * tail_width + s_S
    # Up to the width: where the host knows bounds alone it reads behind a row's end, and there no query saw anything.
    tl.store(tail_mass_MHY + tail_place_S, mass_S, mask=(s_S < tail_width) & is_tail)
