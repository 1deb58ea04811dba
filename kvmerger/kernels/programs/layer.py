"""The Triton kernels of all that a decoder layer does to one token at a time. They know nothing of torch.

No program reads another token's numbers, so a token's bits depend on itself alone.

Shapes: as in `reference.layer`; R rows, T new tokens of a row, C tail capacity; H heads of a block, S half a head.
"""

from __future__ import annotations

import triton
import triton.language as tl


# One argument a line, signatures would be longer than what they introduce.
# fmt: off
@triton.jit
def norm_kernel(
    x_XE, added_XE, weight_E, out_XE, eps,
    NUM_DIMS: tl.constexpr, HAS_ADDED: tl.constexpr, BLOCK_E: tl.constexpr,
):
    # fmt: on
    """RMS norm of one token; HAS_ADDED first adds to the token, and stores the sum in its place."""
    # 64 bits here and below: the MLP of 131,072 tokens has more than 2³¹ numbers.
    start, e_E = tl.program_id(0).to(tl.int64) * NUM_DIMS, tl.arange(0, BLOCK_E)
    is_dim_E = e_E < NUM_DIMS
    x_E = tl.load(x_XE + start + e_E, mask=is_dim_E, other=0.0)
    if HAS_ADDED:
        added_E = tl.load(added_XE + start + e_E, mask=is_dim_E, other=0.0)
        x_E = (x_E.to(tl.float32) + added_E.to(tl.float32)).to(x_E.dtype)
        tl.store(x_XE + start + e_E, x_E, mask=is_dim_E)
    wide_E = x_E.to(tl.float32)
    mean_square = tl.sum(wide_E * wide_E, axis=0) / NUM_DIMS
    # Rounded before its weight is multiplied in, as transformers does.
    normed_E = (wide_E * tl.rsqrt(mean_square + eps)).to(x_E.dtype).to(tl.float32)
    weighted_E = tl.load(weight_E + e_E, mask=is_dim_E, other=0.0).to(tl.float32) * normed_E
    tl.store(out_XE + start + e_E, weighted_E.to(x_E.dtype), mask=is_dim_E)


# fmt: off
@triton.jit
def rotate_kernel(
    qkv_XF, cos_XD, sin_XD, q_weight_D, k_weight_D, eps, num_query_heads, num_turned_heads, qkv_stride_X,
    HEAD_DIM: tl.constexpr, HAS_NORMS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_H: tl.constexpr,
):
    # fmt: on
    """RoPE of a block of one token's heads, in place; HAS_NORMS norms each head before."""
    HALF: tl.constexpr = HEAD_DIM // 2
    token, head_H = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    s_S = tl.arange(0, BLOCK_S)
    is_half_S = s_S < HALF
    is_mine_HS = (head_H < num_turned_heads)[:, None] & is_half_S[None, :]
    first_HS = qkv_XF + token * qkv_stride_X + head_H[:, None] * HEAD_DIM + s_S[None, :]
    a_HS = tl.load(first_HS, mask=is_mine_HS, other=0.0)
    b_HS = tl.load(first_HS + HALF, mask=is_mine_HS, other=0.0)
    dtype = a_HS.dtype
    if HAS_NORMS:
        wide_a_HS, wide_b_HS = a_HS.to(tl.float32), b_HS.to(tl.float32)
        square_H = tl.sum(wide_a_HS * wide_a_HS, axis=1) + tl.sum(wide_b_HS * wide_b_HS, axis=1)
        factor_H1 = tl.rsqrt(square_H / HEAD_DIM + eps)[:, None]
        is_query_H1 = (head_H < num_query_heads)[:, None]
        a_HS = _weighted(wide_a_HS * factor_H1, q_weight_D, k_weight_D, is_query_H1, s_S, is_half_S, dtype)
        b_HS = _weighted(
            wide_b_HS * factor_H1, q_weight_D + HALF, k_weight_D + HALF, is_query_H1, s_S, is_half_S, dtype
        )
    a_HS, b_HS = a_HS.to(tl.float32), b_HS.to(tl.float32)
    cos_S, sin_S = cos_XD + token * HEAD_DIM + s_S, sin_XD + token * HEAD_DIM + s_S
    turned_a_HS = _turned(a_HS, -b_HS, cos_S, sin_S, is_half_S, dtype)
    turned_b_HS = _turned(b_HS, a_HS, cos_S + HALF, sin_S + HALF, is_half_S, dtype)
    tl.store(first_HS, turned_a_HS, mask=is_mine_HS)
    tl.store(first_HS + HALF, turned_b_HS, mask=is_mine_HS)


