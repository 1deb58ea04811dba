"""The Triton kernel that finds the kept key most like each dropped one, tile by tile: no tile ever leaves the registers.

Keys are multiplied as they are and norms divided out afterwards: products of bf16 and fp16 go through tensor cores, are
exact, and are summed in fp32, which is as precise as fp32 products of normalised keys.

Shapes: F flat tokens, D head size, K kept tokens and M dropped ones of all heads; X dropped and S kept tokens of a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvmerger.kernels.programs.merging import LEAST_UNIT_NORM

NO_COSINE = tl.constexpr(-2.0)
EVICTED = tl.constexpr(-1)


# fmt: off
@triton.jit(do_not_specialize=["num_tokens"])
def nearest_kernel(
    k_FD, kept_KD, inverse_norm_K, kept_K, kept_start_H, num_kept_H, dropped_M, dropped_start_H, num_dropped_H,
    target_F, cosine_F, num_tokens,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr,
):
    # fmt: on
    """A block of one head's dropped tokens against all of its kept ones; equal cosines go to the earlier one."""
    head = tl.program_id(1).to(tl.int64)
    first_x, num_dropped = tl.program_id(0) * BLOCK_X, tl.load(num_dropped_H + head).to(tl.int32)
    kept_start, num_kept = tl.load(kept_start_H + head), tl.load(num_kept_H + head).to(tl.int32)
    x_X, s_S, d_D = first_x + tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    place_X = tl.load(dropped_M + tl.load(dropped_start_H + head) + x_X, mask=x_X < num_dropped, other=0)
    is_in_XD = (x_X < num_dropped)[:, None] & (d_D < HEAD_DIM)[None, :]
    key_XD = tl.load(k_FD + place_X[:, None] * HEAD_DIM + d_D[None, :], mask=is_in_XD, other=0.0)
    # The best of each place of a block so far: lanes are put together once, at the end.
    best_XS = tl.full([BLOCK_X, BLOCK_S], float("-inf"), tl.float32)
    block_XS = tl.zeros([BLOCK_X, BLOCK_S], tl.int32)
    for first_s in range(0, tl.where(first_x < num_dropped, num_kept, 0), BLOCK_S):
        is_kept_S = first_s + s_S < num_kept
        slot_S = kept_start + first_s + s_S
        kept_SD = tl.load(
            kept_KD + slot_S[:, None] * HEAD_DIM + d_D[None, :],
            mask=is_kept_S[:, None] & (d_D < HEAD_DIM)[None, :], other=0.0,
        )
        inverse_S = tl.load(inverse_norm_K + slot_S, mask=is_kept_S, other=0.0)
        score_XS = tl.dot(key_XD, tl.trans(kept_SD), input_precision="ieee") * inverse_S[None, :]
        is_better_XS = (score_XS > best_XS) & is_kept_S[None, :]
        best_XS = tl.where(is_better_XS, score_XS, best_XS)
        block_XS = tl.where(is_better_XS, first_s, block_XS)
    best_X = tl.max(best_XS, axis=1)
    # Each lane has the earliest of its own best; the lowest column of the lanes that tie is the head's earliest.
    column_XS = tl.where(best_XS == best_X[:, None], block_XS + s_S[None, :], num_kept)
    column_X = tl.minimum(tl.min(column_XS, axis=1), tl.maximum(num_kept - 1, 0))
    is_found_X = (x_X < num_dropped) & (num_kept > 0)
    kept_X = tl.load(kept_K + kept_start + column_X, mask=is_found_X, other=0)
    square_X = tl.sum(key_XD.to(tl.float32) * key_XD.to(tl.float32), axis=1)
    cosine_X = best_X / tl.maximum(tl.sqrt_rn(square_X), LEAST_UNIT_NORM)
    target_X = tl.where(is_found_X, kept_X - head * num_tokens, EVICTED)
    tl.store(target_F + place_X, target_X, mask=x_X < num_dropped)
    tl.store(cosine_F + place_X, tl.where(is_found_X, cosine_X, NO_COSINE), mask=x_X < num_dropped)
