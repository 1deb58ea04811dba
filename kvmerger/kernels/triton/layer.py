"""`reference.layer`, and `write_tails` of `reference.ragged`, on a GPU, a launch each.

The results are the same, up to the order of a norm's sum and last bits of exponentials.

Shapes: as in `reference.layer`.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kvmerger.kernels.programs.layer import gate_kernel, norm_kernel, rotate_kernel, tail_kernel
from kvmerger.kernels.reference.layer import HeadNorms

# What one program holds. A norm's sum depends on its number of warps, so that follows from the hidden size alone.
BLOCK_NUMBERS = 1024
NUMBERS_PER_WARP = 512
MOST_WARPS = 16
TAIL_BLOCK_NUMBERS = 2048


def rms_norm(
    x_XE: Tensor,
    weight_E: Tensor,
    eps: float,
    added_XE: Tensor | None = None,
    out_XE: Tensor | None = None,
) -> Tensor:
    """See `LayerKernels`. All tensors are contiguous."""
    num_tokens, num_dims = x_XE.shape
    out_XE = torch.empty_like(x_XE) if out_XE is None else out_XE
    block = triton.next_power_of_2(num_dims)
    norm_kernel[(num_tokens,)](
        x_XE,
        # Where there is nothing to add, any pointer will do: HAS_ADDED keeps the program from reading it.
        x_XE if added_XE is None else added_XE,
        weight_E,
        out_XE,
        eps,
        NUM_DIMS=num_dims,
        HAS_ADDED=added_XE is not None,
        BLOCK_E=block,
        num_warps=min(max(block // NUMBERS_PER_WARP, 1), MOST_WARPS),
        # Here and below: an fp32 product would go unrounded into the sum, where transformers rounds it.
        enable_fp_fusion=False,
    )
    return out_XE


def rotate(
    qkv_XF: Tensor,
    cos_XD: Tensor,
    sin_XD: Tensor,
    num_query_heads: int,
    num_heads: int,
    head_norms: HeadNorms | None,
) -> None:
    """See `LayerKernels`. A token's products lie one after the other; cos and sin are contiguous."""
    num_turned, head_dim = num_query_heads + num_heads, cos_XD.shape[1]
    block_half = triton.next_power_of_2(head_dim // 2)
    block_heads = min(max(BLOCK_NUMBERS // block_half, 1), triton.next_power_of_2(num_turned))
    rotate_kernel[(qkv_XF.shape[0], triton.cdiv(num_turned, block_heads))](
        qkv_XF,
        cos_XD,
        sin_XD,
        cos_XD if head_norms is None else head_norms.q_weight_D,
        cos_XD if head_norms is None else head_norms.k_weight_D,
        0.0 if head_norms is None else head_norms.eps,
        num_query_heads,
        num_turned,
        qkv_XF.stride(0),
        HEAD_DIM=head_dim,
        HAS_NORMS=head_norms is not None,
        BLOCK_S=block_half,
        BLOCK_H=block_heads,
        enable_fp_fusion=False,
    )


def gated(gate_up_XJ: Tensor) -> Tensor:
    """See `LayerKernels`. ``gate_up_XJ`` is contiguous."""
    num_tokens, num_dims = gate_up_XJ.shape[0], gate_up_XJ.shape[1] // 2
    out_XI = gate_up_XJ.new_empty(num_tokens, num_dims)
    grid = (num_tokens, triton.cdiv(num_dims, BLOCK_NUMBERS))
    gate_kernel[grid](gate_up_XJ, out_XI, num_dims, BLOCK_I=BLOCK_NUMBERS, enable_fp_fusion=False)
    return out_XI


def write_tails(
    tail_k_RHCD: Tensor,
    tail_v_RHCD: Tensor,
    k_RHTD: Tensor,
    v_RHTD: Tensor,
    tail_start_R: Tensor,
    num_new_R: Tensor,
) -> None:
    """Write each row's first ``num_new_R[r]`` keys and values from place ``tail_start_R[r]`` on, both int32."""
    # There must be room: nothing here knows the tails' capacity, and what is too long is written into the next head.
    num_rows, num_heads, num_tokens, head_dim = k_RHTD.shape
    assert k_RHTD.stride(3) == v_RHTD.stride(3) == 1, "a head's numbers lie one after the other"
    assert tail_k_RHCD.stride() == tail_v_RHCD.stride() and tail_k_RHCD.stride()[2:] == (head_dim, 1)
    block_dims = triton.next_power_of_2(head_dim)
    block_heads = min(max(TAIL_BLOCK_NUMBERS // block_dims, 1), triton.next_power_of_2(num_heads))
    tail_kernel[(num_rows * num_tokens, triton.cdiv(num_heads, block_heads))](
        k_RHTD,
        v_RHTD,
        tail_k_RHCD,
        tail_v_RHCD,
        tail_start_R,
        num_new_R,
        num_heads,
        num_tokens,
        *k_RHTD.stride()[:3],
        *v_RHTD.stride()[:3],
        *tail_k_RHCD.stride()[:2],
        HEAD_DIM=head_dim,
        BLOCK_D=block_dims,
        BLOCK_H=block_heads,
    )