@triton.jit
def _weighted(normed_HS, q_weight_S, k_weight_S, is_query_H1, s_S, is_half_S, dtype: tl.constexpr):
    """Rounded norms times the weight of queries or keys, rounded again."""
    q_S = tl.load(q_weight_S + s_S, mask=is_half_S, other=0.0).to(tl.float32)
    k_S = tl.load(k_weight_S + s_S, mask=is_half_S, other=0.0).to(tl.float32)
    weight_HS = tl.where(is_query_H1, q_S[None, :], k_S[None, :])
    return (weight_HS * normed_HS.to(dtype).to(tl.float32)).to(dtype)


@triton.jit
def _turned(x_HS, other_HS, cos_S, sin_S, is_half_S, dtype: tl.constexpr):
    """One half of the turned heads: two products, each rounded, and their sum."""
    cos_1S = tl.load(cos_S, mask=is_half_S, other=0.0).to(tl.float32)[None, :]
    sin_1S = tl.load(sin_S, mask=is_half_S, other=0.0).to(tl.float32)[None, :]
    # Launched without ``enable_fp_fusion``, or in fp32 a product would go into the sum unrounded.
    sum_HS = (x_HS * cos_1S).to(dtype).to(tl.float32) + (other_HS * sin_1S).to(dtype).to(tl.float32)
    return sum_HS.to(dtype)


@triton.jit
def gate_kernel(gate_up_XJ, out_XI, num_dims, BLOCK_I: tl.constexpr):
    """A block of one token's SiLU(gate) · up."""
    token, i_I = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    is_dim_I = i_I < num_dims
    gate_I = tl.load(gate_up_XJ + token * 2 * num_dims + i_I, mask=is_dim_I, other=0.0)
    up_I = tl.load(gate_up_XJ + token * 2 * num_dims + num_dims + i_I, mask=is_dim_I, other=0.0)
    wide_I = gate_I.to(tl.float32)
    silu_I = (wide_I / (1.0 + tl.exp(-wide_I))).to(gate_I.dtype)
    product_I = silu_I.to(tl.float32) * up_I.to(tl.float32)
    tl.store(out_XI + token * num_dims + i_I, product_I.to(gate_I.dtype), mask=is_dim_I)


# fmt: off
@triton.jit(do_not_specialize=["num_tokens"])
def tail_kernel(
    k_RHTD, v_RHTD, tail_k_RHCD, tail_v_RHCD, tail_start_R, num_new_R, num_heads, num_tokens,
    k_stride_R, k_stride_H, k_stride_T, v_stride_R, v_stride_H, v_stride_T, tail_stride_R, tail_stride_H,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):
    # fmt: on
    """Keys and values of a block of one new token's heads go behind its row's tail, if the row has so many new ones."""
    row, token = (tl.program_id(0) // num_tokens).to(tl.int64), (tl.program_id(0) % num_tokens).to(tl.int64)
    if token < tl.load(num_new_R + row):
        head_H = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)
        d_D = tl.arange(0, BLOCK_D)
        is_mine_HD = (head_H < num_heads)[:, None] & (d_D < HEAD_DIM)[None, :]
        place = (tl.load(tail_start_R + row) + token) * HEAD_DIM
        to_HD = row * tail_stride_R + head_H[:, None] * tail_stride_H + place + d_D[None, :]
        k_HD = k_RHTD + row * k_stride_R + head_H[:, None] * k_stride_H + token * k_stride_T + d_D[None, :]
        v_HD = v_RHTD + row * v_stride_R + head_H[:, None] * v_stride_H + token * v_stride_T + d_D[None, :]
        tl.store(tail_k_RHCD + to_HD, tl.load(k_HD, mask=is_mine_HD), mask=is_mine_HD)
        tl.store(tail_v_RHCD + to_HD, tl.load(v_HD, mask=is_mine_HD), mask=is_mine_HD)
