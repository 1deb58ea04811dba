"""The Triton kernel of rows and of pairs of rows: norms, distances, cosines. Each is one lane's, which knows of no other.

Shapes: F and G flat rows, D head size, M rows or pairs, P of a block, H heads of N rows each, C chunks of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST_COSINE_NORM = tl.constexpr(1e-8)  # as in torch.cosine_similarity
LEAST_UNIT_NORM = tl.constexpr(1e-12)  # as in torch's normalize


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
