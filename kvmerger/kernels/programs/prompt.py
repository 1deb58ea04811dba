"""The Triton kernels of a prompt's attention mass: what one program computes. They know nothing of torch.

A probability is computed again from its query's log-sum-exp, so no softmax is needed, and each program adds up all queries
of one head for columns that no other program has: no atomics, the same bits each time.

Shapes: N tokens, Q query heads, H KV heads, D head size, S columns (keys) of a block, X queries of a block, F queries that
count: those from ``first_query`` on.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)  # exponents of 2 cost one instruction, those of e two


# One argument a line, signatures would be longer than what they introduce.
# fmt: off
@triton.jit(do_not_specialize=["num_tokens", "first_query"])
def column_mass_kernel(
    q_QND, k_HND, lse_QF, mass_QN, scaling, num_tokens, first_query, num_groups,
    q_stride_Q, q_stride_N, k_stride_H, k_stride_N, lse_stride_Q, lse_stride_F,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_X: tl.constexpr,
):
    # fmt: on
    """Mass of one block of columns, from one query head: the sum of exp(score - lse) over the queries that see them."""
    first_s, query_head = tl.program_id(0) * BLOCK_S, tl.program_id(1).to(tl.int64)
    q_ND = q_QND + query_head * q_stride_Q
    lse_F = lse_QF + query_head * lse_stride_Q
    s_S, d_D = first_s + tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    k_SD = k_HND + query_head // num_groups * k_stride_H + s_S.to(tl.int64)[:, None] * k_stride_N + d_D[None, :]
    key_SD = tl.load(k_SD, mask=(s_S < num_tokens)[:, None] & (d_D < HEAD_DIM)[None, :], other=0.0)
    # A sum for each place of the block: lanes are put together once, at the end.
    mass_SX = tl.zeros([BLOCK_S, BLOCK_X], dtype=tl.float32)
    begin = tl.maximum(first_s, first_query)
    num_diagonal = tl.cdiv(tl.maximum(tl.minimum(first_s + BLOCK_S, num_tokens) - begin, 0), BLOCK_X)
    everybody = begin + num_diagonal * BLOCK_X  # from this query on, all columns of the block are seen
    for first_x in range(begin, everybody, BLOCK_X):
        prob_SX = _probabilities(
            key_SD, q_ND, lse_F, first_x, d_D, scaling, num_tokens, first_query, q_stride_N, lse_stride_F,
            HEAD_DIM, BLOCK_X,
        )
        x_X = first_x + tl.arange(0, BLOCK_X)
        mass_SX += tl.where(s_S[:, None] <= x_X[None, :], prob_SX, 0.0)
    for first_x in range(everybody, num_tokens, BLOCK_X):
        mass_SX += _probabilities(
            key_SD, q_ND, lse_F, first_x, d_D, scaling, num_tokens, first_query, q_stride_N, lse_stride_F,
            HEAD_DIM, BLOCK_X,
        )
    tl.store(mass_QN + query_head * num_tokens + s_S, tl.sum(mass_SX, axis=1), mask=s_S < num_tokens)


@triton.jit
def _probabilities(
    key_SD, q_ND, lse_F, first_x, d_D, scaling, num_tokens, first_query, q_stride_N, lse_stride_F,
    HEAD_DIM: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """What the queries from ``first_x`` on pay to the keys, whether they see them or not; 0 behind the last query."""
    x_X = first_x + tl.arange(0, BLOCK_X)
    is_query_X = x_X < num_tokens
    q_XD = q_ND + x_X.to(tl.int64)[:, None] * q_stride_N + d_D[None, :]
    query_XD = tl.load(q_XD, mask=is_query_X[:, None] & (d_D < HEAD_DIM)[None, :], other=0.0)
    # inf behind the last query: exp2(… - inf) is 0, without another mask.
    lse_X = tl.load(lse_F + (x_X - first_query) * lse_stride_F, mask=is_query_X, other=float("inf"))
    score_SX = tl.dot(key_SD, tl.trans(query_XD), input_precision="ieee")
    return tl.exp2(score_SX * (scaling * LOG2_E) - (lse_X * LOG2_E)[None, :])


# fmt: off
@triton.jit(do_not_specialize=["num_tokens", "first_query"])
def log_sum_exp_kernel(
    q_QND, k_HND, lse_QF, scaling, num_tokens, first_query, num_groups,
    q_stride_Q, q_stride_N, k_stride_H, k_stride_N, lse_stride_Q, lse_stride_F,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_X: tl.constexpr,
):
    # fmt: on
    """Natural log-sum-exp of the causal scores of one block of one head's queries."""
    query_head = tl.program_id(1).to(tl.int64)
    first_x = first_query + (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_X  # the longest start first
    x_X, d_D = first_x + tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_D)
    is_query_X, is_dim_D = x_X < num_tokens, d_D < HEAD_DIM
    q_XD = q_QND + query_head * q_stride_Q + x_X.to(tl.int64)[:, None] * q_stride_N + d_D[None, :]
    query_XD = tl.load(q_XD, mask=is_query_X[:, None] & is_dim_D[None, :], other=0.0)
    k_ND = k_HND + query_head // num_groups * k_stride_H
    # Every query sees column 0, so that after the first block no maximum is -inf.
    max_X, sum_X = tl.full([BLOCK_X], float("-inf"), dtype=tl.float32), tl.zeros([BLOCK_X], dtype=tl.float32)
    for first_s in range(0, tl.minimum(first_x + BLOCK_X, num_tokens), BLOCK_S):
        s_S = first_s + tl.arange(0, BLOCK_S)
        k_SD = k_ND + s_S.to(tl.int64)[:, None] * k_stride_N + d_D[None, :]
        key_SD = tl.load(k_SD, mask=(s_S < num_tokens)[:, None] & is_dim_D[None, :], other=0.0)
        score_XS = tl.dot(query_XD, tl.trans(key_SD), input_precision="ieee") * (scaling * LOG2_E)
        score_XS = tl.where(s_S[None, :] <= x_X[:, None], score_XS, float("-inf"))
        new_max_X = tl.maximum(max_X, tl.max(score_XS, axis=1))
        sum_X = sum_X * tl.exp2(max_X - new_max_X) + tl.sum(tl.exp2(score_XS - new_max_X[:, None]), axis=1)
        max_X = new_max_X
    lse_X = lse_QF + query_head * lse_stride_Q + (x_X - first_query) * lse_stride_F
    tl.store(lse_X, (max_X + tl.log2(sum_X)) / LOG2_E, mask=is_query_X)
