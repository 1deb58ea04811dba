"""The Triton kernel that copies chosen slots: keys, values and positions in one launch.

Shapes: F flat slots to choose from, K chosen ones, S of a block, D head size.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit(do_not_specialize=["num_chosen"])
def take_kernel(
    k_FD, v_FD, position_F, slot_K, k_KD, v_KD, position_K, num_chosen,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):
    # fmt: on
    """One block of chosen slots."""
    # A whole model's slots have more than 2³¹ numbers.
    chosen_S = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_chosen_S, d_D = chosen_S < num_chosen, tl.arange(0, BLOCK_D)
    slot_S = tl.load(slot_K + chosen_S, mask=is_chosen_S, other=0)
    is_in_SD = is_chosen_S[:, None] & (d_D < HEAD_DIM)[None, :]
    from_SD = slot_S[:, None] * HEAD_DIM + d_D[None, :]
    to_SD = chosen_S[:, None] * HEAD_DIM + d_D[None, :]
    k_SD = tl.load(k_FD + from_SD, mask=is_in_SD)
    v_SD = tl.load(v_FD + from_SD, mask=is_in_SD)
    tl.store(k_KD + to_SD, k_SD, mask=is_in_SD)
    tl.store(v_KD + to_SD, v_SD, mask=is_in_SD)
    position_S = tl.load(position_F + slot_S, mask=is_chosen_S)
    tl.store(position_K + chosen_S, position_S, mask=is_chosen_S)
