"""Attention mass of packed slots: what `programs.ragged.mass_kernel` computes for plain ones, over codes where they lie.

Shapes: as in `programs.packed`; M rows of one form that asked, W flat slots of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvmerger.kernels.programs.packed import folded_queries, key_addresses, logits
from kvmerger.kernels.programs.packed_codes import fetch_block
from kvmerger.kernels.programs.packed_keys import scores
from kvmerger.kernels.programs.table import FIRST_SLOT, NUM_COLUMNS, NUM_SLOTS


# fmt: off
@triton.jit(do_not_specialize=["prefix_width"])
def packed_mass_kernel(
    q_RQTD, columns_RHJ, row_M, place_M, num_new_R, lse_RHX, k_points, prefix_mass_AW,
    scaling, num_heads, num_groups, num_tokens, prefix_width, q_stride_R, q_stride_Q, q_stride_T,
    BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr, IS_TWIN: tl.constexpr, WHOLE_GROUPS: tl.constexpr,
    K: tl.constexpr,
):
    # fmt: on
    """One block of slots of a head of one row; row m's masses go to row ``place_M[m]`` of the output."""
    index, head = tl.program_id(1) // num_heads, tl.program_id(1) % num_heads
    row, place = tl.load(row_M + index).to(tl.int64), tl.load(place_M + index).to(tl.int64)
    head_columns = columns_RHJ + (row * num_heads + head) * NUM_COLUMNS
    start, end = tl.program_id(0) * BLOCK_S, tl.load(head_columns + NUM_SLOTS).to(tl.int32)
    if start < end:
        s_S, num_new = tl.minimum(start + tl.arange(0, BLOCK_S), end - 1), tl.load(num_new_R + row)
        logit_S = logits(head_columns, start, end, s_S)
        keys, scaling = key_addresses(head_columns, k_points, scaling, K)
        fetched = fetch_block(keys[1], keys[2], start, end, BLOCK_S, WHOLE_GROUPS, K)
        mass_S = tl.zeros([BLOCK_S], dtype=tl.float32)
        for first_x in range(0, num_new * num_groups, BLOCK_X):
            x_X = first_x + tl.arange(0, BLOCK_X)
            token_X, query_head_X = x_X // num_groups, head * num_groups + x_X % num_groups
            q_X = q_RQTD + row * q_stride_R + query_head_X * q_stride_Q + token_X.to(tl.int64) * q_stride_T
            is_query_X = token_X < num_new
            operands, sums = folded_queries(q_X, is_query_X, q_RQTD.dtype.element_ty, IS_TWIN, K)
            score_SX = scores(
                operands, sums, keys, fetched, start, end, s_S,
                BLOCK_X, q_RQTD.dtype.element_ty, IS_TWIN, WHOLE_GROUPS, K,
            ) * scaling + logit_S[:, None]  # fmt: skip
            place_X = (row * num_heads + head) * num_tokens * num_groups + x_X
            lse_X = tl.load(lse_RHX + place_X, mask=is_query_X, other=0.0)
            mass_SX = tl.where(is_query_X[None, :], tl.exp(score_SX - lse_X[None, :]), 0.0)
            mass_S += tl.sum(mass_SX, axis=1)
        place_S = place * prefix_width + tl.load(head_columns + FIRST_SLOT) + s_S
        tl.store(prefix_mass_AW + place_S, mass_S / num_groups, mask=start + tl.arange(0, BLOCK_S) < end)
