"""New keys and values of all rows go behind their tails in one launch: `reference.write_tails` for lengths on the device.

Shapes: R rows, H KV heads, T new tokens, C tail capacity, D head size.
"""

from __future__ import annotations

import triton
from torch import Tensor

from kvmerger.kernels.triton_tokens import tail_kernel

BLOCK_NUMBERS = 2048


def write_tails(
    tail_k_RHCD: Tensor,
    tail_v_RHCD: Tensor,
    k_RHTD: Tensor,
    v_RHTD: Tensor,
    tail_start_R: Tensor,
    num_new_R: Tensor,
) -> None:
    """Write each row's first ``num_new_R[r]`` keys and values from place ``tail_start_R[r]`` on, both int32.

    There must be room: nothing here knows the tails' capacity.
    """
    num_rows, num_heads, num_tokens, head_dim = k_RHTD.shape
    assert k_RHTD.stride(3) == v_RHTD.stride(3) == 1, "a head's numbers lie one after the other"
    assert tail_k_RHCD.stride() == tail_v_RHCD.stride() and tail_k_RHCD.stride()[2:] == (head_dim, 1)
    block_dims = triton.next_power_of_2(head_dim)
    block_heads = min(max(BLOCK_NUMBERS // block_dims, 1), triton.next_power_of_2(num_heads))
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
